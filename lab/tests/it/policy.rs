//! Who may open what, on a live system: closed without a rule, and cut within seconds when a rule is taken back.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Begin, Deployment, Family, Namespace, Node, Spec,
    deployment::loopback,
    say, scene,
    traffic::{PatternServer, Running, Transfer, TransferError},
    wait,
};

const MIB: u64 = 1 << 20;
/// What issue 2 promises for a cut.
const CUT: Duration = Duration::from_secs(5);
/// What issue 2 promises for a new rule, twice over: the machine is shared.
const RULE: Duration = Duration::from_secs(4);
/// What issue 2 promises for an open that no rule allows.
const REFUSED: Duration = Duration::from_millis(300);
const SOON: Duration = Duration::from_secs(10);

struct Scene {
    _origin: PatternServer,
    _exposed: Node,
    _connected: Node,
}

fn serving(it: &Deployment<'_>) -> Result<Scene> {
    Ok(Scene {
        _origin: PatternServer::start(&it.net.prv, loopback(7000))?,
        _exposed: it.provider.expose("7000", "web")?,
        _connected: it.consumer.connect("web", 8080)?,
    })
}

fn call(from: &Namespace, to: SocketAddr) -> Result<TcpStream> {
    let stream = from.enter(move || TcpStream::connect_timeout(&to, SOON))??;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

/// Opens and waits for what comes: the bytes and how it ended, and after how long.
fn refused(from: &Namespace) -> Result<(usize, Option<ErrorKind>, Duration)> {
    let began = Instant::now();
    let (mut bytes, to) = (Vec::new(), loopback(8080));
    // The reset may be there before the connecting call has looked.
    let end = match from.enter(move || TcpStream::connect_timeout(&to, SOON))? {
        Ok(mut stream) => {
            stream.set_read_timeout(Some(SOON))?;
            stream.read_to_end(&mut bytes).err()
        }
        Err(error) => Some(error),
    };
    Ok((bytes.len(), end.map(|error| error.kind()), began.elapsed()))
}

fn small(it: &Deployment<'_>, stream: u64) -> Result<(), TransferError> {
    let running = Transfer::both_ways(stream, 1_000).start(&it.net.con, loopback(8080));
    let running = running.map_err(|_| TransferError::Broken)?;
    running.finish().map(drop)
}

/// A transfer that goes on for long, and has begun.
fn live(it: &Deployment<'_>, stream: u64) -> Result<Running> {
    let running = Transfer::both_ways(stream, 64 * MIB)
        .paced(MIB)
        .start(&it.net.con, loopback(8080))?;
    running.wait_for(10_000, SOON)?;
    Ok(running)
}

/// Waits until a live transfer is cut, which must not look like an end.
fn cut(running: Running, since: Instant, what: &str) -> Result<()> {
    let error = running.finish().err().context("it was never cut")?;
    let after = since.elapsed();
    say(&format!("{what}: cut after {after:?}: {error}"));
    let is_reset = matches!(
        error,
        TransferError::Cut {
            kind: ErrorKind::ConnectionReset,
            ..
        }
    );
    ensure!(is_reset, "{what}: the client saw `{error}`, not a reset");
    ensure!(after <= CUT, "{what}: {after:?}");
    Ok(())
}

#[test]
fn without_a_rule_nothing_opens_and_a_rule_and_its_end_take_effect_at_once() {
    scene(Family::V4, |lab| {
        let (it, _up) = Deployment::up(lab, Begin::Closed)?;
        let _origin = PatternServer::start(&it.net.prv, loopback(7000))?;
        let _exposed = it.provider.expose("7000", "web")?;
        says_why(&it, &["connect", "web", "--stdio"])?;
        says_why(&it, &["connect", "web", "--listen", "8080"])?;

        let rule = it.admin.ask("policy allow cons web")?;
        let since = Instant::now();
        let connected = wait::until("the rule to be known", RULE, || {
            Ok(it.consumer.connect("web", 8080).ok())
        })?;
        wait::until("the rule to work", RULE, || Ok(small(&it, 1).ok()))?;
        say(&format!(
            "allowed after {:?}, a new listener and all",
            since.elapsed()
        ));
        let running = live(&it, 2)?;
        it.admin.ask("policy deny cons web")?;
        cut(running, Instant::now(), "a deny beside the allow")?;
        closed_at_once(&it)?;

        // The deny goes, the allow works again; then the allow goes too.
        let deny = rule_id(&it.admin.ask("policy list")?, "deny")?;
        it.admin.ask(&format!("policy remove {deny}"))?;
        wait::until("the allow to work again", RULE, || Ok(small(&it, 4).ok()))?;
        let running = live(&it, 5)?;
        let allow = rule.split([' ', ':']).nth(2).context("the rule's id")?;
        it.admin.ask(&format!("policy remove {allow}"))?;
        cut(running, Instant::now(), "the allow removed")?;
        closed_at_once(&it)?;
        connected.without_complaints()
    });
}

fn rule_id(listed: &str, effect: &str) -> Result<String> {
    let mut lines = listed.lines().map(|line| line.split_whitespace());
    let id = lines.find_map(|mut words| {
        let id = words.next()?;
        (words.next() == Some(effect)).then(|| id.to_owned())
    });
    id.with_context(|| format!("no {effect} in\n{listed}"))
}

/// A listener takes each connection, and ends it by reset without a byte and without delay.
fn closed_at_once(it: &Deployment<'_>) -> Result<()> {
    // The middle one of so many is not the one that the machine held up.
    const OPENS: usize = 21;
    let mut all = Vec::new();
    for _ in 0..OPENS {
        let (bytes, end, took) = refused(&it.net.con)?;
        ensure!(bytes == 0, "the refusal sent {bytes} bytes");
        ensure!(end == Some(ErrorKind::ConnectionReset), "ended by {end:?}");
        all.push(took);
    }
    all.sort();
    let middle = all[OPENS / 2];
    let most = all[OPENS - 1];
    say(&format!(
        "{OPENS} opens refused: median {middle:?}, most {most:?}"
    ));
    ensure!(middle < REFUSED, "median {middle:?}");
    let ask = Spec::new("nc", "nc").args(["-N", "-w", "5", "127.0.0.1", "8080"]);
    let ended = it.lab().run(&it.net.con, ask.input("hello\n"))?;
    ensure!(ended.stdout.is_empty(), "nc saw `{}`", ended.stdout);
    Ok(())
}

/// A verb that policy refuses says so, with the next step, by the exit code for scripts.
fn says_why(it: &Deployment<'_>, arguments: &[&str]) -> Result<()> {
    let began = Instant::now();
    let ended = it.consumer.run("denied", arguments)?;
    say(&format!(
        "{arguments:?} refused in {:?}, session and all",
        began.elapsed()
    ));
    ensure!(ended.status.code() == Some(3), "{}", ended.status);
    ensure!(ended.stdout.is_empty(), "stdout: {}", ended.stdout);
    ensure!(
        ended.stderr.contains("POLICY_DENIED") && ended.stderr.contains("hint:"),
        "stderr: {}",
        ended.stderr
    );
    Ok(())
}

#[test]
fn a_revoked_caller_is_cut_by_reset_and_opens_nothing_more() {
    scene(Family::V4, |lab| {
        let (it, up) = Deployment::up(lab, Begin::Open)?;
        let scene = serving(&it)?;
        let running = live(&it, 1)?;
        // And one where nothing moves: the cut must not wait for the next byte.
        let mut idle = call(&it.net.con, loopback(8080))?;
        idle.write_all(b"SL")?;
        it.admin.ask("agent revoke cons")?;
        let since = Instant::now();
        cut(running, since, "the caller revoked")?;
        let end = idle.read(&mut [0; 1]);
        let kind = end.as_ref().err().map(std::io::Error::kind);
        say(&format!(
            "an idle stream: {kind:?} after {:?}",
            since.elapsed()
        ));
        ensure!(kind == Some(ErrorKind::ConnectionReset), "{end:?}");
        ensure!(since.elapsed() <= CUT);
        ensure!(small(&it, 2).is_err(), "a revoked caller opens");
        let (bytes, end, took) = refused(&it.net.con)?;
        say(&format!("an open of the revoked: {end:?} after {took:?}"));
        ensure!(bytes == 0 && end == Some(ErrorKind::ConnectionReset));
        ensure!(took < Duration::from_secs(1), "{took:?}");
        // By another process too, with the key and the certificate that are still on its disk.
        let began = Instant::now();
        let ended = it.consumer.run("stdio", ["connect", "web", "--stdio"])?;
        say(&format!(
            "--stdio of the revoked: {} after {:?}: {}",
            ended.status,
            began.elapsed(),
            ended.stderr
        ));
        ensure!(matches!(ended.status.code(), Some(3)), "{}", ended.status);
        up.without_complaints()?;
        drop(scene);
        Ok(())
    });
}

#[test]
fn a_revoked_provider_is_cut_by_reset_and_serves_nobody() {
    scene(Family::V4, |lab| {
        let (it, _up) = Deployment::up(lab, Begin::Open)?;
        let _scene = serving(&it)?;
        let running = live(&it, 1)?;
        it.admin.ask("agent revoke prov")?;
        cut(running, Instant::now(), "the provider revoked")?;
        let (bytes, end, took) = refused(&it.net.con)?;
        say(&format!("without a provider: {end:?} after {took:?}"));
        ensure!(bytes == 0 && end == Some(ErrorKind::ConnectionReset));
        Ok(())
    });
}
