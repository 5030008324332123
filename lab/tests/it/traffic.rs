//! Transfers: right ones pass, and each way of going wrong is called by its name.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Result, ensure};
use lab::{
    Bridge, Family, Namespace, Topology,
    pattern::{Damage, Pattern, Way},
    scene,
    traffic::{PatternServer, StallRule, Transfer, TransferError},
};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(5);

struct Net {
    ix: Bridge,
    client: Namespace,
    server: Namespace,
}

fn net(lab: &mut Topology) -> Result<Net> {
    let ix = lab.bridge("ix")?;
    Ok(Net {
        client: lab.host("client", &ix, 1)?,
        server: lab.host("server", &ix, 2)?,
        ix,
    })
}

#[test]
fn both_directions_arrive_exactly_and_at_both_ends() {
    scene(Family::V4, |lab| {
        let net = net(lab)?;
        let server = PatternServer::start(&net.server, SocketAddr::new(net.ix.v4(2), 7000))?;
        for (stream, up, down) in [
            (1, 4 * MIB, 4 * MIB),
            (2, 0, 12_345),
            (3, 12_345, 0),
            (4, 0, 0),
        ] {
            let transfer = Transfer {
                up,
                down,
                ..Transfer::both_ways(stream, 0)
            };
            let got = transfer.run(&net.client, server.address())?;
            assert_eq!(
                (got.bytes, got.sha256),
                (down, Pattern::new(stream, Way::Down).sha256(down))
            );
            let got = server.report(stream, SOON)?;
            assert_eq!(
                (got.bytes, got.sha256),
                (up, Pattern::new(stream, Way::Up).sha256(up))
            );
        }
        Ok(())
    });
}

#[test]
fn a_pace_is_kept_and_an_outage_shows_as_a_gap() {
    scene(Family::V4, |lab| {
        let net = net(lab)?;
        let server = PatternServer::start(&net.server, SocketAddr::new(net.ix.v4(2), 7000))?;
        let transfer = Transfer::both_ways(1, MIB / 2).paced(MIB / 2);
        let running = transfer.start(&net.client, server.address())?;
        running.wait_for(MIB / 8, SOON)?;
        let fault = net.ix.part(net.ix.v4(1), net.ix.v4(2))?;
        lab::wait::pause(Duration::from_millis(400));
        fault.heal();
        let got = running.finish()?;
        ensure!(
            got.took >= Duration::from_millis(900),
            "took {:?}",
            got.took
        );
        ensure!(
            got.longest_gap >= Duration::from_millis(350),
            "gap {:?}",
            got.longest_gap
        );
        Ok(())
    });
}

/// Runs a transfer of 64 KiB down against a server that answers in its own way.
fn against(
    lab: &mut Topology,
    answer: impl FnOnce(TcpStream) -> std::io::Result<()> + Send + 'static,
) -> Result<Option<TransferError>> {
    let net = net(lab)?;
    let to = SocketAddr::new(net.ix.v4(2), 7000);
    let listener = net.server.enter(move || TcpListener::bind(to))??;
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        // The head and the end mark of the empty upload: nothing is unread that could turn a close into a reset.
        stream.read_to_end(&mut Vec::new())?;
        answer(stream)
    });
    let transfer = Transfer {
        up: 0,
        down: 64 * 1024,
        stall: StallRule {
            bytes: 1,
            within: Duration::from_millis(500),
        },
        ..Transfer::both_ways(1, 0)
    };
    let result = transfer.start(&net.client, to)?.finish();
    ensure!(
        answering.join().is_ok_and(|answered| answered.is_ok()),
        "the server of the test failed"
    );
    Ok(result.err())
}

fn right(length: usize) -> Vec<u8> {
    Pattern::new(1, Way::Down).bytes(0, length)
}

#[test]
fn a_clean_end_too_early_is_not_a_cut() {
    scene(Family::V4, |lab| {
        let error = against(lab, |mut stream| stream.write_all(&right(1_000)))?;
        let wanted = 64 * 1024;
        assert_eq!(error, Some(TransferError::Short { at: 1_000, wanted }));
        Ok(())
    });
}

#[test]
fn a_reset_is_a_cut() {
    scene(Family::V4, |lab| {
        let net = net(lab)?;
        // A process, killed in the middle with unread bytes: the kernel resets what it leaves.
        let to = SocketAddr::new(net.ix.v4(2), 7000);
        let spec = lab::Spec::new("nc", "nc").args(["-l", &to.ip().to_string(), "7000"]);
        let mut peer = lab.start(&net.server, spec.open_input())?;
        lab::wait::until("nc to listen", SOON, || {
            Ok((!net.server.listeners()?.is_empty()).then_some(()))
        })?;
        let mut input = peer.take_input().expect("an open input");
        let running = Transfer::both_ways(1, 64 * MIB)
            .paced(MIB)
            .start(&net.client, to)?;
        input.write_all(&right(5_000))?;
        running.wait_for(5_000, SOON)?;
        peer.freeze()?;
        // It reads no more, so that bytes are waiting when it dies.
        lab::wait::pause(Duration::from_millis(250));
        peer.kill()?;
        let error = running.finish().err();
        ensure!(
            matches!(error, Some(TransferError::Cut { at: 5_000, .. })),
            "{error:?}"
        );
        Ok(())
    });
}

#[test]
fn silence_is_a_stall() {
    scene(Family::V4, |lab| {
        let error = against(lab, |mut stream| {
            stream.write_all(&right(10))?;
            // Until the client gives up.
            stream
                .read(&mut [0; 1])
                .map(|_| lab::wait::pause(Duration::from_millis(700)))
        })?;
        assert_eq!(error, Some(TransferError::Stalled { at: 10 }));
        Ok(())
    });
}

#[test]
fn wrong_bytes_are_damage_even_when_their_number_is_right() {
    scene(Family::V4, |lab| {
        let error = against(lab, |mut stream| {
            let mut bytes = right(64 * 1024);
            bytes[2_000..3_000].rotate_left(500);
            stream.write_all(&bytes)
        })?;
        let damage = Damage::Reordered {
            at: 2_000,
            from: 2_500,
        };
        assert_eq!(error, Some(TransferError::Damaged(damage)));
        Ok(())
    });
}

#[test]
fn too_much_and_nobody_there_are_named() {
    scene(Family::V4, |lab| {
        let error = against(lab, |mut stream| {
            stream.write_all(&right(64 * 1024 + 1))?;
            stream.shutdown(Shutdown::Write)
        })?;
        assert_eq!(error, Some(TransferError::Long { wanted: 64 * 1024 }));
        Ok(())
    });
    scene(Family::V4, |lab| {
        let net = net(lab)?;
        let error = Transfer::both_ways(1, 1)
            .start(&net.client, SocketAddr::new(net.ix.v4(2), 7000))?
            .finish()
            .err();
        assert_eq!(
            error,
            Some(TransferError::NotConnected(
                std::io::ErrorKind::ConnectionRefused
            ))
        );
        Ok(())
    });
}
