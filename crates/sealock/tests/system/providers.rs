//! Several agents that provide one service: which one is chosen, and who is left out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use sealock_agent::{AgentHandle, NewOffer};
use sealock_control::controller::Starter;
use sealock_core::address::Target;
use sealock_core::api::policy;
use sealock_core::check::{Check, Probe};
use sealock_core::policy::{Action, Conditions};
use sealock_net::task::Scope;
use sealock_proto::wire::SessionKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::deployment::{Deployment, READY, address, any_port, serve};

/// Answers every connection with one letter, and then with what it hears.
async fn lettered(tasks: &Scope, letter: u8) -> Result<Target> {
    serve(tasks, move |mut stream: TcpStream| async move {
        if stream.write_all(&[letter]).await.is_ok() {
            let (mut reader, mut writer) = stream.split();
            let _ended = tokio::io::copy(&mut reader, &mut writer).await;
        }
    })
    .await
}

/// Answers every connection as an HTTP server that is well while `well` says so.
async fn health_page(tasks: &Scope, well: &Arc<AtomicBool>) -> Result<Target> {
    let well = Arc::clone(well);
    serve(tasks, move |mut stream: TcpStream| {
        let well = well.load(Ordering::Relaxed);
        async move {
            let status = if well { "200 Fine" } else { "503 Ill" };
            let mut request = [0; 512];
            if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                let answer = format!("HTTP/1.1 {status}\r\n\r\n");
                let _told = stream.write_all(answer.as_bytes()).await;
            }
        }
    })
    .await
}

fn offer(target: Target) -> Result<NewOffer> {
    Ok(NewOffer {
        service: "letter".parse()?,
        target,
        labels: Default::default(),
        check: None,
    })
}

/// Opens the service and tells who answered.
async fn who(listen: SocketAddr) -> Result<(u8, TcpStream)> {
    let mut stream = TcpStream::connect(listen).await?;
    let letter = stream.read_u8().await?;
    Ok((letter, stream))
}

/// Who answers `count` opens, one after another; each one's end is awaited.
async fn answers(listen: SocketAddr, count: usize) -> Result<String> {
    let mut answers = String::new();
    for _ in 0..count {
        let (letter, stream) = who(listen).await?;
        drop(stream);
        answers.push(char::from(letter));
    }
    Ok(answers)
}

/// Repeats opens until they are answered as `wanted` says.
async fn until(listen: SocketAddr, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let look = async {
        loop {
            if answers(listen, 4).await.is_ok_and(|found| wanted(&found)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(READY, look)
        .await
        .context("the answers never came as wanted")
}

async fn listen_for(caller: &AgentHandle) -> Result<SocketAddr> {
    address(&caller.connect("letter".parse()?, &any_port()).await?)
}

/// The deployment, two providers and a caller.
async fn cast() -> Result<(Deployment, [AgentHandle; 2], AgentHandle)> {
    let deployment = Deployment::start(Starter::Open).await?;
    // The first to register a name owns it; others need a rule.
    let rule = policy::AddRequest {
        tenant: "default".parse()?,
        id: None,
        callers: vec!["first".parse()?, "second".parse()?],
        services: vec!["letter".parse()?],
        actions: std::iter::once(Action::Provide).collect(),
        conditions: Conditions::default(),
    };
    deployment.admin::<policy::Allow>(&rule).await?;
    let first = deployment.agent("first", SessionKind::Full).await?;
    let second = deployment.agent("second", SessionKind::Full).await?;
    let caller = deployment.agent("caller", SessionKind::CallerOnly).await?;
    Ok((deployment, [first, second], caller))
}

// D2: a program that says it is ill gets no new flows and keeps its old ones; it comes back by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ill_provider_is_left_out_until_it_is_well_and_keeps_its_flows() -> Result<()> {
    let tasks = Scope::new("test");
    let (deployment, [first, second], caller) = cast().await?;
    let well = Arc::new(AtomicBool::new(true));
    let page = health_page(&tasks, &well).await?;
    // The page tells of the program beside it, so the check is a command that asks there.
    let words = ["curl", "-fsS", "-o", "/dev/null"].map(str::to_owned);
    let words = words.into_iter().chain([format!("http://{page}/health")]);
    let check = Check {
        interval: Duration::from_millis(100),
        rise: 1,
        fall: 1,
        ..Check::new(Probe::Command(words.collect()))
    };
    let checked = NewOffer {
        check: Some(check),
        ..offer(lettered(&tasks, b'a').await?)?
    };
    assert!(first.offer(checked));
    let listen = listen_for(&caller).await?;
    until(listen, |found| found == "aaaa").await?;
    assert!(second.offer(offer(lettered(&tasks, b'b').await?)?));
    until(listen, |found| found.contains('a') && found.contains('b')).await?;
    let mut kept = loop {
        let (letter, stream) = who(listen).await?;
        if letter == b'a' {
            break stream;
        }
    };
    well.store(false, Ordering::Relaxed);
    until(listen, |found| found == "bbbb").await?;
    assert_eq!(answers(listen, 20).await?, "b".repeat(20));
    kept.write_all(b"k").await?;
    assert_eq!(kept.read_u8().await?, b'k');
    well.store(true, Ordering::Relaxed);
    until(listen, |found| found.contains('a')).await?;
    deployment.stop().await;
    Ok(())
}

// D2: new flows go to the provider that carries the fewest, not to each in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_flows_go_to_the_least_loaded_provider() -> Result<()> {
    let tasks = Scope::new("test");
    let (deployment, [first, second], caller) = cast().await?;
    assert!(first.offer(offer(lettered(&tasks, b'a').await?)?));
    let listen = listen_for(&caller).await?;
    until(listen, |found| found == "aaaa").await?;
    assert!(second.offer(offer(lettered(&tasks, b'b').await?)?));
    until(listen, |found| found.contains('b')).await?;
    let mut kept = Vec::new();
    let mut counts = [0, 0];
    while kept.len() < 20 {
        let (letter, stream) = who(listen).await?;
        counts[usize::from(letter - b'a')] += 1;
        kept.push((letter, stream));
    }
    assert!(
        counts.iter().all(|count| (8..=12).contains(count)),
        "{counts:?}"
    );
    kept.retain(|(letter, _)| *letter == b'a');
    // The second has none now, as soon as the relay knows; turns alone would give the first every other flow.
    until(listen, |found| found == "bbbb").await?;
    for _ in 0..3 {
        let (letter, stream) = who(listen).await?;
        assert_eq!(letter, b'b');
        kept.push((letter, stream));
    }
    deployment.stop().await;
    Ok(())
}
