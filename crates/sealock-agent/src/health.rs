//! Tries the programs behind checked offers, each in its own rhythm, until dropped.
//!
//! A try has a deadline, two tries are apart by a jittered pause, and few run at once. What they find goes into the table
//! of offers, which takes an ill program back from the relays. Live flows are left alone: only new ones go elsewhere.

use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt};
use sealock_core::address::Target;
use sealock_core::check::{Check, CheckFailure, Probe};
use sealock_core::reason::Reason;
use sealock_flow::outlet::{direct, unix};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::offers::{Checked, Offers};

/// How many tries run at once.
const TRIES_LIMIT: usize = 16; // with 60 s of patience at most, no program waits for ever

/// Tries every checked offer in its rhythm, for as long as it is offered.
pub(crate) async fn keep(offers: Offers) {
    let slots = Arc::new(Semaphore::new(TRIES_LIMIT));
    let mut names = offers.names();
    names.mark_changed();
    let mut seen = 0;
    let mut running: FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send>>> =
        FuturesUnordered::new();
    loop {
        // The order is free: neither side loses anything when the other comes first.
        tokio::select! {
            changed = names.changed() => {
                if changed.is_err() {
                    return;
                }
                for checked in offers.checked_since(seen) {
                    seen = seen.max(checked.number);
                    running.push(Box::pin(follow(offers.clone(), checked, Arc::clone(&slots))));
                }
            }
            Some(()) = running.next() => {}
        }
    }
}

/// Tries one offer until it ends.
async fn follow(offers: Offers, checked: Checked, slots: Arc<Semaphore>) {
    let mut names = offers.names();
    let tries = async {
        loop {
            let Ok(slot) = slots.acquire().await else {
                return;
            };
            let result = attempt(&checked.check, &checked.target).await;
            drop(slot);
            if !offers.take_result(&checked, result) {
                return;
            }
            let pause = checked
                .check
                .interval
                .mul_f64(rand::random_range(0.75..1.25));
            tokio::time::sleep(pause).await;
        }
    };
    let ended = async { while offers.has(&checked) && names.changed().await.is_ok() {} };
    // The order is free: an offer that ended takes no result.
    tokio::select! {
        () = tries => {}
        () = ended => {}
    }
}

async fn attempt(check: &Check, target: &Target) -> Result<(), CheckFailure> {
    let tried = async {
        match &check.probe {
            Probe::Tcp => connect(target).await.map(drop),
            Probe::Http(path) => get(connect(target).await?, target, path).await,
            Probe::Command(words) => command(words).await,
        }
    };
    let tried = tokio::time::timeout(check.timeout, tried).await;
    tried.unwrap_or(Err(CheckFailure::Timeout))
}

trait Conversation: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Conversation for T {}

async fn connect(target: &Target) -> Result<Box<dyn Conversation>, CheckFailure> {
    let failed = |reason| {
        if reason == Reason::TargetTimeout {
            CheckFailure::Timeout
        } else {
            CheckFailure::Target(reason)
        }
    };
    Ok(match target {
        Target::Tcp(address) => Box::new(direct::open(address).await.map_err(failed)?),
        Target::Unix(path) => Box::new(unix::open(path).await.map_err(failed)?),
    })
}

/// The bytes of an answer that its status needs: `HTTP/1.1 200`.
const STATUS_LENGTH: usize = 12;

async fn get(
    mut stream: Box<dyn Conversation>,
    target: &Target,
    path: &str,
) -> Result<(), CheckFailure> {
    let host = match target {
        Target::Tcp(address) => address.to_string(),
        Target::Unix(_) => "localhost".to_owned(),
    };
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: sealock-check\r\nConnection: close\r\n\r\n"
    );
    let mut answer = [0; STATUS_LENGTH];
    let asked = async {
        stream.write_all(request.as_bytes()).await?;
        stream.read_exact(&mut answer).await
    };
    asked.await.map_err(|_| CheckFailure::NotHttp)?;
    let answer = std::str::from_utf8(&answer).map_err(|_| CheckFailure::NotHttp)?;
    let status = answer
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split_once(' '));
    let status: Option<u16> = status.and_then(|(_, status)| status.parse().ok());
    match status {
        Some(200..=299) => Ok(()),
        Some(status) => Err(CheckFailure::Status(status)),
        None => Err(CheckFailure::NotHttp),
    }
}

async fn command(words: &[String]) -> Result<(), CheckFailure> {
    let (program, arguments) = words.split_first().ok_or(CheckFailure::NotRun)?;
    let status = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A try that is over its deadline is dropped, and must not run on.
        .kill_on_drop(true)
        .status()
        .await
        .map_err(|_| CheckFailure::NotRun)?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(CheckFailure::Exit(code)),
        None => Err(CheckFailure::Killed),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sealock_net::task::Scope;
    use tokio::net::TcpListener;

    use super::*;

    /// Answers every connection with these bytes, for as long as the scope lives.
    async fn server(tasks: &Scope, answer: &'static [u8]) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        tasks.spawn("server", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 512];
                let _read = stream.read(&mut request).await;
                let _written = stream.write_all(answer).await;
            }
        });
        Target::Tcp(address.into())
    }

    async fn tried(probe: &str, target: &Target) -> Result<(), CheckFailure> {
        let check = Check {
            timeout: Duration::from_millis(500),
            ..Check::new(probe.parse().expect("a probe"))
        };
        attempt(&check, target).await
    }

    async fn nobody() -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        Target::Tcp(listener.local_addr().expect("bound").into())
    }

    #[tokio::test]
    async fn a_tcp_check_passes_while_somebody_listens() {
        let tasks = Scope::new("test");
        let listens = server(&tasks, b"").await;
        assert_eq!(tried("tcp", &listens).await, Ok(()));
        let refused = Err(CheckFailure::Target(Reason::TargetRefused));
        assert_eq!(tried("tcp", &nobody().await).await, refused);
    }

    #[tokio::test]
    async fn an_http_check_passes_with_2xx_alone() {
        let cases: [(&'static [u8], _); 6] = [
            (b"HTTP/1.1 204 No Content\r\n\r\n", Ok(())),
            (b"HTTP/1.0 200\r\n\r\n", Ok(())),
            (b"HTTP/1.1 503 Busy\r\n\r\n", Err(CheckFailure::Status(503))),
            (
                b"HTTP/1.1 302 Found\r\n\r\n",
                Err(CheckFailure::Status(302)),
            ),
            (b"SSH-2.0-something\r\n", Err(CheckFailure::NotHttp)),
            (b"HTTP", Err(CheckFailure::NotHttp)),
        ];
        for (answer, outcome) in cases {
            let tasks = Scope::new("test");
            let target = server(&tasks, answer).await;
            assert_eq!(tried("http:/health", &target).await, outcome);
        }
    }

    #[tokio::test]
    async fn a_command_check_passes_with_code_0_alone() {
        let target = nobody().await;
        let cases = [
            ("command:true", Ok(())),
            ("command:false", Err(CheckFailure::Exit(1))),
            ("command:/nowhere/at/all", Err(CheckFailure::NotRun)),
            ("command:sleep 30", Err(CheckFailure::Timeout)),
            // No shell reads it: the words are arguments of `true`.
            ("command:true ; false && exit 3", Ok(())),
        ];
        for (probe, outcome) in cases {
            assert_eq!(tried(probe, &target).await, outcome, "{probe}");
        }
    }

    #[tokio::test]
    async fn a_program_that_accepts_and_says_nothing_is_out_of_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let target = Target::Tcp(listener.local_addr().expect("bound").into());
        let outcome = tried("http:/", &target).await;
        assert_eq!(outcome, Err(CheckFailure::Timeout));
    }
}
