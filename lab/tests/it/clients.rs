//! Real clients of real servers through the tunnel: each has its own idea of what a connection is.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Begin, Deployment, Family, Node, Spec, binary,
    deployment::loopback,
    node::Ended,
    pattern::{Pattern, Way},
    say, scene, servers,
};

const POSTGRES: u16 = 5432;
const REDIS: u16 = 6379;
const SSH: u16 = 22;
const IPERF: u16 = 5201;
const HALF: u16 = 7001;
const FIRST: u16 = 7002;
// On the consumer's machine everything listens this much higher.
const SHIFT: u16 = 10_000;

/// Both agents run in the background, as services of the system do, and are told what to offer and where to listen.
fn told(it: &Deployment<'_>) -> Result<[Node; 2]> {
    let agents = [it.provider.agent()?, it.consumer.agent()?];
    for (name, port) in [
        ("postgres", POSTGRES),
        ("redis", REDIS),
        ("ssh", SSH),
        ("iperf", IPERF),
        ("half", HALF),
        ("first", FIRST),
    ] {
        it.provider
            .ask(&format!("expose {port} --as {name} --detach"))?;
        let at = port + SHIFT;
        it.consumer
            .ask(&format!("connect {name} --listen {at} --detach"))?;
    }
    Ok(agents)
}

#[test]
fn curl_psql_redis_ssh_nc_and_iperf3_work_through_the_tunnel() {
    scene(Family::V4, |lab| {
        let (it, up) = Deployment::up(lab, Begin::Open)?;
        let agents = told(&it)?;
        redis(&it)?;
        ssh(&it)?;
        half_close(&it)?;
        server_ends_first(&it)?;
        iperf3(&it)?;
        postgres(&it)?;
        for node in agents.iter().chain([&up]) {
            node.without_complaints()?;
        }
        Ok(())
    });
}

fn client(it: &Deployment<'_>, spec: Spec) -> Result<Ended> {
    it.lab().run(&it.net.con, spec)
}

fn redis(it: &Deployment<'_>) -> Result<()> {
    let _server = servers::redis(it.lab(), &it.net.prv, loopback(REDIS))?;
    let port = (REDIS + SHIFT).to_string();
    let cli = |arguments: &[&str]| {
        Spec::new("redis-cli", "redis-cli")
            .args(["-p", &port])
            .args(arguments)
    };
    ensure!(client(it, cli(&["incrby", "counter", "42"]))?.success()? == "42\n");
    // A value of many frames, in and out again.
    let value = "0123456789abcdef".repeat(1 << 16);
    let set = cli(&["-x", "set", "big"]).input(value.clone());
    ensure!(client(it, set)?.success()? == "OK\n");
    ensure!(client(it, cli(&["get", "big"]))?.success()? == format!("{value}\n"));
    Ok(())
}

fn ssh(it: &Deployment<'_>) -> Result<()> {
    let server = servers::Ssh::start(it.lab(), &it.net.prv, loopback(SSH))?;
    let sealock = binary::sealock()?.display();
    let state = it.consumer.state().display();
    let proxy = format!("ProxyCommand={sealock} --state {state} connect ssh --stdio");
    let run = |command: &str| server.client("ssh").args(["-o", &proxy, "prov", command]);
    let name = client(it, run("ip netns identify $$"))?.success()?;
    ensure!(name == format!("{}\n", it.net.prv.name()), "{name}");
    // Some MB each way in one session, and the exit code of the other side.
    let text = "sixteen bytes...".repeat(1 << 17);
    let echoed = client(it, run("cat").input(text.clone()))?.success()?;
    ensure!(
        echoed == text,
        "{} of {} bytes came back",
        echoed.len(),
        text.len()
    );
    ensure!(client(it, run("exit 7"))?.status.code() == Some(7));
    Ok(())
}

/// Serves one caller inside the provider's machine.
fn serve(
    it: &Deployment<'_>,
    listen: SocketAddr,
    answer: impl FnOnce(std::net::TcpStream) -> std::io::Result<()> + Send + 'static,
) -> Result<JoinHandle<std::io::Result<()>>> {
    let listener = it.net.prv.enter(move || TcpListener::bind(listen))??;
    Ok(std::thread::spawn(move || answer(listener.accept()?.0)))
}

fn served(server: JoinHandle<std::io::Result<()>>) -> Result<()> {
    let served = server.join().ok().context("the server panicked")?;
    served.context("the server of the test")
}

/// The client ends its direction first, and still gets the whole answer.
fn half_close(it: &Deployment<'_>) -> Result<()> {
    const TAIL: usize = 4 << 20;
    let server = serve(it, loopback(HALF), |mut stream| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question)?;
        stream.write_all(&question)?;
        stream.write_all(&Pattern::new(5, Way::Down).bytes(0, TAIL))
    })?;
    let got = it.lab().directory().join("half");
    let script = format!("nc -N 127.0.0.1 {} > {}", HALF + SHIFT, got.display());
    let ask = Spec::new("nc", "sh")
        .args(["-c", &script])
        .input("question\n");
    client(it, ask)?.success()?;
    served(server)?;
    let wanted = [
        b"question\n",
        &Pattern::new(5, Way::Down).bytes(0, TAIL)[..],
    ]
    .concat();
    let got = fs::read(got)?;
    ensure!(got == wanted, "{} of {} bytes", got.len(), wanted.len());
    Ok(())
}

/// The server closes at once behind its last byte, and the slow client still gets all of them.
fn server_ends_first(it: &Deployment<'_>) -> Result<()> {
    const TAIL: usize = 8 << 20;
    let server = serve(it, loopback(FIRST), |mut stream| {
        stream.write_all(&Pattern::new(6, Way::Down).bytes(0, TAIL))
    })?;
    let got = it.lab().directory().join("first");
    // Half a second passes before anybody reads what waits on the way.
    let script = format!(
        "nc -d 127.0.0.1 {} | (sleep 0.5; cat) > {}",
        FIRST + SHIFT,
        got.display()
    );
    client(it, Spec::new("nc", "sh").args(["-c", &script]))?.success()?;
    served(server)?;
    let got = fs::read(got)?;
    ensure!(
        got == Pattern::new(6, Way::Down).bytes(0, TAIL),
        "{} of {TAIL} bytes",
        got.len()
    );
    Ok(())
}

fn iperf3(it: &Deployment<'_>) -> Result<()> {
    let _server = servers::iperf3(it.lab(), &it.net.prv, loopback(IPERF))?;
    let port = (IPERF + SHIFT).to_string();
    for way in [
        &["-n", "32M"][..],
        &["-n", "32M", "-R"],
        &["-n", "8M", "-P", "4"],
    ] {
        let measure = Spec::new("iperf3", "iperf3")
            .args(["-c", "127.0.0.1", "-p", &port, "-f", "m"])
            .args(way);
        let report = client(it, measure)?.success()?;
        let mut line = report.lines().filter(|line| line.contains("receiver"));
        say(&format!(
            "iperf3 {way:?}: {}",
            line.next_back().context("a result")?
        ));
    }
    Ok(())
}

fn postgres(it: &Deployment<'_>) -> Result<()> {
    let _server = servers::postgres(it.lab(), &it.net.prv, loopback(POSTGRES))?;
    let port = (POSTGRES + SHIFT).to_string();
    let psql = || {
        let arguments = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-At"];
        Spec::new("psql", "psql")
            .args(arguments)
            .args(["-v", "ON_ERROR_STOP=1", "-q"])
    };
    ensure!(client(it, psql().args(["-c", "select 6 * 7"]))?.success()? == "42\n");
    client(it, psql().args(["-c", "create table t (n int, text text)"]))?.success()?;
    let rows: String = (0..60_000)
        .map(|n| format!("{n}\t{}\n", format!("row {n} ").repeat(8)))
        .collect();
    client(
        it,
        psql().args(["-c", "copy t from stdin"]).input(rows.clone()),
    )?
    .success()?;
    let copied = client(
        it,
        psql().args(["-c", "copy (select * from t order by n) to stdout"]),
    )?;
    ensure!(copied.success()? == rows, "the copy differs");
    // What the server itself makes of the bytes that arrived there.
    let sum = "select md5(string_agg(n || E'\\t' || text || E'\\n', '' order by n)) from t";
    let theirs = client(it, psql().args(["-c", sum]))?.success()?;
    let ours = client(it, Spec::new("md5sum", "md5sum").input(rows.clone()))?.success()?;
    ensure!(
        ours.starts_with(theirs.trim()) && theirs.len() == 33,
        "{theirs} {ours}"
    );
    say(&format!("psql: COPY of {} bytes each way", rows.len()));
    Ok(())
}

#[test]
fn a_client_that_aborts_is_seen_as_an_abort_and_leaves_nothing_behind() {
    scene(Family::V4, |lab| {
        let (it, up) = Deployment::up(lab, Begin::Open)?;
        let _http = {
            let files = it.lab().directory().join("files");
            fs::create_dir(&files)?;
            fs::write(files.join("big"), vec![7; 32 << 20])?;
            servers::http(it.lab(), &it.net.prv, loopback(3000), &files)?
        };
        let exposed = it.provider.expose("3000", "web")?;
        let connected = it.consumer.connect("web", 8080)?;
        let nodes = [&up, &exposed, &connected];
        let page = |range: &str| {
            Spec::new("curl", "curl")
                .args(["-sS", "--max-time", "5", "-o", "/dev/null"])
                .args(["-r", range, "http://127.0.0.1:8080/big"])
        };
        client(&it, page("0-0"))?.success()?;
        let before: Vec<_> = nodes.iter().map(|node| node.holdings()).collect();
        // The first bytes of the answer, and then away with it: more often than a session has streams.
        let script = "for n in $(seq 120); do curl -sS http://127.0.0.1:8080/big 2>/dev/null | head -c 1000; done | wc -c";
        let took = client(&it, Spec::new("curl", "sh").args(["-c", script]))?;
        ensure!(took.success()?.trim() == "120000");
        client(&it, page("0-0"))?
            .success()
            .context("after 120 aborts")?;
        for (node, before) in nodes.iter().zip(before) {
            node.wait_for_return_to(before?, Duration::from_secs(10))?;
            node.without_complaints()?;
        }
        Ok(())
    });
}
