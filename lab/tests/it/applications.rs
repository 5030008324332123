//! What people have open all day lives on while the relay under it dies and comes back: a shell, a transaction, a clone.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ChildStdin,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Deployment, Family, Node, Spec,
    deployment::loopback,
    pattern::{Pattern, Way},
    scene, servers, wait,
};

use crate::links::{MIB, SOON};

const SSH: u16 = 22;
const POSTGRES: u16 = 5432;
const GIT: u16 = 9418;
// On the consumer's machine everything listens this much higher.
const SHIFT: u16 = 10_000;
/// Long enough for a relay to die in the middle, twice.
const REPOSITORY: u64 = 64 * MIB;

/// A program that is spoken to line by line.
struct Talk {
    node: Node,
    input: ChildStdin,
}

impl Talk {
    fn start(it: &Deployment<'_>, spec: Spec) -> Result<Self> {
        let mut node = it.lab().start(&it.net.con, spec.open_input())?;
        let input = node.take_input().context("an open input")?;
        Ok(Self { node, input })
    }

    /// Says a line and waits for its answer.
    fn ask(&mut self, line: &str, answer: &str) -> Result<()> {
        writeln!(self.input, "{line}").with_context(|| format!("saying `{line}`"))?;
        self.node.wait_for_line(answer, SOON).map(drop)
    }

    /// Ends its input and waits for a good end.
    fn finish(self) -> Result<()> {
        drop(self.input);
        self.node.finish(SOON)?.success().map(drop)
    }
}

#[test]
fn a_login_a_transaction_and_a_clone_live_through_two_deaths_of_the_relay() {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::split(lab)?;
        let source = repository(&it)?;
        let agents = [it.provider.agent()?, it.consumer.agent()?];
        for (name, port) in [("ssh", SSH), ("postgres", POSTGRES), ("git", GIT)] {
            it.provider
                .ask(&format!("expose {port} --as {name} --detach"))?;
            let at = port + SHIFT;
            it.consumer
                .ask(&format!("connect {name} --listen {at} --detach"))?;
        }
        let sshd = servers::Ssh::start(it.lab(), &it.net.prv, loopback(SSH))?;
        let _postgres = servers::postgres(it.lab(), &it.net.prv, loopback(POSTGRES))?;
        let _daemon = servers::git(it.lab(), &it.net.prv, loopback(GIT), parent(&source)?)?;

        let port = (SSH + SHIFT).to_string();
        let login = sshd.client("login").args(["-p", &port, "127.0.0.1", "sh"]);
        let mut login = Talk::start(&it, login)?;
        login.ask("n=40; echo before $((n + 2))", "before 42")?;
        let mut psql = Talk::start(&it, psql())?;
        psql.ask("begin; create table t (n int); insert into t values (40); select 'rows', count(*) from t;", "rows|1")?;
        let (mut clone, copy) = clone(&it, &source)?;

        for death in 1..=2 {
            wait_for_size(&mut clone, &copy, death * REPOSITORY / 4)?;
            roles.relay.kill()?;
            roles.relay = it.start_relay(&[])?;
            login.ask(
                &format!("echo death {death} $n"),
                &format!("death {death} 40"),
            )?;
            // The very same transaction, or the table would not be there.
            psql.ask(
                &format!("insert into t values ({death}); select 'death', {death}, sum(n) from t;"),
                &format!("death|{death}|{}", 40 + (1..=death).sum::<u64>()),
            )?;
        }
        psql.ask("commit; select 'end', sum(n) from t;", "end|43")?;
        psql.finish()?;
        login.ask("echo $n; exit", "40")?;
        login.finish()?;
        ensure!(
            clone.wait(Duration::from_secs(60))?.success(),
            "{}",
            clone.stderr()
        );
        is_copy(&it, &source, &copy)?;
        for node in &agents {
            node.without_complaints()?;
        }
        Ok(())
    });
}

fn psql() -> Spec {
    let port = (POSTGRES + SHIFT).to_string();
    Spec::new("psql", "psql")
        .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-Atq"])
        .args(["-v", "ON_ERROR_STOP=1"])
}

fn git(name: &str, arguments: &[&str]) -> Spec {
    Spec::new(name, "git")
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
}

fn parent(path: &Path) -> Result<&Path> {
    path.parent().context("a directory around the repository")
}

/// A repository of files that cannot be compressed.
fn repository(it: &Deployment<'_>) -> Result<PathBuf> {
    let path = it.lab().directory().join("repositories").join("large");
    fs::create_dir_all(&path)?;
    let at = path.to_str().context("a path in UTF-8")?;
    let run = |name: &str, arguments: &[&str]| {
        let all = [&["-C", at, "-c", "core.compression=0"], arguments].concat();
        it.lab().run(&it.net.prv, git(name, &all))?.success()
    };
    run("init", &["init", "-q"])?;
    for n in 0..8 {
        let length = usize::try_from(REPOSITORY / 8)?;
        fs::write(
            path.join(format!("file{n}")),
            Pattern::new(n, Way::Down).bytes(0, length),
        )?;
    }
    run("add", &["add", "."])?;
    let identity = ["-c", "user.name=lab", "-c", "user.email=lab@localhost"];
    run(
        "commit",
        &[&identity[..], &["commit", "-q", "-m", "all"]].concat(),
    )?;
    // The server sends it as it lies there: what cannot be compressed need not be tried.
    for (key, value) in [("core.compression", "0"), ("core.bigFileThreshold", "1k")] {
        run("configure", &["config", key, value])?;
    }
    Ok(path)
}

fn clone(it: &Deployment<'_>, source: &Path) -> Result<(Node, PathBuf)> {
    let copy = it.lab().directory().join("copy");
    let name = source.file_name().and_then(|name| name.to_str());
    let url = format!(
        "git://127.0.0.1:{}/{}",
        GIT + SHIFT,
        name.context("a name")?
    );
    let to = copy.to_str().context("a path in UTF-8")?;
    let node = it
        .lab()
        .start(&it.net.con, git("clone", &["clone", "-q", &url, to]))?;
    Ok((node, copy))
}

/// Waits until the clone has got that many bytes, and has not ended: the moment for a fault.
fn wait_for_size(clone: &mut Node, copy: &Path, bytes: u64) -> Result<()> {
    wait::until("the clone to grow", Duration::from_secs(60), || {
        ensure!(
            clone.is_running()?,
            "the clone ended too early: {}",
            clone.stderr()
        );
        Ok((size(copy) >= bytes).then_some(()))
    })
}

fn size(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(kind) if kind.is_dir() => size(&entry.path()),
        Ok(file) => file.len(),
        // Renamed meanwhile.
        Err(_) => 0,
    });
    sizes.sum()
}

/// Every object is whole, and the files are those of the source.
fn is_copy(it: &Deployment<'_>, source: &Path, copy: &Path) -> Result<()> {
    let at = copy.to_str().context("a path in UTF-8")?;
    let check = git("fsck", &["-C", at, "fsck", "--full", "--strict"]);
    it.lab().run(&it.net.con, check)?.success()?;
    for n in 0..8 {
        let file = format!("file{n}");
        ensure!(
            fs::read(source.join(&file))? == fs::read(copy.join(&file))?,
            "{file} differs"
        );
    }
    Ok(())
}
