//! The first ten minutes of a user: three machines, two of them behind address translation, and no inbound port.

use std::{
    fs,
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Begin, Deployment, Family, Namespace, Spec,
    deployment::{RELAY_PORT, loopback},
    pattern::{Pattern, Way},
    scene, servers,
    traffic::{PatternServer, Transfer},
};

const MIB: usize = 1 << 20;

#[test]
fn a_page_behind_one_translator_is_fetched_from_behind_another() {
    scene(Family::V4, |lab| {
        let (it, up) = Deployment::up(lab, Begin::Open)?;
        let files = it.lab().directory().join("files");
        fs::create_dir(&files)?;
        let page = Pattern::new(1, Way::Down).bytes(0, MIB);
        fs::write(files.join("page"), &page)?;
        let _http = servers::http(it.lab(), &it.net.prv, loopback(3000), &files)?;
        let exposed = it.provider.expose("3000", "web")?;
        let connected = it.consumer.connect("web", 8080)?;

        let got = files.join("got");
        let get = Spec::new("curl", "curl")
            .args(["-sS", "--fail", "http://127.0.0.1:8080/page", "-o"])
            .args([&got]);
        it.lab().run(&it.net.con, get)?.success()?;

        ensure!(fs::read(&got)? == page, "the page differs");
        no_way_in(&it)?;
        for node in [&up, &exposed, &connected] {
            node.without_complaints()?;
        }
        Ok(())
    });
}

/// The provider's machine listens at its loopback alone, and what its agent dials out from answers nobody else.
fn no_way_in(it: &Deployment<'_>) -> Result<()> {
    let provider = it.net.nat2.as_ref().context("nat2")?.inside.v4(41);
    let host_and_port = |address: &str| -> Result<(String, u16)> {
        let (host, port) = address.rsplit_once(':').context("a port")?;
        Ok((host.to_owned(), port.parse()?))
    };
    for line in it.net.prv.listeners()? {
        let local = line.split_whitespace().nth(4).context("a local address")?;
        let (host, port) = host_and_port(local)?;
        ensure!(host == "127.0.0.1" || host == "[::1]", "open: {line}");
        let at = SocketAddr::new(provider, port);
        ensure!(!is_open(&it.net.org, at)?, "a neighbour connects to {at}");
    }
    // Without `-l` all are connected: to the relay, over whichever transport was up first.
    let all = Spec::new("ss", "ss").args(["-Hntu"]);
    let all = it.lab().run(&it.net.prv, all)?;
    let mut dials = 0;
    for line in all.success()?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [kind, _, _, _, local, ..] = words[..] else {
            bail!("not a line of ss: {line}");
        };
        let (host, port) = host_and_port(local)?;
        if host == "127.0.0.1" {
            continue;
        }
        dials += 1;
        ensure!(port != RELAY_PORT, "the agent took a port that is known");
        let at = SocketAddr::new(provider, port);
        let is_taken = match kind {
            "udp" => answers(&it.net.org, at)?,
            _ => is_open(&it.net.org, at)?,
        };
        ensure!(!is_taken, "{at} answers a neighbour: {line}");
    }
    ensure!(dials > 0, "nothing dials out");
    Ok(())
}

fn is_open(from: &Namespace, at: SocketAddr) -> Result<bool> {
    let tried = from.enter(move || TcpStream::connect_timeout(&at, Duration::from_millis(500)))?;
    Ok(tried.is_ok())
}

/// Whether a UDP port takes up what looks like the start of a connection, or amplifies what it does not know.
fn answers(from: &Namespace, at: SocketAddr) -> Result<bool> {
    let socket = from.enter(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let mut initial = vec![0; 1_200];
    // RFC 9000 §17.2.2: a long header, type Initial, version 1, connection ids of eight bytes.
    initial[..6].copy_from_slice(&[0xc0, 0, 0, 0, 1, 8]);
    initial[14] = 8;
    // RFC 9000 §6: a version that nobody speaks, which a server answers.
    let mut unknown = initial.clone();
    unknown[1..5].copy_from_slice(&[0x1a, 0x2a, 0x3a, 0x4a]);
    for datagram in [&initial[..], &unknown, &[0x40; 60], &[]] {
        socket.send_to(datagram, at)?;
        let mut answer = [0; 1_500];
        // A refusal by the kernel (ICMP) is an error, and no answer.
        let Ok(size) = socket.recv(&mut answer) else {
            continue;
        };
        // RFC 9000 §10.3: what belongs to no connection may be answered by a stateless reset, which is shorter and has
        // a short header. A long header would be a handshake.
        if size >= datagram.len() || answer[0] & 0x80 != 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn both_directions_are_exact_and_each_ends_by_itself() {
    scene(Family::V4, |lab| {
        let (it, _up) = Deployment::up(lab, Begin::Open)?;
        let origin = PatternServer::start(&it.net.prv, loopback(7000))?;
        let _exposed = it.provider.expose("7000", "pattern")?;
        let _connected = it.consumer.connect("pattern", 8080)?;
        exact(&it, &origin, 1, [4 * MIB as u64; 2])?;
        // One direction ends long before the other: half-close, each way.
        exact(&it, &origin, 2, [0, MIB as u64])?;
        exact(&it, &origin, 3, [MIB as u64, 0])?;
        exact(&it, &origin, 4, [0, 0])
    });
}

/// Moves bytes up and down through the tunnel and compares both ends with what was sent.
pub(crate) fn exact(
    it: &Deployment<'_>,
    origin: &PatternServer,
    stream: u64,
    [up, down]: [u64; 2],
) -> Result<()> {
    let transfer = Transfer {
        up,
        down,
        ..Transfer::both_ways(stream, 0)
    };
    let got = transfer.run(&it.net.con, loopback(8080))?;
    ensure!(
        (got.bytes, got.sha256) == (down, Pattern::new(stream, Way::Down).sha256(down)),
        "down differs"
    );
    let got = origin.report(stream, Duration::from_secs(20))?;
    ensure!(
        (got.bytes, got.sha256) == (up, Pattern::new(stream, Way::Up).sha256(up)),
        "up differs"
    );
    Ok(())
}

#[test]
fn it_works_where_there_is_only_ipv6() {
    scene(Family::V6, |lab| {
        let (it, _up) = Deployment::up(lab, Begin::Open)?;
        let origin = PatternServer::start(&it.net.prv, loopback(7000))?;
        let _exposed = it.provider.expose("7000", "pattern")?;
        let _connected = it.consumer.connect("pattern", 8080)?;
        exact(&it, &origin, 1, [MIB as u64; 2])
    });
}
