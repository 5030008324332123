//! Peers that speak HTTP/2 by themselves at the controller's door, and mean no good: their connection ends, or memory for
//! it is bounded, and honest nodes are served meanwhile.

use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// RFC 9113 §4.1.
fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// A header without compression, in HPACK (RFC 7541 §6.2.2).
fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        // A prefix of seven bits (RFC 7541 §5.1).
        let mut length = text.len();
        if length < 127 {
            bytes.push(u8::try_from(length).expect("short"));
        } else {
            bytes.push(127);
            length -= 127;
            while length >= 128 {
                bytes.push(u8::try_from(length % 128).expect("a rest") | 128);
                length /= 128;
            }
            bytes.push(u8::try_from(length).expect("a rest"));
        }
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// The head of a call, as a node sends it.
fn head() -> Vec<u8> {
    let mut bytes = vec![0x83, 0x86]; // POST, http: RFC 7541 appendix A
    bytes.extend(field(":path", "/sealock.node.v1.Node/Nothing"));
    bytes.extend(field(":authority", "controller"));
    bytes.extend(field("content-type", "application/grpc"));
    bytes.extend(field("te", "trailers"));
    bytes
}

/// A raw peer behind TLS, which has shown no certificate.
async fn raw(running: &Running) -> TlsStream<TcpStream> {
    let token = running.token(CreateRequest::default()).await;
    let connector = TlsConnector::from(enrol_client(token.pin));
    let stream = TcpStream::connect(running.handle.listen())
        .await
        .expect("listening");
    let name = "controller".try_into().expect("a name");
    let mut stream = connector.connect(name, stream).await.expect("connected");
    stream.write_all(PREFACE).await.expect("sent");
    stream
        .write_all(&frame(SETTINGS, 0, 0, &[]))
        .await
        .expect("sent");
    stream
}

/// Writes for as long as it is taken and reads what is answered; says how many bytes went in, and what came.
async fn pour(stream: TlsStream<TcpStream>, bytes: &[u8]) -> (usize, Vec<u8>) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        let mut sent = 0;
        for piece in bytes.chunks(16 * 1024) {
            if writer.write_all(piece).await.is_err() || writer.flush().await.is_err() {
                break;
            }
            sent += piece.len();
        }
        sent
    };
    let mut heard = Vec::new();
    let read = async {
        reader.read_to_end(&mut heard).await.ok(); // a reset is an end too
    };
    let both = async { tokio::join!(write, read).0 };
    let sent = timeout(SOON * 4, both).await.expect("it is shown out");
    (sent, heard)
}

/// The error codes of the farewells among these frames (RFC 9113 §6.8).
fn farewells(mut bytes: &[u8]) -> Vec<u32> {
    let mut codes = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let Some((body, rest)) = rest.split_at_checked(length) else {
            break;
        };
        if head[3] == GOAWAY
            && let Some(code) = body[4..].first_chunk()
        {
            codes.push(u32::from_be_bytes(*code));
        }
        bytes = rest;
    }
    codes
}

/// What floods the connection so that it has to end.
fn floods() -> Vec<(&'static str, Vec<u8>)> {
    let streams = (0..20_000u32).map(|n| 2 * n + 1);
    let reset = |stream| {
        let code = 8u32.to_be_bytes(); // CANCEL
        frame(RST_STREAM, 0, stream, &code)
    };
    let rapid: Vec<u8> = streams
        .clone()
        .flat_map(|n| [frame(HEADERS, END_HEADERS, n, &head()), reset(n)].concat())
        .collect();
    // Our own reset, made by a window that may not grow by nothing (RFC 9113 §6.9).
    let made_to: Vec<u8> = streams
        .flat_map(|n| {
            let zero = frame(WINDOW_UPDATE, 0, n, &[0; 4]);
            [frame(HEADERS, END_HEADERS, n, &head()), zero].concat()
        })
        .collect();
    let open = frame(HEADERS, END_HEADERS, 1, &head());
    let empty = frame(DATA, 0, 1, &[]);
    let begins = frame(HEADERS, 0, 1, &head());
    let goes_on = frame(CONTINUATION, 0, 1, &field("x", "y"));
    let nothing = frame(CONTINUATION, 0, 1, &[]);
    vec![
        ("S35, streams that are given up at once", rapid),
        ("S35, streams that we are made to give up", made_to),
        (
            "S36, a head that never ends",
            [&begins[..], &goes_on.repeat(50_000)].concat(),
        ),
        (
            "S36, a head of nothing",
            [&begins[..], &nothing.repeat(50_000)].concat(),
        ),
        (
            "S37, data without bytes",
            [&open[..], &empty.repeat(100_000)].concat(),
        ),
    ]
}

// S35, S36, S37, F44: the limits of the library that this door sets, each met by its flood.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_frames_ends_its_connection_and_no_other() {
    let running = started(|_| ()).await;
    let honest = running.join("web-1").await;
    for (what, flood) in floods() {
        let (sent, heard) = pour(raw(&running).await, &flood).await;
        let codes = farewells(&heard);
        assert!(
            sent < flood.len() || codes.iter().any(|code| *code != 0),
            "{what}: all of {sent} bytes were taken, {codes:?}"
        );
        let watched = honest.client.watch(&BTreeMap::new()).await;
        assert!(watched.is_ok(), "{what}");
    }
}

// S38, S30, CVE-2026-47774: what is small on the wire and large behind HPACK, and what is large on both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_beyond_the_limit_reach_nobody() {
    let running = started(|_| ()).await;
    let honest = running.join("web-1").await;
    // One long field is put into the table and named again a byte at a time (RFC 7541 §6.2.1, §6.1).
    let mut bomb = head();
    let mut kept = field("bomb", &"b".repeat(3_500));
    kept[0] = 0x40;
    bomb.extend(kept);
    bomb.extend([0xbe; 10_000]);
    let mut long = head();
    long.extend(field("long", &"l".repeat(1 << 20)));
    let mut many = head();
    many.extend((0..10_000).flat_map(|n| field(&format!("h{n}"), "v")));
    for (what, head) in [
        ("a bomb", bomb),
        ("a million bytes", long),
        ("ten thousand", many),
    ] {
        let mut pieces = head.chunks(16 * 1024);
        let first = pieces.next().expect("a head");
        let mut frames = frame(HEADERS, 0, 1, first);
        for piece in pieces {
            frames.extend(frame(CONTINUATION, 0, 1, piece));
        }
        frames.extend(frame(CONTINUATION, END_HEADERS, 1, &[]));
        // Afterwards a violation, so that the connection ends if it has not.
        frames.extend(frame(CONTINUATION, 0, 1, &[]));
        let (_sent, heard) = pour(raw(&running).await, &frames).await;
        let is_served = heard.windows(11).any(|it| it == b"grpc-status");
        assert!(!is_served, "{what} reached the service");
        let watched = honest.client.watch(&BTreeMap::new()).await;
        assert!(watched.is_ok(), "{what}");
    }
}

// F44: who asks without end and reads no answer is not read either, so nothing piles up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_of_a_peer_that_reads_no_answer_are_not_read_for_ever() {
    let running = started(|_| ()).await;
    let honest = running.join("web-1").await;
    for (what, question) in [
        ("settings", frame(SETTINGS, 0, 0, &[])),
        ("pings", frame(PING, 0, 0, &[7; 8])),
    ] {
        let mut stream = raw(&running).await;
        let many = question.repeat(1_000);
        let mut sent = 0;
        let stalled = loop {
            let write = async {
                stream.write_all(&many).await?;
                stream.flush().await
            };
            match timeout(Duration::from_millis(700), write).await {
                Ok(Ok(())) => sent += many.len(),
                Ok(Err(_)) | Err(_) => break true,
            }
            if sent > 64 << 20 {
                break false;
            }
        };
        assert!(stalled, "{what}: {sent} bytes were taken");
        let watched = honest.client.watch(&BTreeMap::new()).await;
        assert!(watched.is_ok(), "{what}");
    }
}

mod long {
    use super::*;

    // S28: the deadline is for the whole handshake, however a peer doles it out. Ten seconds, and a slow machine.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_handshake_that_drips_is_ended() {
        let running = started(|_| ()).await;
        let mut stream = TcpStream::connect(running.handle.listen())
            .await
            .expect("listening");
        let drip = async {
            // A record that promises more than comes.
            for byte in [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]
                .into_iter()
                .chain([7; 400])
            {
                if stream.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            panic!("it was let say everything");
        };
        timeout(Duration::from_secs(60), drip).await.expect("ended");
        running.join("web-1").await;
    }
}
