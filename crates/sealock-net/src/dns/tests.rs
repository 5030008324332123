//! The desk over real sockets, with a resolver of the test's own behind it.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use sealock_core::name::ServiceName;
use sealock_proto::dns::server::{Naming, ZONE};
use sealock_proto::dns::vip::{Found as Place, Vips};
use sealock_proto::dns::wire::kind;
use tokio::net::{TcpListener, UdpSocket};
use tokio::process::Command;

use super::hostile::Resolver;
use super::*;
use crate::task::Scope;

/// Names below `example` are allowed, all services are, and addresses beside loopback.
pub(super) struct Allowing(pub(super) Vips);

impl World for Allowing {
    fn allows_service(&self, _: &ServiceName) -> bool {
        true
    }
    fn find(&self, name: &ServiceName) -> Place {
        self.0.find(Instant::now(), name)
    }
    fn service_at(&self, address: IpAddr) -> Option<ServiceName> {
        self.0.service_at(Instant::now(), address).cloned()
    }
    fn allows_name(&self, name: &HostName) -> bool {
        name.as_str().ends_with(".example")
    }
    fn allows_address(&self, _: &HostName, address: IpAddr) -> bool {
        !address.is_loopback()
    }
}

pub(super) fn desk(naming: Naming, upstreams: Upstreams) -> Desk {
    let mut vips = Vips::new("default".parse().expect("a name"));
    let web = "web".parse().expect("a name");
    vips.assign(Instant::now(), &BTreeSet::from([web]));
    let settings = Settings {
        zone: ZONE.parse().expect("a name"),
        naming,
        split: Vec::new(),
    };
    Desk::new(settings, Box::new(Allowing(vips)), upstreams)
}

/// Both sockets at one free port.
async fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("loopback");
        let at = udp.local_addr().expect("bound");
        // Somebody else may have the same number for TCP.
        if let Ok(tcp) = TcpListener::bind(at).await {
            return (udp, tcp);
        }
    }
}

/// Serves the desk; returns where.
async fn serve(scope: &Scope, desk: &Desk) -> SocketAddr {
    let (udp, tcp) = sockets().await;
    let at = udp.local_addr().expect("bound");
    let (tasks, by_udp) = (scope.spawner(), desk.clone());
    scope.spawn("udp", async move { serve_udp(by_udp, udp, &tasks).await });
    let (tasks, by_tcp) = (scope.spawner(), desk.clone());
    scope.spawn("tcp", async move { serve_tcp(by_tcp, tcp, &tasks).await });
    at
}

/// What Debian's `dig` makes of it.
async fn dig(at: SocketAddr, arguments: &[&str]) -> String {
    let mut command = Command::new("dig");
    command
        .arg(format!("@{}", at.ip()))
        .args(["-p", &at.port().to_string()]);
    command.args(["+tries=2", "+time=20"]).args(arguments);
    let output = command.stdin(Stdio::null()).output().await;
    let output = output.expect("dig is there: `make setup-lab` installs bind9-dnsutils");
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test]
async fn dig_is_content_with_every_kind_of_answer() {
    let scope = Scope::new("test");
    let resolver = Resolver::start(&scope).await;
    let desk = desk(Naming::Synthetic, resolver.upstreams(&scope));
    let at = serve(&scope, &desk).await;
    for (arguments, expected) in [
        (&["web.sealock.internal", "+short"][..], "100.72.69.17\n"),
        (
            &["web.sealock.internal", "AAAA", "+short"],
            "fdcd:bcff:8e04:0:aaf4:a907:a43:b5a6\n",
        ),
        (&["-x", "100.72.69.17", "+short"], "web.sealock.internal.\n"),
        (
            &["-x", "fdcd:bcff:8e04:0:aaf4:a907:a43:b5a6", "+short"],
            "web.sealock.internal.\n",
        ),
        (&["a.example", "+tcp", "+short"], "198.18.0.1\n"),
        (
            &["a.example", "AAAA", "+noedns", "+short"],
            "fdcd:bcff:8e04:1::1\n",
        ),
        (&["-x", "198.18.0.1", "+short"], "a.example.\n"),
        (&["text.example", "TXT", "+short"], "\"told by the test\"\n"),
    ] {
        assert_eq!(dig(at, arguments).await, expected, "{arguments:?}");
    }
    for (arguments, expected) in [
        (
            &["evil.test"][..],
            &[
                "status: REFUSED",
                "EDE: 15 (Blocked): (no rule allows this name)",
            ][..],
        ),
        (
            &["nobody.sealock.internal"],
            &["status: NXDOMAIN", "SOA", "flags: qr aa rd ra"],
        ),
        (
            &["web.sealock.internal", "MX"],
            &["status: NOERROR", "ANSWER: 0", "AUTHORITY: 1"],
        ),
        (
            &["web.sealock.internal", "+edns=1", "+noednsneg"],
            &["status: BADVERS"],
        ),
        (&["a.example", "ANY", "+notcp"], &["status: NOTIMP"]),
        (&["a.example", "AXFR"], &["; Transfer failed."]),
        (
            &["long.example", "TXT", "+ignore"],
            &["flags: qr tc rd ra", "ANSWER: 0", "udp: 1232"],
        ),
        (
            &["long.example", "TXT"],
            &["Truncated, retrying in TCP mode", "ANSWER: 8"],
        ),
    ] {
        let told = dig(at, arguments).await;
        for expected in expected {
            assert!(
                told.contains(expected),
                "{arguments:?}: no {expected} in {told}"
            );
        }
        assert!(
            !told.contains("WARNING") && !told.contains("malformed"),
            "{told}"
        );
    }
    let name: HostName = "a.example".parse().expect("a name");
    let names = desk.names([198, 18, 0, 1].into());
    assert_eq!(names, std::slice::from_ref(&name));
    let lease = desk.hold([198, 18, 0, 1].into()).expect("a lease");
    assert_eq!(*lease.name(), name);
}

#[tokio::test]
async fn a_connection_that_breaks_the_rules_ends_and_others_go_on() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let scope = Scope::new("test");
    let resolver = Resolver::start(&scope).await;
    let at = serve(&scope, &desk(Naming::Synthetic, resolver.upstreams(&scope))).await;
    let mut long = tokio::net::TcpStream::connect(at).await.expect("listens");
    long.write_all(&[0xff, 0xff]).await.expect("sent");
    let mut answer = [0; 1];
    let end = tokio::time::timeout(Duration::from_secs(30), long.read(&mut answer))
        .await
        .expect("it ends");
    assert!(
        !matches!(end, Ok(1..)),
        "a question that is too long is answered"
    );
    let silent: Vec<_> =
        futures_util::future::join_all((0..40).map(|_| tokio::net::TcpStream::connect(at))).await;
    // Beyond the places of one client the connection is closed; datagrams have places of their own.
    assert_eq!(
        dig(at, &["web.sealock.internal", "+short"]).await,
        "100.72.69.17\n"
    );
    drop(silent);
}

#[tokio::test]
async fn one_question_is_asked_once_however_many_wait() {
    let scope = Scope::new("test");
    let resolver = Resolver::start(&scope).await;
    let upstreams = resolver.upstreams(&scope);
    let name: HostName = "a.example".parse().expect("a name");
    let found =
        futures_util::future::join_all((0..50).map(|_| upstreams.find(0, &name, kind::A))).await;
    assert!(found.iter().all(|found| matches!(found, Found::Answer(..))));
    // Twice, where this machine stood still and the datagram was sent again.
    let asked = resolver.asked("a.example");
    assert!((1..=2).contains(&asked), "{asked} times");
    assert!(matches!(
        upstreams.find(0, &name, kind::A).await,
        Found::Answer(..)
    ));
    assert_eq!(resolver.asked("a.example"), asked, "it is kept");
}
