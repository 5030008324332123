//! A program in a namespace: started, watched, disturbed, ended.
//!
//! Its output goes to files, so that nothing is lost when it is killed and no pipe can stall it. The process is
//! started directly, not below a wrapper, so its pid is the program's own and signals reach it.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::{Namespace, binary, wait};

// What a failure shows of a log: enough for an error and its causes.
const TAIL: usize = 20;

/// What to start: a program, its arguments, its surroundings.
#[derive(Debug)]
pub struct Spec {
    name: String,
    program: OsString,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    input: Input,
}

#[derive(Debug)]
enum Input {
    None,
    Bytes(Vec<u8>),
    Pipe,
}

impl Spec {
    /// Any program; `name` is that of its log files.
    pub fn new(name: impl Into<String>, program: impl AsRef<OsStr>) -> Self {
        Self {
            name: name.into(),
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            variables: Vec::new(),
            directory: None,
            input: Input::None,
        }
    }

    /// The `sealock` program under test.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be built.
    pub fn sealock(name: impl Into<String>) -> Result<Self> {
        Ok(Self::new(name, binary::sealock()?))
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(
            arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned()),
        );
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.variables
            .push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Gives the program these bytes and then the end of its input.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Leaves the input open; [`Node::take_input`] hands out the writing end.
    #[must_use]
    pub fn open_input(mut self) -> Self {
        self.input = Input::Pipe;
        self
    }
}

/// A running program, killed when dropped.
#[derive(Debug)]
pub struct Node {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    out: PathBuf,
    err: PathBuf,
    // Keeps the namespace until the program has ended.
    _namespace: Namespace,
}

/// What a program holds of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// Open file descriptors.
    pub files: usize,
    /// Threads.
    pub threads: usize,
}

/// A program that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed on its standard output.
    pub stdout: String,
    /// What it printed on its standard error.
    pub stderr: String,
}

impl Node {
    /// Starts a program in a namespace, with its logs in `logs`.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be started.
    pub(crate) fn start(namespace: &Namespace, logs: &Path, spec: Spec) -> Result<Self> {
        let (out, err) = log_paths(logs, &format!("{}.{}", namespace.short(), spec.name));
        // setpriv asks the kernel to kill the program with the thread that starts it, and becomes the program.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&spec.program)
            .args(&spec.arguments);
        command.envs(spec.variables);
        command
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?);
        if let Some(directory) = &spec.directory {
            command.current_dir(directory);
        }
        command.stdin(match spec.input {
            Input::None => Stdio::null(),
            Input::Pipe => Stdio::piped(),
            Input::Bytes(bytes) => {
                let path = out.with_extension("in");
                fs::write(&path, bytes)?;
                File::open(path)?.into()
            }
        });
        let mut child = namespace.start(command).with_context(|| {
            format!(
                "starting {} in {}",
                spec.program.display(),
                namespace.name()
            )
        })?;
        event(&format!("{} starts in {}", spec.name, namespace.short()));
        Ok(Self {
            name: spec.name,
            input: child.stdin.take(),
            child,
            out,
            err,
            _namespace: namespace.clone(),
        })
    }

    /// The process id of the program itself.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The writing end of an input that was left open; dropping it ends the input.
    pub fn take_input(&mut self) -> Option<ChildStdin> {
        self.input.take()
    }

    /// All that it printed on its standard output until here.
    #[must_use]
    pub fn stdout(&self) -> String {
        text(&self.out)
    }

    /// All that it printed on its standard error until here.
    #[must_use]
    pub fn stderr(&self) -> String {
        text(&self.err)
    }

    /// Waits for a line that contains `needle`, on either output, and returns it.
    ///
    /// # Errors
    ///
    /// Fails when the time is over or the program ended without it, and shows its last lines.
    pub fn wait_for_line(&mut self, needle: &str, within: Duration) -> Result<String> {
        let what = format!("`{needle}` from {}", self.name);
        let found = wait::until(&what, within, || {
            // The state first: what an ended program printed is complete when it is read after that.
            let ended = self.child.try_wait()?;
            if let Some(line) =
                line_with(&self.stdout(), needle).or_else(|| line_with(&self.stderr(), needle))
            {
                return Ok(Some(line));
            }
            match ended {
                Some(status) => bail!("{} ended ({status}) without `{needle}`", self.name),
                None => Ok(None),
            }
        });
        found.map_err(|error| anyhow!("{error:#}\n{}", self.tail()))
    }

    /// Sends a signal to the program.
    ///
    /// # Errors
    ///
    /// Fails when it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        ensure!(self.is_running()?, "{} has ended", self.name);
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("signalling {}", self.name))?;
        event(&format!("{} gets {signal:?}", self.name));
        Ok(())
    }

    /// Kills it at once and waits until it is gone.
    ///
    /// # Errors
    ///
    /// Fails when it had ended before.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops it in its tracks, as a machine that hangs does.
    ///
    /// # Errors
    ///
    /// Fails when it has ended.
    pub fn freeze(&mut self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on after [`Node::freeze`].
    ///
    /// # Errors
    ///
    /// Fails when it has ended.
    pub fn thaw(&mut self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Asks it to end, and waits for that.
    ///
    /// # Errors
    ///
    /// Fails when it does not end in time.
    pub fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(within)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    ///
    /// Fails when it does not end in time, and shows its last lines.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait::until(&what, within, || Ok(self.child.try_wait()?))
            .map_err(|error| anyhow!("{error:#}\n{}", self.tail()))
    }

    /// Waits until it ends by itself, and returns what it printed.
    ///
    /// # Errors
    ///
    /// Fails when it does not end in time.
    pub fn finish(mut self, within: Duration) -> Result<Ended> {
        let status = self.wait(within)?;
        Ok(Ended {
            status,
            stdout: self.stdout(),
            stderr: self.stderr(),
        })
    }

    /// Whether it has not ended yet.
    ///
    /// # Errors
    ///
    /// Fails when the system cannot tell.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Resident memory in bytes.
    ///
    /// # Errors
    ///
    /// Fails when it has ended.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line
            .and_then(|line| line.split_whitespace().next())
            .context("no VmRSS: has it ended?")?;
        Ok(kib.parse::<u64>()? * 1024)
    }

    /// What it holds of the system: compared before and after, it shows what was not given back.
    ///
    /// # Errors
    ///
    /// Fails when it has ended.
    pub fn holdings(&self) -> Result<Holdings> {
        let count = |what: &str| -> Result<usize> {
            Ok(fs::read_dir(format!("/proc/{}/{what}", self.pid()))?.count())
        };
        Ok(Holdings {
            files: count("fd")?,
            threads: count("task")?,
        })
    }

    /// Waits until it holds no more open files than it did.
    ///
    /// # Errors
    ///
    /// Fails when it keeps some for longer.
    pub fn wait_for_return_to(&self, before: Holdings, within: Duration) -> Result<()> {
        let mut last = self.holdings()?;
        wait::until("open files to be closed", within, || {
            last = self.holdings()?;
            Ok((last.files <= before.files).then_some(()))
        })
        .with_context(|| {
            format!(
                "{}: {} files before, {} after",
                self.name, before.files, last.files
            )
        })
    }

    /// The processor time that it has used so far.
    ///
    /// # Errors
    ///
    /// Fails when it is gone.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The name, in brackets, may hold spaces; the times are the 12th and 13th field behind it.
        let (_, fields) = stat.rsplit_once(')').context("a line of stat")?;
        let mut times = fields.split_whitespace().skip(11);
        let mut ticks = || -> Result<u64> { Ok(times.next().context("a time")?.parse()?) };
        let ticks = ticks()? + ticks()?;
        // Linux tells programs a hundred ticks a second, whatever it uses itself.
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Fails when it logged an error or a panic.
    ///
    /// # Errors
    ///
    /// Shows the first such line.
    pub fn without_complaints(&self) -> Result<()> {
        for text in [self.stdout(), self.stderr()] {
            let complaint = text.lines().find(|line| {
                line.contains("panicked at")
                    || line
                        .split(|c: char| !c.is_alphanumeric())
                        .any(|word| word == "ERROR")
            });
            ensure!(
                complaint.is_none(),
                "{} complained: {}",
                self.name,
                complaint.unwrap_or_default()
            );
        }
        Ok(())
    }

    fn tail(&self) -> String {
        format!("{}{}", tail(&self.out), tail(&self.err))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Ended or not: both calls fail only for a program that is gone, and then there is nothing to do.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Ended {
    /// The output of a program that succeeded.
    ///
    /// # Errors
    ///
    /// Fails with what it printed when it did not.
    pub fn success(self) -> Result<String> {
        ensure!(
            self.status.success(),
            "{}\n{}{}",
            self.status,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }
}

/// Prints beside a test's own output; the test runner shows it when the test fails.
#[expect(clippy::print_stderr, reason = "the runner captures exactly this")]
pub fn say(text: &str) {
    eprintln!("{text}");
}

/// One line of the time-line that a failed scene shows: what the test did to the network or a program, and when.
pub(crate) fn event(what: &str) {
    // The runner gives every test a process of its own, and its first event is where time begins.
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let since = BEGAN.get_or_init(Instant::now).elapsed();
    say(&format!("lab: t={:.3}s {what}", since.as_secs_f64()));
}

/// The last lines of a log, with its path; nothing for an empty one.
pub(crate) fn tail(path: &Path) -> String {
    let text = text(path);
    if text.trim().is_empty() {
        return String::new();
    }
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(TAIL)..].join("\n    ");
    format!("  {}:\n    {last}\n", path.display())
}

fn text(path: &Path) -> String {
    fs::read(path).map_or_else(
        |_| String::new(),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    )
}

fn line_with(text: &str, needle: &str) -> Option<String> {
    text.lines()
        .find(|line| line.contains(needle))
        .map(str::to_owned)
}

/// Names that no earlier run of the same program in this directory has used.
fn log_paths(logs: &Path, name: &str) -> (PathBuf, PathBuf) {
    let free = |stem: &str| {
        (
            logs.join(format!("{stem}.out")),
            logs.join(format!("{stem}.err")),
        )
    };
    let mut paths = free(name);
    let mut run = 2;
    while paths.0.exists() {
        paths = free(&format!("{name}-{run}"));
        run += 1;
    }
    paths
}
