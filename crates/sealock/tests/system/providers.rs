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

use crate::deployment::{Deployment, READY, address, any_port, exchange, serve};
use crate::several_relays::{LONG_DRAIN, say, spawned};

/// Answers every connection with one letter, and then with what it hears.
pub(crate) async fn lettered(tasks: &Scope, letter: u8) -> Result<Target> {
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

pub(crate) fn offer(target: Target) -> Result<NewOffer> {
    Ok(NewOffer::new("letter".parse()?, target))
}

/// Opens the service and tells who answered.
pub(crate) async fn who(listen: SocketAddr) -> Result<(u8, TcpStream)> {
    let mut stream = TcpStream::connect(listen).await?;
    let letter = stream.read_u8().await?;
    Ok((letter, stream))
}

/// Who answers `count` opens, one after another; each one's end is awaited.
pub(crate) async fn answers(listen: SocketAddr, count: usize) -> Result<String> {
    let mut answers = String::new();
    for _ in 0..count {
        let (letter, stream) = who(listen).await?;
        drop(stream);
        answers.push(char::from(letter));
    }
    Ok(answers)
}

/// Repeats opens until they are answered as `wanted` says.
pub(crate) async fn until(listen: SocketAddr, wanted: impl Fn(&str) -> bool) -> Result<()> {
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

pub(crate) async fn listen_for(caller: &AgentHandle) -> Result<SocketAddr> {
    address(&caller.connect("letter".parse()?, &any_port()).await?)
}

/// The deployment, two providers and a caller.
pub(crate) async fn cast() -> Result<(Deployment, [AgentHandle; 2], AgentHandle)> {
    let deployment = Deployment::start(Starter::Open).await?;
    // The first to register a name owns it; others need a rule.
    let rule = policy::AddRequest {
        tenant: "default".parse()?,
        id: None,
        callers: vec!["first".parse()?, "second".parse()?],
        services: vec!["letter".parse()?],
        destinations: Vec::new(),
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
    // The second is left with more flows than the first: whoever is least loaded, it is the first.
    let mut kept = None;
    let mut busy = Vec::new();
    while kept.is_none() || busy.len() < 2 {
        match who(listen).await? {
            (b'a', stream) if kept.is_none() => kept = Some(stream),
            (b'b', stream) => busy.push(stream),
            (_, ended) => drop(ended),
        }
    }
    let mut kept = kept.context("just kept")?;
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

/// Answers as an HTTP server whose one page is a letter, and which is well while `well` says so.
async fn lettered_page(tasks: &Scope, letter: char, well: &Arc<AtomicBool>) -> Result<Target> {
    let well = Arc::clone(well);
    serve(tasks, move |mut stream: TcpStream| {
        let status = if well.load(Ordering::Relaxed) {
            "200 Fine"
        } else {
            "503 Ill"
        };
        async move {
            let mut request = [0; 512];
            if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                let answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{letter}");
                let _told = stream.write_all(answer.as_bytes()).await;
            }
        }
    })
    .await
}

/// A check that follows the program's state at once.
fn prompt_check(probe: Probe) -> Check {
    Check {
        interval: Duration::from_millis(100),
        rise: 1,
        fall: 1,
        ..Check::new(probe)
    }
}

/// Asks for the page and tells its letter.
async fn page(listen: SocketAddr) -> Result<char> {
    let answer = exchange(listen, b"GET / HTTP/1.1\r\nHost: letter\r\n\r\n").await?;
    answer
        .last()
        .map(|byte| char::from(*byte))
        .context("no answer")
}

/// Repeats asking until `count` answers in a row are this letter.
async fn until_page(listen: SocketAddr, letter: char, count: usize) -> Result<()> {
    let look = async {
        let mut found = 0;
        while found < count {
            if page(listen).await.is_ok_and(|answer| answer == letter) {
                found += 1;
            } else {
                found = 0;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    tokio::time::timeout(READY, look)
        .await
        .with_context(|| format!("`{letter}` never answered {count} times in a row"))
}

// D2: an HTTP check asks the program itself, and what it answers decides who gets new flows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http_check_takes_a_provider_out_and_brings_it_back() -> Result<()> {
    let tasks = Scope::new("test");
    let (deployment, [first, second], caller) = cast().await?;
    let well = Arc::new(AtomicBool::new(true));
    let check = prompt_check("http:/health".parse()?);
    let checked = NewOffer {
        check: Some(check),
        ..offer(lettered_page(&tasks, 'a', &well).await?)?
    };
    // The other one serves only while the checked one does not: so each answer tells what relays were told.
    let standby = NewOffer {
        standby: true,
        ..offer(lettered_page(&tasks, 'b', &Arc::new(AtomicBool::new(true))).await?)?
    };
    assert!(first.offer(checked));
    let listen = listen_for(&caller).await?;
    until_page(listen, 'a', 1).await?;
    assert!(second.offer(standby));
    deployment.registered("letter").await?;
    well.store(false, Ordering::Relaxed);
    until_page(listen, 'b', 10).await?;
    well.store(true, Ordering::Relaxed);
    until_page(listen, 'a', 10).await?;
    deployment.stop().await;
    Ok(())
}

// D2: a TCP check follows whether the program listens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tcp_check_takes_a_provider_out_and_brings_it_back() -> Result<()> {
    let (tasks, program) = (Scope::new("test"), Scope::new("program"));
    let (deployment, [first, second], caller) = cast().await?;
    let well = Arc::new(AtomicBool::new(true));
    let target = lettered_page(&program, 'a', &well).await?;
    let at = address(&target)?;
    let checked = NewOffer {
        check: Some(prompt_check(Probe::Tcp)),
        ..offer(target)?
    };
    let standby = NewOffer {
        standby: true,
        ..offer(lettered_page(&tasks, 'b', &well).await?)?
    };
    assert!(first.offer(checked));
    let listen = listen_for(&caller).await?;
    until_page(listen, 'a', 1).await?;
    assert!(second.offer(standby));
    program.shutdown(Duration::ZERO).await;
    until_page(listen, 'b', 10).await?;
    let again = tokio::net::TcpListener::bind(at).await?;
    tasks.spawn("program again", async move {
        while let Ok((mut stream, _)) = again.accept().await {
            let mut request = [0; 512];
            if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                let _told = stream.write_all(b"a").await;
            }
        }
    });
    until_page(listen, 'a', 10).await?;
    deployment.stop().await;
    Ok(())
}

/// Opens one flow after another, each with a round trip, until it is told to stop; tells how many there were.
async fn steady_opens(listen: SocketAddr, stop: Arc<AtomicBool>) -> Result<usize> {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let (_letter, mut stream) = who(listen)
            .await
            .with_context(|| format!("open {count} failed"))?;
        stream.write_all(b"x").await?;
        anyhow::ensure!(stream.read_u8().await? == b'x', "open {count} has no echo");
        count += 1;
    }
    Ok(count)
}

// D2, K2: one of two providers is drained under a steady stream of opens: none fails, and what runs at it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_is_drained_under_opens_and_none_fails() -> Result<()> {
    let tasks = Scope::new("test");
    let (deployment, [first, second], caller) = cast().await?;
    assert!(first.offer(offer(lettered(&tasks, b'a').await?)?));
    let listen = listen_for(&caller).await?;
    until(listen, |found| found == "aaaa").await?;
    let (_, mut kept) = who(listen).await?;
    assert!(second.offer(offer(lettered(&tasks, b'b').await?)?));
    until(listen, |found| found.contains('b')).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let opens = std::iter::repeat_with(|| steady_opens(listen, Arc::clone(&stop))).take(4);
    let opens = futures_util::future::try_join_all(opens);
    let drain = async {
        let ended = spawned(&tasks, first.drain(LONG_DRAIN));
        until(listen, |found| found == "bbbb").await?;
        say(&mut kept, b"still at the one that drains").await?;
        drop(kept);
        tokio::time::timeout(READY, ended).await??;
        until(listen, |found| found == "bbbb").await?;
        stop.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (counts, drained) = tokio::join!(opens, drain);
    drained?;
    let counts = counts?;
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    deployment.stop().await;
    Ok(())
}
