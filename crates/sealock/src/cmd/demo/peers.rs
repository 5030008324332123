//! The programs on both sides of the demonstration: a web server, a bulk peer, a server that repeats itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use sealock_net::task::{Scope, Spawner};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Serves every connection to a new listener on loopback; says where it listens.
async fn serve<F, Served>(tasks: &Scope, serve: F) -> anyhow::Result<SocketAddr>
where
    F: Fn(TcpStream) -> Served + Send + Sync + 'static,
    Served: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .context("listening on loopback")?;
    let address = listener.local_addr()?;
    let spawner: Spawner = tasks.spawner();
    tasks.spawn("server", async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawner.spawn("served", serve(stream));
        }
    });
    Ok(address)
}

/// A web server with one page.
pub(super) async fn web_server(tasks: &Scope, page: String) -> anyhow::Result<SocketAddr> {
    let page = Bytes::from(page);
    serve(tasks, move |stream| {
        let page = page.clone();
        let answer = service_fn(move |_request: Request<hyper::body::Incoming>| {
            let response = Response::new(Full::new(page.clone()));
            std::future::ready(Ok::<_, std::convert::Infallible>(response))
        });
        async move {
            let connection = hyper::server::conn::http1::Builder::new();
            // A client that goes away in the middle is its own business.
            let _ended = connection
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        }
    })
    .await
}

/// A page that was fetched, and when its parts were there, counted from before the connection was made.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) body: Bytes,
    /// The head of the answer, and with it the first byte.
    pub(super) first: Duration,
    pub(super) whole: Duration,
}

/// Fetches `/` with an HTTP client.
pub(super) async fn fetch(address: SocketAddr) -> anyhow::Result<Fetched> {
    let began = Instant::now();
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/")
        .header("host", "demo")
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let first = began.elapsed();
        ensure!(
            response.status().is_success(),
            "the page was answered with {}",
            response.status()
        );
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Fetched {
            body,
            first,
            whole: began.elapsed(),
        })
    };
    tokio::select! {
        fetched = exchange => fetched,
        ended = connection => match ended {
            Ok(()) => bail!("the connection ended before the answer"),
            Err(error) => Err(error.into()),
        },
    }
}

/// Bytes that no other place of the stream repeats, made from a seed.
#[derive(Debug, Clone)]
struct Pattern(u64);

impl Pattern {
    /// xorshift64* (Vigna 2016): fast, and every eight bytes differ.
    fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let bytes = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            word.copy_from_slice(&bytes[..word.len()]);
        }
    }
}

const CHUNK: usize = 256 * 1024;

/// The SHA-256 of `length` bytes of the pattern of `seed`.
pub(super) fn digest(seed: u64, length: usize) -> [u8; 32] {
    let (mut pattern, mut hash, mut buffer) = (Pattern(seed), Sha256::new(), vec![0; CHUNK]);
    for _ in 0..length / CHUNK {
        pattern.fill(&mut buffer);
        hash.update(&buffer);
    }
    hash.finalize().into()
}

/// Connects, sends `length` bytes of the pattern of `seed` and takes in all that comes; gives the SHA-256 of that.
pub(super) async fn exchange(
    address: SocketAddr,
    seed: u64,
    length: usize,
) -> std::io::Result<[u8; 32]> {
    exchange_over(TcpStream::connect(address).await?, seed, length).await
}

async fn exchange_over(stream: TcpStream, seed: u64, length: usize) -> std::io::Result<[u8; 32]> {
    let (reader, writer) = stream.into_split();
    let (received, sent) = tokio::join!(take(reader), send(writer, seed, length));
    sent?;
    received
}

async fn send(
    mut writer: impl AsyncWrite + Unpin,
    seed: u64,
    length: usize,
) -> std::io::Result<()> {
    let (mut pattern, mut buffer) = (Pattern(seed), vec![0; CHUNK]);
    for _ in 0..length / CHUNK {
        pattern.fill(&mut buffer);
        writer.write_all(&buffer).await?;
    }
    writer.shutdown().await
}

async fn take(mut reader: impl AsyncRead + Unpin) -> std::io::Result<[u8; 32]> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        match reader.read(&mut buffer).await? {
            0 => return Ok(hash.finalize().into()),
            length => hash.update(&buffer[..length]),
        }
    }
}

/// The far side of [`exchange`]; each digest that it took goes to `digests`.
pub(super) async fn bulk_server(
    tasks: &Scope,
    seed: u64,
    length: usize,
    digests: tokio::sync::mpsc::Sender<[u8; 32]>,
) -> anyhow::Result<SocketAddr> {
    serve(tasks, move |stream| {
        let digests = digests.clone();
        async move {
            if let Ok(digest) = exchange_over(stream, seed, length).await {
                let _gone = digests.send(digest).await;
            }
        }
    })
    .await
}

/// Says the same bytes again and again until nobody listens.
pub(super) async fn repeating_server(tasks: &Scope, words: Vec<u8>) -> anyhow::Result<SocketAddr> {
    let words = words.repeat(64);
    serve(tasks, move |mut stream| {
        let words = words.clone();
        async move { while stream.write_all(&words).await.is_ok() {} }
    })
    .await
}
