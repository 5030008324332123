//! Records between two of us, between us and the library's own connections, and from somebody who breaks them.

use std::time::Duration;

use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::identity::testing::{SOON, TestCa};
use crate::tls;

struct Ends {
    client: std::sync::Arc<ClientConfig>,
    server: std::sync::Arc<ServerConfig>,
    near: TcpStream,
    far: TcpStream,
}

impl Ends {
    async fn new() -> Self {
        let ca = TestCa::new("td");
        let trust = ca.trust_store();
        let client = tls::relay_client(&ca.identity("default/agent/a"), &trust);
        let server = tls::relay_tcp_listener(&ca.identity("relay/r"), &trust);
        let mut server = ServerConfig::clone(&server);
        server.enable_secret_extraction = true;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        Self {
            client,
            server: server.into(),
            near: near.expect("connected"),
            far: far.expect("accepted").0,
        }
    }

    async fn shake(self) -> (Records, Records) {
        let (near, far) = (self.near, self.far);
        let both = async { tokio::join!(connect(near, &self.client), accept(far, self.server)) };
        let (near, far) = in_time(Box::pin(both)).await;
        (near.expect("connected"), far.expect("accepted"))
    }
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("in time")
}

fn pattern(length: usize) -> Vec<u8> {
    let bytes = (0..length).map(|at| u8::try_from(at * 31 % 251).expect("a byte"));
    bytes.collect()
}

/// Writes all of it in pieces of many sizes, flushed now and then, and ends.
async fn say(mut pipe: impl AsyncWrite + Unpin, bytes: &[u8]) {
    let (mut rest, mut size) = (bytes, 1);
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(size.min(rest.len()));
        pipe.write_all(piece).await.expect("written");
        rest = behind;
        size = size * 7 % 100_003; // from 1 byte to more than is joined
        if size % 3 == 0 {
            pipe.flush().await.expect("flushed");
        }
    }
    pipe.shutdown().await.expect("ended");
}

async fn hear(mut pipe: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut heard = Vec::new();
    pipe.read_to_end(&mut heard).await.expect("a clean end");
    heard
}

async fn talk(near: impl AsyncRead + AsyncWrite, far: impl AsyncRead + AsyncWrite) {
    let bytes = pattern(3_000_000);
    let (near_reads, near_writes) = tokio::io::split(near);
    let (far_reads, far_writes) = tokio::io::split(far);
    let ((), (), down, up) = in_time(async {
        tokio::join!(
            say(near_writes, &bytes),
            say(far_writes, &bytes),
            hear(near_reads),
            hear(far_reads)
        )
    })
    .await;
    assert!(down == bytes && up == bytes, "bytes changed on their way");
}

#[tokio::test]
async fn whatever_is_written_arrives_and_ends_cleanly_both_ways() {
    let (near, far) = Ends::new().await.shake().await;
    assert_eq!(
        far.chain.as_ref().map(Vec::len),
        near.chain.as_ref().map(Vec::len)
    );
    assert_eq!(far.protocol.as_deref(), Some(tls::alpn::SESSION));
    talk(near, far).await;
}

#[tokio::test]
async fn the_librarys_own_server_and_client_understand_us() {
    let ends = Ends::new().await;
    let library = TlsAcceptor::from(ends.server).accept(ends.far);
    let (near, far) = tokio::join!(connect(ends.near, &ends.client), library);
    talk(near.expect("connected"), far.expect("accepted")).await;

    let ends = Ends::new().await;
    let library = TlsConnector::from(ends.client).connect(tls::unused_server_name(), ends.near);
    let (near, far) = tokio::join!(library, accept(ends.far, ends.server));
    talk(near.expect("connected"), far.expect("accepted")).await;
}

#[tokio::test]
async fn keys_are_renewed_by_either_side_without_losing_a_byte() {
    let (mut near, mut far) = Ends::new().await.shake().await;
    for round in 0..20 {
        near.write_all(&[round; 1_000]).await.expect("written");
        near.renew().expect("renewed");
        // Asks the other side to do the same, in the middle of what is being said.
        let asked = near.sealer.word(Kind::Handshake, KEY_UPDATE_AND_ANSWER);
        asked.expect("asked");
        near.sealer.key = Key::new(near.renewal.next_of_ours().expect("keys")).expect("a key");
        near.write_all(&[round; 1_000]).await.expect("written");
        near.flush().await.expect("flushed");
        let mut heard = [0; 2_000];
        in_time(far.read_exact(&mut heard)).await.expect("read");
        assert!(heard.iter().all(|byte| *byte == round));
        far.write_all(&[round; 500]).await.expect("written");
        far.flush().await.expect("flushed");
        in_time(near.read_exact(&mut heard[..500]))
            .await
            .expect("read");
    }
}

#[tokio::test]
async fn the_library_renews_keys_with_us() {
    let ends = Ends::new().await;
    let library = TlsAcceptor::from(ends.server).accept(ends.far);
    let (near, far) = tokio::join!(connect(ends.near, &ends.client), library);
    let (mut near, mut far) = (near.expect("connected"), far.expect("accepted"));
    let mut heard = [0; 9];
    for _ in 0..3 {
        far.get_mut().1.refresh_traffic_keys().expect("renewed");
        far.write_all(b"with keys").await.expect("written");
        far.flush().await.expect("flushed");
        in_time(near.read_exact(&mut heard)).await.expect("read");
        assert_eq!(&heard, b"with keys");
        near.renew().expect("renewed");
        near.write_all(b"with ours").await.expect("written");
        near.flush().await.expect("flushed");
        in_time(far.read_exact(&mut heard)).await.expect("read");
        assert_eq!(&heard, b"with ours");
    }
}

#[tokio::test]
async fn a_worn_key_is_renewed_before_the_next_byte() {
    let (mut near, mut far) = Ends::new().await.shake().await;
    // Both count on from the same number, as if so many records had been.
    near.sealer.key.wear(WORN);
    far.opener.key.wear(WORN);
    let mut heard = [0; 4];
    for _ in 0..3 {
        near.write_all(b"more").await.expect("written");
        near.flush().await.expect("flushed");
        in_time(far.read_exact(&mut heard)).await.expect("read");
        assert_eq!(&heard, b"more");
        assert!(near.sealer.key.uses() < 4, "{}", near.sealer.key.uses());
    }
}

fn tls_error(error: &io::Error) -> Error {
    let inner = error.get_ref().and_then(|it| it.downcast_ref::<Error>());
    inner.unwrap_or_else(|| panic!("{error}")).clone()
}

// C1: a byte that was changed, a record that nobody sealed, one that is too long: told by an alert, and over.
#[tokio::test]
async fn records_that_nobody_sealed_end_the_connection_and_are_answered() {
    let cases: [(&[u8], AlertDescription); 3] = [
        (
            &[
                23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
                20,
            ],
            AlertDescription::BadRecordMac,
        ),
        (&[23, 3, 3, 0xff, 0xff, 0], AlertDescription::RecordOverflow),
        (&[22, 3, 3, 0, 1, 0], AlertDescription::UnexpectedMessage),
    ];
    for (bytes, alert) in cases {
        let (mut near, mut far) = Ends::new().await.shake().await;
        near.socket.write_all(bytes).await.expect("written");
        let mut heard = [0; 16];
        let broken = in_time(far.read(&mut heard)).await.expect_err("no record");
        tls_error(&broken);
        let told = in_time(near.read(&mut heard)).await.expect_err("an alert");
        assert_eq!(tls_error(&told), Error::AlertReceived(alert));
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_is_never_a_clean_end() {
    let (mut near, mut far) = Ends::new().await.shake().await;
    near.write_all(b"half of it").await.expect("written");
    near.flush().await.expect("flushed");
    near.socket.shutdown().await.expect("cut");
    let mut heard = Vec::new();
    let cut = in_time(far.read_to_end(&mut heard)).await;
    assert_eq!(cut.expect_err("a cut").kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(heard, b"half of it");
}

// S37: what carries nothing is taken in bursts and not for ever.
#[tokio::test]
async fn a_flood_of_words_and_empty_records_is_cut_off() {
    for (kind, word) in [
        (Kind::Data, &b""[..]),
        (Kind::Handshake, KEY_UPDATE_OF_OURS),
    ] {
        let (mut near, mut far) = Ends::new().await.shake().await;
        let flood = async {
            for sent in 0..20_000 {
                near.sealer.word(kind, word).expect("sealed");
                if kind == Kind::Handshake {
                    let next = near.renewal.next_of_ours().expect("keys");
                    near.sealer.key = Key::new(next).expect("a key");
                }
                if near.flush().await.is_err() {
                    return sent;
                }
            }
            20_000
        };
        let heard = async {
            let outcome = far.read(&mut [0; 16]).await;
            drop(far);
            outcome
        };
        let (_sent, heard) = in_time(async { tokio::join!(flood, heard) }).await;
        let error = tls_error(&heard.expect_err("a flood"));
        assert_eq!(error, PeerMisbehaved::TooManyEmptyFragments.into());
    }
}

// Nobody is kept waiting by records that are not full, and no buffer is kept by a connection that idles.
#[tokio::test]
async fn a_connection_that_idles_keeps_no_read_buffer() {
    let (mut near, mut far) = Ends::new().await.shake().await;
    let mut heard = [0; 5];
    for _ in 0..2 {
        near.write_all(b"hello").await.expect("written");
        near.flush().await.expect("flushed");
        in_time(far.read_exact(&mut heard)).await.expect("read");
        let more = tokio::time::timeout(Duration::from_millis(1), far.read(&mut heard));
        more.await.expect_err("nothing more");
    }
    assert_eq!(far.opener.buffer.capacity(), 0);
}
