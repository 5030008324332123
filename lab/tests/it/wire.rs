//! The wire measured: real packets between two hosts suffer what was asked for, and nothing else.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{
    Bridge, Family, Namespace, Topology, say, scene,
    traffic::{PatternServer, Transfer},
    wait,
    wire::{Wire, lane::Heading},
};

const PORT: u16 = 7000;
// A datagram answered on the same machine takes 0.2 ms; the rest is for its other users.
const SLACK: Duration = Duration::from_millis(15);
const MIB: u64 = 1 << 20;

struct Wired {
    ix: Bridge,
    one: Namespace,
    other: Namespace,
    wire: Wire,
}

fn wired(lab: &mut Topology, script: &str) -> Result<Wired> {
    let ix = lab.bridge("ix")?;
    let one = lab.host("one", &ix, 1)?;
    let other = lab.host("other", &ix, 2)?;
    let wire = lab.rewire(&one, &ix, 1, script)?;
    Ok(Wired {
        ix,
        one,
        other,
        wire,
    })
}

impl Wired {
    /// A socket at each end that hears the other.
    fn sockets(&self) -> Result<[UdpSocket; 2]> {
        let ends = [(&self.one, self.ix.v4(1)), (&self.other, self.ix.v4(2))];
        let [near, far] = ends.map(|(namespace, ip)| -> Result<UdpSocket> {
            let at = SocketAddr::new(ip, PORT);
            let socket = namespace.enter(move || UdpSocket::bind(at))??;
            socket.set_read_timeout(Some(Duration::from_millis(150)))?;
            Ok(socket)
        });
        let [near, far] = [near?, far?];
        near.connect((self.ix.v4(2), PORT))?;
        far.connect((self.ix.v4(1), PORT))?;
        Ok([near, far])
    }
}

/// Numbered datagrams one way, a few at a time so that no buffer of a socket is full; returns the numbers that came.
fn cross(from: &UdpSocket, to: &UdpSocket, count: u64) -> Result<Vec<u64>> {
    let mut got = Vec::new();
    for first in (0..count).step_by(100) {
        for number in first..(first + 100).min(count) {
            from.send(&number.to_be_bytes())?;
        }
        let mut bytes = [0; 8];
        // What is on the way takes far less than a socket waits here.
        while to.recv(&mut bytes).is_ok() {
            got.push(u64::from_be_bytes(bytes));
        }
    }
    Ok(got)
}

/// The shortest way there and back of several: what is longer is the machine's doing.
fn round_trip(near: &UdpSocket, far: &UdpSocket) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let began = Instant::now();
        near.send(b"there")?;
        far.recv(&mut [0; 16])?;
        far.send(b"back")?;
        near.recv(&mut [0; 16])?;
        best = best.min(began.elapsed());
    }
    Ok(best)
}

#[test]
fn delay_loss_order_and_copies_are_as_asked() {
    scene(Family::V4, |lab| {
        let mut it = wired(lab, "there delay 40ms, back delay 10ms")?;
        let [near, far] = it.sockets()?;
        let took = round_trip(&near, &far)?;
        say(&format!("50 ms asked, {took:?} measured"));
        ensure!(took >= Duration::from_millis(50) && took < Duration::from_millis(50) + SLACK);

        it.wire.change("clear, there loss 20")?;
        let before = it.wire.counts(Heading::There)?;
        let got = cross(&near, &far, 1_000)?.len();
        let lost = it.wire.counts(Heading::There)?["lost"] - before["lost"];
        say(&format!("20 % asked, {lost} of 1000 lost, {got} arrived"));
        // Six standard deviations around 200 are 76; with this seed it is always the same number.
        ensure!((124..=276).contains(&lost), "{lost} lost");
        ensure!(got as u64 + lost == 1_000, "{got} arrived, {lost} lost");
        ensure!(
            cross(&far, &near, 100)?.len() == 100,
            "the way back is whole"
        );

        it.wire.change("clear, reorder 10 2ms, duplicate 10")?;
        let got = cross(&near, &far, 500)?;
        let mut highest = 0;
        let mut late = 0;
        for number in &got {
            late += usize::from(*number < highest);
            highest = highest.max(*number);
        }
        say(&format!("{late} came late, {} came", got.len()));
        ensure!((25..=150).contains(&late) && (520..=600).contains(&got.len()));
        Ok(())
    });
}

#[test]
fn a_flipped_bit_is_dropped_by_the_kernel_unless_its_checksum_fits() {
    scene(Family::V4, |lab| {
        let mut it = wired(lab, "corrupt 100")?;
        let [near, far] = it.sockets()?;
        ensure!(
            cross(&near, &far, 20)?.is_empty(),
            "a wrong checksum passed"
        );
        it.wire.change("clear, forge 100")?;
        let got = cross(&near, &far, 20)?;
        ensure!(got.len() == 20, "{} arrived", got.len());
        let right = (0..20).filter(|number| got.contains(number)).count();
        ensure!(right < 20, "every number arrived as it was sent");
        let counts = it.wire.counts(Heading::There)?;
        ensure!(
            counts["corrupted"] == 20 && counts["forged"] == 20,
            "{counts:?}"
        );
        Ok(())
    });
}

#[test]
fn a_rate_is_kept_and_a_script_runs_to_its_times() {
    scene(Family::V4, |lab| {
        let mut it = wired(lab, "back rate 16mbit")?;
        let server = PatternServer::start(&it.other, SocketAddr::new(it.ix.v4(2), PORT))?;
        let transfer = Transfer {
            up: 0,
            ..Transfer::both_ways(1, 4 * MIB)
        };
        let got = transfer.run(&it.one, server.address())?;
        let rate = 4.0 * 8.0 * 1.048_576 / got.took.as_secs_f64();
        say(&format!(
            "16 Mbit/s asked, {rate:.1} Mbit/s of payload measured"
        ));
        ensure!((11.0..16.0).contains(&rate), "{rate:.1} Mbit/s");
        drop(server);

        it.wire.change("clear")?;
        let [near, far] = it.sockets()?;
        let began = Instant::now();
        it.wire.change("t=500ms there down, t=1500ms up")?;
        ensure!(cross(&near, &far, 1)?.len() == 1, "down before its time");
        wait::pause(Duration::from_millis(700).saturating_sub(began.elapsed()));
        near.send(b"lost")?;
        ensure!(
            far.recv(&mut [0; 16]).is_err(),
            "it passed a wire that is down"
        );
        ensure!(
            cross(&far, &near, 1)?.len() == 1,
            "the way back was cut too"
        );
        wait::until("the wire to be up", Duration::from_secs(5), || {
            near.send(b"again")?;
            Ok(far.recv(&mut [0; 16]).ok())
        })?;
        let up = began.elapsed();
        ensure!(up >= Duration::from_millis(1_500), "up after {up:?}");
        ensure!(it.wire.counts(Heading::There)?.get("cut").context("cut")? >= &1);
        Ok(())
    });
}

#[test]
fn a_tcp_transfer_over_a_bad_wire_is_slow_and_right() {
    scene(Family::Both, |lab| {
        let it = wired(
            lab,
            "delay 5ms, jitter 5ms, burst 0.5 30, reorder 2 5ms, duplicate 2, corrupt 1",
        )?;
        for ip in [it.ix.v4(2), it.ix.v6(2)] {
            let server = PatternServer::start(&it.other, SocketAddr::new(ip, PORT))?;
            let got = Transfer::both_ways(1, MIB).run(&it.one, server.address())?;
            ensure!(got.bytes == MIB);
            server.report(1, Duration::from_secs(20))?;
        }
        Ok(())
    });
}
