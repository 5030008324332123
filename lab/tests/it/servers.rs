//! Real servers and their clients, face to face: what a test behind a tunnel relies on.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
};

use anyhow::{Result, ensure};
use lab::{Bridge, Family, Namespace, Spec, Topology, scene, servers};

const PORT: u16 = 7000;

struct Net {
    client: Namespace,
    server: Namespace,
    listen: SocketAddr,
}

fn net(lab: &mut Topology) -> Result<Net> {
    let ix: Bridge = lab.bridge("ix")?;
    Ok(Net {
        client: lab.host("client", &ix, 1)?,
        server: lab.host("server", &ix, 2)?,
        listen: SocketAddr::new(ix.v4(2), PORT),
    })
}

#[test]
fn psql_asks_a_real_postgresql() {
    scene(Family::V4, |lab| {
        let net = net(lab)?;
        let _server = servers::postgres(lab, &net.server, net.listen)?;
        let address = net.listen.ip().to_string();
        let ask = Spec::new("psql", "psql").args([
            "-h",
            &address,
            "-p",
            "7000",
            "-U",
            "postgres",
            "-Atc",
            "select 6 * 7",
        ]);
        assert_eq!(lab.run(&net.client, ask)?.success()?, "42\n");
        ensure!(
            net.server.listeners()?.len() == 1,
            "{:?}",
            net.server.listeners()?
        );
        Ok(())
    });
}

#[test]
fn redis_cli_asks_a_real_redis() {
    scene(Family::V4, |lab| {
        let net = net(lab)?;
        let _server = servers::redis(lab, &net.server, net.listen)?;
        let address = net.listen.ip().to_string();
        let ask = Spec::new("redis-cli", "redis-cli")
            .args(["-h", &address, "-p", "7000", "incrby", "counter", "42"]);
        assert_eq!(lab.run(&net.client, ask)?.success()?, "42\n");
        Ok(())
    });
}

#[test]
fn ssh_runs_a_command_through_a_proxy_command() {
    scene(Family::V4, |lab| {
        let net = net(lab)?;
        let server = servers::Ssh::start(lab, &net.server, net.listen)?;
        let proxy = format!("ProxyCommand=nc {} {PORT}", net.listen.ip());
        let ask = server
            .client("ssh")
            .args(["-o", &proxy, "anywhere", "ip netns identify $$"]);
        assert_eq!(
            lab.run(&net.client, ask)?.success()?,
            format!("{}\n", net.server.name())
        );
        Ok(())
    });
}

#[test]
fn curl_gets_a_file_and_iperf3_measures() {
    scene(Family::V4, |lab| {
        let net = net(lab)?;
        let files = lab.directory().join("files");
        fs::create_dir(&files)?;
        fs::write(files.join("page"), "a page")?;
        let http = servers::http(lab, &net.server, net.listen, &files)?;
        let get = Spec::new("curl", "curl").args([
            "-sS",
            "--fail",
            &format!("http://{}/page", net.listen),
        ]);
        assert_eq!(lab.run(&net.client, get)?.success()?, "a page");
        drop(http);
        let measured = SocketAddr::new(net.listen.ip(), PORT + 1);
        let _server = servers::iperf3(lab, &net.server, measured)?;
        let address = measured.ip().to_string();
        let measure =
            Spec::new("iperf3", "iperf3").args(["-c", &address, "-p", "7001", "-n", "8M", "-J"]);
        let report = lab.run(&net.client, measure)?.success()?;
        ensure!(report.contains("\"bits_per_second\""), "{report}");
        Ok(())
    });
}

#[test]
fn nc_carries_an_answer_after_its_own_end() {
    scene(Family::V4, |lab| {
        let net = net(lab)?;
        let address = net.listen.ip().to_string();
        // The server answers only once the client has ended its own direction.
        let listen = net.listen;
        let listener = net.server.enter(move || TcpListener::bind(listen))??;
        let answering = std::thread::spawn(move || -> std::io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            let mut question = String::new();
            stream.read_to_string(&mut question)?;
            write!(stream, "answer to {question}")
        });
        let ask = Spec::new("nc", "nc")
            .args(["-N", &address, "7000"])
            .input("question\n");
        assert_eq!(
            lab.run(&net.client, ask)?.success()?,
            "answer to question\n"
        );
        ensure!(answering.join().is_ok_and(|answered| answered.is_ok()));
        Ok(())
    });
}
