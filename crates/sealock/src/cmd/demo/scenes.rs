//! The scenes. Each does one thing as a user would, checks it, and leaves its figures behind.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use sealock_core::api::{agent, policy};
use sealock_core::policy::Action;
use sealock_core::policy::condition::Conditions;
use sealock_core::reason::Reason;
use sealock_net::task::Scope;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::stage::{Stage, names, until};
use super::{memory, peers, same};

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Figures {
    first: Duration,
    page: Duration,
    rate: f64,
    refused: Duration,
    refusal: String,
    searched: memory::Searched,
    control: memory::Searched,
    carried: u64,
    cut: Duration,
}

const BULK: usize = 64 << 20;
const MIB: f64 = 1_048_576.0;

impl Figures {
    /// The figures in words.
    pub(super) fn lines(&self, stage: &Stage) -> Vec<String> {
        vec![
            format!(
                "path       caller → relay at {} (QUIC) → provider; both agents dialled out, none listens",
                stage.relay
            ),
            format!(
                "first byte {:.1} ms after the connection was asked for, the whole page after {:.1} ms",
                self.first.as_secs_f64() * 1e3,
                self.page.as_secs_f64() * 1e3
            ),
            format!(
                "throughput {:.0} MiB/s, both directions together, encrypted end to end and once more on each hop",
                self.rate
            ),
            format!(
                "refusal    {} ms: {}",
                self.refused.as_millis(),
                self.refusal
            ),
            format!(
                "blindness  {} of {:.0} MiB of the relay's memory hold the secret ({:.0} MiB of it passed); the same search in this program finds it {} times",
                self.searched.found,
                self.searched.bytes as f64 / MIB,
                self.carried as f64 / MIB,
                self.control.found,
            ),
            format!(
                "revocation cut the live stream after {} ms, as a reset and not as an end",
                self.cut.as_millis()
            ),
        ]
    }
}

pub(super) async fn web_page(stage: &Stage, figures: &mut Figures) -> anyhow::Result<()> {
    let tasks = Scope::new("demo");
    let page = "<!doctype html><title>Sealock</title><p>This page has no open port.</p>".to_owned();
    let server = peers::web_server(&tasks, page.clone()).await?;
    stage.provider.expose("web", server).await?;
    let web = stage.caller.connect(&"web".parse()?).await?;
    until("the page was never answered", async || {
        peers::fetch(web).await.is_ok()
    })
    .await?;
    let fetched = peers::fetch(web).await?;
    (figures.first, figures.page) = (fetched.first, fetched.whole);
    same(
        "the page and what was fetched",
        &fetched.body.as_ref(),
        &page.as_bytes(),
    )
}

pub(super) async fn both_ways(stage: &Stage, figures: &mut Figures) -> anyhow::Result<()> {
    let tasks = Scope::new("demo");
    let (up, down) = (0x5ea1, 0x10c4);
    let (digests, mut arrived) = mpsc::channel(1);
    let server = peers::bulk_server(&tasks, down, BULK, digests).await?;
    stage.provider.expose("bulk", server).await?;
    let bulk = stage.caller.connect(&"bulk".parse()?).await?;
    let began = Instant::now();
    let received = loop {
        // The relay may hear of the new service a moment after the agent.
        match peers::exchange(bulk, up, BULK).await {
            Ok(digest) => break digest,
            Err(_) if began.elapsed() < Duration::from_secs(2) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error).context("the transfer was cut"),
        }
    };
    figures.rate = 2.0 * BULK as f64 / MIB / began.elapsed().as_secs_f64();
    same(
        "what was sent down and what arrived",
        &received,
        &peers::digest(down, BULK),
    )?;
    let arrived = arrived
        .recv()
        .await
        .context("the provider's side heard nothing")?;
    same(
        "what was sent up and what arrived",
        &arrived,
        &peers::digest(up, BULK),
    )
}

pub(super) async fn denied(stage: &Stage, figures: &mut Figures) -> anyhow::Result<()> {
    let tasks = Scope::new("demo");
    let server = peers::repeating_server(&tasks, b"never seen".to_vec()).await?;
    stage.provider.expose("vault", server).await?;
    let rule = policy::AddRequest {
        tenant: "default".parse()?,
        id: None,
        callers: vec!["caller".parse()?],
        services: vec!["vault".parse()?],
        destinations: Vec::new(),
        actions: BTreeSet::from([Action::Open]),
        conditions: Conditions::default(),
    };
    stage.admin::<policy::Deny>(&rule).await?;
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let began = Instant::now();
        let (code, said, bytes) = stage.caller.open_by_stdio("vault").await?;
        figures.refused = began.elapsed();
        ensure!(
            bytes.is_empty() || Instant::now() < deadline,
            "a denied open gave bytes"
        );
        if code == 3 && names(&said, Reason::PolicyDenied) && bytes.is_empty() {
            figures.refusal = said.lines().next().unwrap_or_default().to_owned();
            return Ok(());
        }
        // The rule reaches everybody within a second; until then the open may succeed.
        ensure!(
            Instant::now() < deadline,
            "the denied open ended with {code}: {said}"
        );
    }
}

pub(super) async fn blind_relay(stage: &Stage, figures: &mut Figures) -> anyhow::Result<()> {
    let tasks = Scope::new("demo");
    let secret: [u8; 32] = rand::random();
    let server = peers::repeating_server(&tasks, secret.to_vec()).await?;
    stage.provider.expose("secret", server).await?;
    let address = stage.caller.connect(&"secret".parse()?).await?;
    let mut first = secret;
    first[0] ^= 1; // so that only what arrives can make it equal
    until(
        "the secret never arrived",
        async || match TcpStream::connect(address).await {
            Ok(mut stream) => stream.read_exact(&mut first).await.is_ok(),
            Err(_) => false,
        },
    )
    .await?;
    same("the secret and what arrived", &first, &secret)?;
    let relay = stage.public.id().context("the relay is gone")?;
    let mut stream = TcpStream::connect(address).await?;
    let carry = async {
        let (mut buffer, mut carried) = (vec![0; 64 * 1024], 0);
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            carried += length as u64;
            figures.carried = carried;
        }
        bail!("the stream ended while the relay was searched")
    };
    // The search runs while the secret flows, so that it looks at buffers in use.
    let search = tokio::task::spawn_blocking(move || {
        let mut total = memory::Searched::default();
        for _ in 0..3 {
            let searched = memory::search(relay, &secret)?;
            total.bytes += searched.bytes;
            total.found += searched.found;
        }
        Ok::<_, anyhow::Error>((total, memory::search(std::process::id(), &secret)?))
    });
    let (searched, control) = tokio::select! {
        searched = search => searched??,
        ended = carry => ended?,
    };
    (figures.searched, figures.control) = (searched, control);
    ensure!(
        control.found > 0,
        "the search finds nothing where the secret is known to be"
    );
    ensure!(
        figures.carried > 0,
        "no secret flowed while the relay was searched"
    );
    ensure!(
        searched.found == 0,
        "the relay's memory holds the secret {} times",
        searched.found
    );
    Ok(())
}

pub(super) async fn revoked(stage: &Stage, figures: &mut Figures) -> anyhow::Result<()> {
    let tasks = Scope::new("demo");
    let server = peers::repeating_server(&tasks, b"still here ".to_vec()).await?;
    stage.provider.expose("talk", server).await?;
    let address = stage.caller.connect(&"talk".parse()?).await?;
    let mut talk = None;
    until("the talk never began", async || {
        talk = first_words(address).await.ok();
        talk.is_some()
    })
    .await?;
    let mut stream = talk.context("the talk never began")?;
    let request = agent::RevokeRequest {
        tenant: "default".parse()?,
        name: "caller".parse()?,
    };
    stage.admin::<agent::Revoke>(&request).await?;
    let began = Instant::now();
    tokio::time::timeout(Duration::from_secs(5), cut(&mut stream))
        .await
        .context("the stream was not cut in 5 s")??;
    figures.cut = began.elapsed();
    Ok(())
}

/// Reads on until the stream is reset; any other end is an error.
async fn cut(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => bail!("the cut stream looked like a clean end"),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error).context("the cut stream did not end with a reset"),
        }
    }
}

async fn first_words(address: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.read_exact(&mut [0; 11]).await?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::ReadBuf;

    use super::*;

    /// A stream that ends at once: so, or cleanly.
    struct Ending(Option<ErrorKind>);

    impl AsyncRead for Ending {
        fn poll_read(
            self: Pin<&mut Self>,
            _context: &mut Context<'_>,
            _buffer: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            Poll::Ready(self.0.map_or(Ok(()), |kind| Err(kind.into())))
        }
    }

    #[tokio::test]
    async fn only_a_reset_is_a_cut() {
        let reset = cut(&mut Ending(Some(ErrorKind::ConnectionReset))).await;
        assert!(reset.is_ok(), "{reset:?}");
        for end in [None, Some(ErrorKind::TimedOut), Some(ErrorKind::BrokenPipe)] {
            assert!(cut(&mut Ending(end)).await.is_err(), "{end:?}");
        }
    }
}
