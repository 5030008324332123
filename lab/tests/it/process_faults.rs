//! Programs that die: what the applications at both ends see, and what comes back by itself.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Begin, Deployment, Family, Node,
    deployment::loopback,
    say, scene,
    traffic::{PatternServer, Running, Transfer, TransferError},
    wait,
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(20);
/// The end of a process shows at its own sockets at once; this is for the machine.
const RESET: Duration = Duration::from_secs(2);
/// How long a relay may wait for a peer that has gone silent, and as long again for the machine.
const SILENCE: Duration = Duration::from_secs(30);

/// A transfer that goes on for long, and has begun.
pub(crate) fn live(it: &Deployment<'_>, stream: u64) -> Result<Running> {
    let running = Transfer::both_ways(stream, 256 * MIB)
        .paced(MIB / 2)
        .start(&it.net.con, loopback(8080))?;
    running.wait_for(20_000, SOON)?;
    Ok(running)
}

/// Waits until a live transfer ends by reset; anything else is wrong, above all a clean end.
pub(crate) fn reset(running: Running, since: Instant, what: &str) -> Result<Duration> {
    let error = running.finish().err().context("it was never cut")?;
    let after = since.elapsed();
    say(&format!("{what}: the client saw `{error}` after {after:?}"));
    ensure!(
        matches!(
            error,
            TransferError::Cut {
                kind: ErrorKind::ConnectionReset,
                ..
            }
        ),
        "{what}: the client saw `{error}`, not a reset"
    );
    Ok(after)
}

/// A short transfer through the consumer's port.
pub(crate) fn small(it: &Deployment<'_>, stream: u64) -> Result<(), TransferError> {
    let running = Transfer::both_ways(stream, 10_000).start(&it.net.con, loopback(8080));
    let running = running.map_err(|_| TransferError::Broken)?;
    running.finish().map(drop)
}

/// Waits until transfers work, and says how long that took. Every attempt is a stream of its own.
pub(crate) fn works(it: &Deployment<'_>, first: u64, what: &str) -> Result<Duration> {
    let since = Instant::now();
    let mut stream = first;
    wait::until(what, SOON, || {
        stream += 1;
        Ok(small(it, stream).ok())
    })?;
    say(&format!("{what}: after {:?}", since.elapsed()));
    Ok(since.elapsed())
}

struct Ends {
    origin: PatternServer,
    exposed: Node,
    connected: Node,
}

fn ends(it: &Deployment<'_>) -> Result<Ends> {
    Ok(Ends {
        origin: PatternServer::start(&it.net.prv, loopback(7000))?,
        exposed: it.provider.expose("7000", "web")?,
        connected: it.consumer.connect("web", 8080)?,
    })
}

/// F05 and F07.
#[test]
fn an_agent_that_is_killed_resets_what_it_carried_and_never_ends_it_cleanly() {
    scene(Family::V4, |lab| {
        let (it, up) = Deployment::up(lab, Begin::Open)?;
        let it = it.over_quic();
        let mut ends = ends(&it)?;
        let running = live(&it, 1)?;
        let mut idle = it.net.con.enter(|| TcpStream::connect(loopback(8080)))??;
        idle.write_all(b"SL")?;
        idle.set_read_timeout(Some(SOON))?;
        ends.connected.kill()?;
        let since = Instant::now();
        let after = reset(running, since, "F05, consumer killed")?;
        ensure!(after <= RESET, "{after:?}");
        let end = idle.read(&mut [0; 1]).map_err(|error| error.kind());
        ensure!(end == Err(ErrorKind::ConnectionReset), "idle: {end:?}");
        let theirs = ends.origin.report(1, SILENCE);
        let text = format!("{:#}", theirs.err().context("the origin saw a clean end")?);
        say(&format!(
            "F05: the origin saw `{text}` after {:?}",
            since.elapsed()
        ));
        ensure!(text.contains("cut after"), "the origin saw `{text}`");

        ends.connected = it.consumer.connect("web", 8080)?;
        let running = live(&it, 2)?;
        ends.exposed.kill()?;
        let after = reset(running, Instant::now(), "F07, provider killed")?;
        ensure!(after <= SILENCE, "{after:?}");
        // What comes back is there at once: the new process does not wait for the old one's end.
        ends.exposed = it.provider.expose("7000", "web")?;
        works(&it, 10, "a provider started again serves")?;
        for node in [&up, &ends.exposed, &ends.connected] {
            node.without_complaints()?;
        }
        Ok(())
    });
}

/// How one end leaves a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// Its direction ends, in order.
    End,
    /// It closes with bytes unread, which the kernel tells as a reset.
    Reset,
}

/// F09: what an origin or a client does at the end is what the other sees.
#[test]
fn an_end_arrives_as_an_end_and_a_reset_as_a_reset_each_way() {
    scene(Family::V4, |lab| {
        let (it, _up) = Deployment::up(lab, Begin::Open)?;
        let listener = it.net.prv.enter(|| TcpListener::bind(loopback(7000)))??;
        let _exposed = it.provider.expose("7000", "web")?;
        let _connected = it.consumer.connect("web", 8080)?;
        for leave in [Leave::End, Leave::Reset] {
            for bytes in [0, 1, 70_000] {
                for by_origin in [true, false] {
                    let case = format!("{leave:?} after {bytes} bytes, by the origin: {by_origin}");
                    let client = it.net.con.enter(|| TcpStream::connect(loopback(8080)))??;
                    let (origin, _) = listener.accept()?;
                    let (leaves, stays) = if by_origin {
                        (origin, client)
                    } else {
                        (client, origin)
                    };
                    leave_and_look(leaves, stays, leave, bytes).context(case)?;
                }
            }
        }
        Ok(())
    });
}

fn leave_and_look(
    mut leaves: TcpStream,
    mut stays: TcpStream,
    leave: Leave,
    bytes: usize,
) -> Result<()> {
    leaves.set_read_timeout(Some(SOON))?;
    stays.set_read_timeout(Some(SOON))?;
    stays.write_all(b"unread")?;
    leaves.peek(&mut [0; 1])?;
    leaves.write_all(&vec![9; bytes])?;
    // All of it arrives before the end does, so that a reset cannot overtake what is looked for.
    let mut got = vec![0; bytes];
    stays.read_exact(&mut got).context("the bytes")?;
    if leave == Leave::End {
        leaves.read_exact(&mut [0; 6])?;
    }
    drop(leaves);
    let end = stays.read(&mut [0; 1]).map_err(|error| error.kind());
    let wanted = match leave {
        Leave::End => Ok(0),
        Leave::Reset => Err(ErrorKind::ConnectionReset),
    };
    ensure!(end == wanted, "the other end saw {end:?}, not {wanted:?}");
    Ok(())
}

/// F11 and the relay's part of F01: all that is known keeps working with the controller away, also after the relay died.
#[test]
fn without_a_controller_everything_known_keeps_opening_even_when_the_relay_dies_too() {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::split(lab)?;
        let ends = ends(&it)?;
        let late = it.token()?;
        let running = live(&it, 1)?;
        roles.controller.kill()?;
        small(&it, 2).context("an open without the controller")?;
        says_the_controller_is_away(&it)?;
        ensure!(running.received() > 0);
        let since = Instant::now();
        let join = it
            .public
            .run("join-late", ["join", &late, "--name", "late"])?;
        say(&format!(
            "a join without the controller: {} after {:?}: {}",
            join.status,
            since.elapsed(),
            join.stderr
        ));
        ensure!(!join.status.success());

        roles.relay.kill()?;
        let since = Instant::now();
        // The controller is away, so all that the relay knows is on its disk.
        roles.relay = it.start_relay(&[])?;
        works(
            &it,
            10,
            "opens after the relay was killed and started again",
        )?;
        say(&format!(
            "from the relay's end to an open: {:?}",
            since.elapsed()
        ));
        let before = running.received();
        wait::until("the live stream to go on", SOON, || {
            Ok((running.received() > before).then_some(()))
        })?;

        roles.controller = it.start_controller()?;
        let rule = it.admin.ask("policy deny cons web")?;
        say(&format!("after the controller's return: {rule}"));
        let since = Instant::now();
        wait::until("the deny to work", SOON, || Ok(small(&it, 50).err()))?;
        say(&format!(
            "a rule of the returned controller works after {:?}",
            since.elapsed()
        ));
        roles.relay.without_complaints()?;
        ends.exposed.without_complaints()?;
        ends.connected.without_complaints()
    });
}

fn says_the_controller_is_away(it: &Deployment<'_>) -> Result<()> {
    let agent = it.provider.ask("status")?;
    say(&format!("status of an agent:\n{agent}"));
    ensure!(agent.contains("offered") && agent.contains("up"), "{agent}");
    let ended = it.admin.run("status", ["status"])?;
    say(&format!(
        "status beside the dead controller: {} {}",
        ended.status, ended.stderr
    ));
    ensure!(!ended.status.success() && ended.stderr.contains("hint:"));
    Ok(())
}

/// A relay that is stopped in order: its agents are back as soon as it is.
#[test]
fn agents_come_back_by_themselves_when_the_relay_was_restarted_in_order() {
    scene(Family::V4, |lab| {
        let (it, mut roles) = Deployment::split(lab)?;
        let _ends = ends(&it)?;
        works(&it, 1, "opens before")?;
        let ended = roles.relay.terminate(SOON)?;
        ensure!(ended.success(), "{ended}");
        // Long enough for the agents to find nobody there.
        wait::pause(Duration::from_millis(700));
        roles.relay = it.start_relay(&[])?;
        let after = works(&it, 10, "opens after the relay's orderly restart")?;
        ensure!(after < Duration::from_secs(15), "{after:?}");
        Ok(())
    });
}
