//! F23: a relay's name has addresses of both families, the better one leads nowhere, and nobody waits for it.

use std::{
    fs,
    net::{IpAddr, Ipv6Addr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Family, Machine, Spec, binary, faults::Traffic, say, scene};

use crate::links::SOON;

/// 250 ms until the other family is tried (RFC 8305), and the rest for a process that starts.
const AROUND: Duration = Duration::from_secs(1);
/// Given to the system as `/etc/hosts` of one program alone.
const WITH_HOSTS: &str = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
const RELAY: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0x11);

#[test]
fn an_agent_whose_ipv6_leads_nowhere_has_a_session_over_ipv4_within_a_second() {
    scene(Family::Both, |lab| {
        let ix = lab.bridge("ix")?;
        let [rel, con] = [lab.host("rel", &ix, 11)?, lab.host("con", &ix, 32)?];
        // RFC 6724: the system prefers these addresses to IPv4, and those of fd00::/8 it does not.
        for (host, address) in [(&rel, "2001:db8:77::11/64"), (&con, "2001:db8:77::32/64")] {
            host.ip(&["addr", "add", address, "dev", "ix", "nodad"])?;
        }
        let hosts = lab.directory().join("hosts");
        let v4 = ix.v4(11);
        fs::write(&hosts, format!("{RELAY} relay.test\n{v4} relay.test\n"))?;
        let (public, consumer) = (Machine::new(lab, &rel), Machine::new(lab, &con));
        let up = ["up", "--public", "relay.test:7443", "--listen", "[::]:7443"];
        let up = public.start("up", up, "That token works once")?;
        let printed = public.ask("token create")?;
        let mut words = printed.split_whitespace();
        let token = words.find(|word| word.starts_with("SLK1-"));
        let token = token.context("a token")?;
        let join = named(&consumer, &hosts, &["join", token, "--name", "cons"])?;
        lab.run(&con, join)?.success()?;

        let (by, after) = session(&consumer, &hosts)?;
        say(&format!("F23: all is well: by {by} after {after:?}"));
        ensure!(
            by.contains(&RELAY.to_string()),
            "IPv6 is not preferred: {by}"
        );
        let broken = ix.lose(Traffic::any().to(IpAddr::V6(RELAY)))?;
        let (by, after) = session(&consumer, &hosts)?;
        say(&format!("F23: IPv6 broken: by {by} after {after:?}"));
        ensure!(by.contains(&v4.to_string()), "not by IPv4: {by}");
        ensure!(broken.lost()? > 0, "IPv6 was not tried");
        ensure!(after <= AROUND, "{after:?}");
        up.without_complaints()
    });
}

/// `sealock` on a machine that knows the names of a file.
fn named(machine: &Machine<'_>, hosts: &Path, arguments: &[&str]) -> Result<Spec> {
    let spec = Spec::new(arguments[0], "unshare")
        .args(["--mount", "sh", "-c", WITH_HOSTS])
        .args([
            hosts,
            binary::sealock()?,
            Path::new("--state"),
            machine.state(),
        ])
        .args(arguments);
    Ok(spec.env("RUST_LOG", "info"))
}

/// Starts an agent; says by which address it has its session over QUIC, and after how long.
fn session(machine: &Machine<'_>, hosts: &Path) -> Result<(String, Duration)> {
    let lab = machine.lab();
    let began = Instant::now();
    let mut agent = lab.start(machine.namespace(), named(machine, hosts, &["agent"])?)?;
    agent.wait_for_line("session up", SOON)?;
    let after = began.elapsed();
    let said = machine.ask("status")?;
    ensure!(said.contains("up over quic "), "{said}");
    let sockets = lab.run(machine.namespace(), Spec::new("ss", "ss").args(["-Hnu"]))?;
    agent.terminate(SOON)?;
    Ok((sockets.success()?, after))
}
