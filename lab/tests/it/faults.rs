//! Faults: each loses what it says and nothing else, and heals.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Result, ensure};
use lab::{Bridge, Family, Namespace, Topology, faults::Traffic, scene};

const PORT: u16 = 7000;

struct Pair {
    ix: Bridge,
    one: Namespace,
    other: Namespace,
}

fn pair(lab: &mut Topology) -> Result<Pair> {
    let ix = lab.bridge("ix")?;
    Ok(Pair {
        one: lab.host("one", &ix, 1)?,
        other: lab.host("other", &ix, 2)?,
        ix,
    })
}

/// Sends datagrams and counts those that arrive.
fn arrived(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    port: u16,
    count: usize,
) -> Result<usize> {
    let to_address = SocketAddr::new(address, port);
    let receiver = to.enter(move || UdpSocket::bind(to_address))??;
    let any: IpAddr = if address.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    let sender = from.enter(move || UdpSocket::bind((any, 0)))??;
    for number in 0..count {
        sender.send_to(&number.to_be_bytes(), to_address)?;
    }
    receiver.set_read_timeout(Some(Duration::from_millis(300)))?;
    let mut seen = 0;
    while seen < count && receiver.recv(&mut [0; 64]).is_ok() {
        seen += 1;
    }
    Ok(seen)
}

#[test]
fn parted_hosts_hear_nothing_of_each_other_until_healed() {
    scene(Family::Both, |lab| {
        let Pair { ix, one, other } = pair(lab)?;
        for (first, second) in [(ix.v4(1), ix.v4(2)), (ix.v6(1), ix.v6(2))] {
            assert_eq!(arrived(&one, &other, second, PORT, 5)?, 5);
            let fault = ix.part(first, second)?;
            assert_eq!(arrived(&one, &other, second, PORT, 5)?, 0);
            assert_eq!(arrived(&other, &one, first, PORT, 5)?, 0);
            ensure!(fault.lost()? >= 10, "{} lost", fault.lost()?);
            fault.heal();
            assert_eq!(arrived(&one, &other, second, PORT, 5)?, 5);
        }
        Ok(())
    });
}

#[test]
fn one_way_and_one_port_can_be_lost_alone() {
    scene(Family::V4, |lab| {
        let Pair { ix, one, other } = pair(lab)?;
        let fault = ix.lose(Traffic::any().from(ix.v4(1)).to(ix.v4(2)))?;
        assert_eq!(arrived(&one, &other, ix.v4(2), PORT, 5)?, 0);
        // The answer to the question for an address needs both ways only below IP, which always passes.
        assert_eq!(arrived(&other, &one, ix.v4(1), PORT, 5)?, 5);
        fault.heal();
        let fault = ix.lose(Traffic::any().udp_port(PORT))?;
        assert_eq!(arrived(&one, &other, ix.v4(2), PORT, 5)?, 0);
        assert_eq!(arrived(&one, &other, ix.v4(2), PORT + 1, 5)?, 5);
        fault.heal();
        let fault = ix.lose(Traffic::any().tcp_port(PORT))?;
        assert_eq!(arrived(&one, &other, ix.v4(2), PORT, 5)?, 5);
        fault.heal();
        let _fault = ix.lose(Traffic::any().udp())?;
        assert_eq!(arrived(&one, &other, ix.v4(2), PORT, 5)?, 0);
        Ok(())
    });
}

#[test]
fn every_nth_packet_is_lost_exactly() {
    scene(Family::V4, |lab| {
        let Pair { ix, one, other } = pair(lab)?;
        let fault = ix.lose_every(Traffic::any().udp(), 5)?;
        assert_eq!(arrived(&one, &other, ix.v4(2), PORT, 100)?, 80);
        assert_eq!(fault.lost()?, 20);
        Ok(())
    });
}

#[test]
fn random_loss_is_near_its_rate() {
    scene(Family::V4, |lab| {
        let Pair { ix, one, other } = pair(lab)?;
        let _fault = ix.lose_random(Traffic::any().udp(), 300)?;
        // Ten standard deviations around 700 of 1 000: a failure is a defect, not chance. The socket's buffer
        // holds about 270 small datagrams, so they go in five parts.
        let mut seen = 0;
        for _ in 0..5 {
            seen += arrived(&one, &other, ix.v4(2), PORT, 200)?;
        }
        ensure!((555..=845).contains(&seen), "{seen} of 1000 arrived");
        Ok(())
    });
}

#[test]
fn an_unplugged_host_is_alone_until_plugged_in() {
    scene(Family::V4, |lab| {
        let Pair { ix, one, other } = pair(lab)?;
        assert_eq!(arrived(&one, &other, ix.v4(2), PORT, 5)?, 5);
        let fault = ix.unplug(&other)?;
        ensure!(
            !matches!(arrived(&one, &other, ix.v4(2), PORT, 5), Ok(1..)),
            "the cable still carries"
        );
        assert!(fault.lost().is_err());
        fault.heal();
        lab::wait::until("the link", Duration::from_secs(5), || {
            Ok((arrived(&one, &other, ix.v4(2), PORT, 1)? == 1).then_some(()))
        })
    });
}
