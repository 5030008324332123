//! An agent with a valid certificate whose QUIC breaks the rules: its connection ends with a code, memory for it is
//! bounded, and others go on.

use super::raw_quic::{Raw, honest_parameters, parameter, varint};
use super::*;

const STREAM_WINDOW: u64 = 2 * 1024 * 1024;
const LARGEST: u64 = (1 << 62) - 1;
// RFC 9000 §20.1.
const FLOW_CONTROL: u64 = 0x03;
const STREAM_LIMIT: u64 = 0x04;
const STREAM_STATE: u64 = 0x05;
const FINAL_SIZE: u64 = 0x06;
const FRAME_ENCODING: u64 = 0x07;
const TRANSPORT_PARAMETER: u64 = 0x08;
const CONNECTION_ID_LIMIT: u64 = 0x09;
const VIOLATION: u64 = 0x0a;

fn frame(kind: u64, numbers: &[u64]) -> Vec<u8> {
    let mut bytes = varint(kind);
    numbers.iter().for_each(|it| bytes.extend(varint(*it)));
    bytes
}

/// A piece of a stream (RFC 9000 §19.8).
fn stream(id: u64, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame(0x0e, &[id, offset, bytes.len() as u64]);
    frame.extend(bytes);
    frame
}

fn last_of(id: u64, offset: u64) -> Vec<u8> {
    frame(0x0f, &[id, offset, 0])
}

fn connection_id(sequence: u64, retired: u64) -> Vec<u8> {
    let mut bytes = frame(0x18, &[sequence, retired]);
    let name = sequence.to_be_bytes();
    bytes.extend([&[8][..], &name, &name, &name].concat()); // its length, itself, and the token of a reset
    bytes
}

/// A client that has shaken hands, and our side of its connection.
async fn raw(net: &Net) -> (Raw, Connection) {
    let mut raw = Raw::new(net, honest_parameters()).await;
    let ((), far) = tokio::join!(raw.shake(), net.welcome());
    (raw, far.expect("welcomed"))
}

/// What no honest client says, and by which codes the connection may end for it.
fn violations() -> Vec<(&'static str, Vec<u8>, &'static [u64])> {
    let wide = (0..16).flat_map(|n| stream(4 * n, STREAM_WINDOW - 1, b"x"));
    let ids = (1..64).flat_map(|n| connection_id(n, 0));
    vec![
        (
            "a stream beyond the limit",
            stream(4 * 10_000, 0, b"x"),
            &[STREAM_LIMIT],
        ),
        (
            "the last stream of all",
            stream(LARGEST - 3, 0, b"x"),
            &[STREAM_LIMIT],
        ),
        (
            "a stream of one direction",
            stream(2, 0, b"x"),
            &[STREAM_LIMIT],
        ),
        ("a stream of ours", stream(1, 0, b"x"), &[STREAM_STATE]),
        (
            "beyond a stream's window",
            stream(0, STREAM_WINDOW, b"x"),
            &[FLOW_CONTROL],
        ),
        (
            "beyond the last offset",
            stream(0, LARGEST, b"xx"),
            &[FLOW_CONTROL, FRAME_ENCODING],
        ),
        (
            "beyond the connection's window",
            wide.collect(),
            &[FLOW_CONTROL],
        ),
        (
            "data behind the end",
            [last_of(0, 10), stream(0, 20, b"x")].concat(),
            &[FINAL_SIZE],
        ),
        (
            "two ends",
            [last_of(0, 10), last_of(0, 11)].concat(),
            &[FINAL_SIZE],
        ),
        (
            "a reset of another size",
            [stream(0, 20, b"x"), frame(0x04, &[0, 7, 3])].concat(),
            &[FINAL_SIZE],
        ),
        (
            "a frame of no kind",
            frame(0x3f, &[]),
            &[FRAME_ENCODING, VIOLATION],
        ),
        (
            "a frame that is cut off",
            frame(0x0e, &[0, 0, 16_000]),
            &[FRAME_ENCODING],
        ),
        ("the server's own word", frame(0x1e, &[]), &[VIOLATION]),
        (
            "a datagram nobody asked for",
            [&[0x30][..], b"x"].concat(),
            &[VIOLATION],
        ),
        (
            "an answer to what was never sent",
            frame(0x02, &[1 << 40, 0, 0, 0]),
            &[VIOLATION],
        ),
        (
            "an answer that counts below nothing",
            frame(0x02, &[1, 0, 0, 5]),
            &[FRAME_ENCODING, VIOLATION],
        ),
        (
            "more streams than there are",
            frame(0x12, &[(1 << 60) + 1]),
            &[FRAME_ENCODING, STREAM_LIMIT],
        ),
        (
            "a window for a stream that is not ours to write",
            frame(0x11, &[2, LARGEST]),
            &[STREAM_STATE, STREAM_LIMIT],
        ),
        (
            "a name that retires its successors",
            connection_id(1, 2),
            &[FRAME_ENCODING, VIOLATION],
        ),
        ("too many names", ids.collect(), &[CONNECTION_ID_LIMIT]),
    ]
}

// S40, S44: stream limits, windows, and numbers at the edges of what they may be.
#[tokio::test]
async fn whatever_breaks_the_rules_of_quic_ends_the_connection_with_its_code() {
    let net = Net::new(Settings::default());
    let honest = net.pair().await;
    for (what, frames, codes) in violations() {
        let (mut raw, far) = raw(&net).await;
        raw.say(&frames).await;
        let lost = tokio::time::timeout(SOON, far.closed()).await;
        let Ok(Lost::Transport { code }) = lost else {
            panic!("{what}: {lost:?}");
        };
        assert!(codes.contains(&code), "{what}: {code:#x}");
    }
    assert_eq!(
        (honest.0.close_reason(), honest.1.close_reason()),
        (None, None)
    );
}

// The other tests say nothing unless this client can also talk like anybody.
#[tokio::test]
async fn what_keeps_the_rules_is_read() {
    let net = Net::new(Settings::default());
    let (mut raw, far) = raw(&net).await;
    raw.say(&[stream(0, 0, b"by "), stream(0, 3, b"hand"), last_of(0, 7)].concat())
        .await;
    let mut accepted = far.accept_bi().await.expect("a stream");
    assert_eq!(all_of(&mut accepted.recv).await, Ok(b"by hand".to_vec()));
    raw.say(&frame(0x10, &[LARGEST])).await; // as wide as it goes
    raw.say(&stream(4, 0, b"on")).await;
    let mut accepted = far.accept_bi().await.expect("a stream");
    let read = accepted.recv.read_chunk(9).await;
    assert_eq!(read, Ok(Some(Bytes::from_static(b"on"))));
}

// S40, F46, RUSTSEC-2026-0185: bytes with a hole between each and the next cost memory per piece. The window would let
// a million of them in.
#[tokio::test]
async fn a_stream_of_holes_ends_its_connection_after_few_of_them() {
    let net = Net::new(Settings::default());
    let (mut raw, far) = raw(&net).await;
    let mut holes = 0;
    while far.close_reason().is_none() {
        let piece = |n: u64| stream(0, 1 + 2 * (holes + n), b"x");
        raw.say(&(0..100).flat_map(piece).collect::<Vec<_>>()).await;
        holes += 100;
        assert!(holes < 20_000, "holes without end");
        tokio::time::sleep(Duration::from_millis(2)).await; // for the far side to look
    }
    let lost = far.closed().await;
    assert!(matches!(lost, Lost::Transport { .. }), "{lost:?}");
    let other = net.pair().await;
    assert_eq!(other.1.close_reason(), None);
}

// F46: the windows are what one peer may fill, holes and all; behind them nothing is taken.
#[tokio::test]
async fn bytes_that_nobody_reads_are_taken_up_to_the_windows_and_no_further() {
    const CONNECTION_WINDOW: u64 = 16 * 1024 * 1024;
    let net = Net::new(Settings::default());
    let (mut raw, far) = raw(&net).await;
    // At the end of each stream's window, eight streams: as much as the connection's.
    for id in 0..CONNECTION_WINDOW / STREAM_WINDOW {
        raw.say(&stream(4 * id, STREAM_WINDOW - 1, b"x")).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(far.close_reason(), None);
    raw.say(&stream(4 * 20, 0, b"x")).await;
    let lost = tokio::time::timeout(SOON, far.closed()).await;
    assert_eq!(lost, Ok(Lost::Transport { code: FLOW_CONTROL }));
}

/// Says a word on a stream until it is heard: a flood before it may have cost the packet.
async fn is_heard(raw: &mut Raw, far: &Connection) {
    let heard = async {
        let accepted = far.accept_bi();
        tokio::pin!(accepted);
        loop {
            raw.say(&stream(0, 0, b"on")).await;
            tokio::select! { // order is free: the one that is ready is the only one
                accepted = &mut accepted => break accepted.expect("a stream"),
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    };
    let accepted = tokio::time::timeout(SOON, heard).await;
    let mut accepted = accepted.expect("the connection goes on");
    let read = accepted.recv.read_chunk(9).await;
    assert_eq!(read, Ok(Some(Bytes::from_static(b"on"))));
}

// S40: CVE-2023-49295, each PATH_CHALLENGE wants an answer, and this peer acknowledges none of them.
#[tokio::test]
async fn challenges_without_end_are_not_answered_without_end() {
    let net = Net::new(Settings::default());
    let honest = net.pair().await;
    let (mut raw, far) = raw(&net).await;
    let challenge = [&varint(0x1a)[..], &[7; 8]].concat();
    let (mut said, mut heard) = (0, 0);
    for _ in 0..200 {
        raw.say(&challenge.repeat(100)).await;
        said += 100 * challenge.len();
        heard += raw.heard();
        tokio::task::yield_now().await;
    }
    is_heard(&mut raw, &far).await;
    heard += raw.heard();
    assert!(heard < said, "{heard} bytes for {said}");
    assert_eq!(
        (honest.0.close_reason(), honest.1.close_reason()),
        (None, None)
    );
}

// S40: CVE-2025-59530, packets of every kind that come before their keys.
#[tokio::test]
async fn packets_that_nobody_can_read_yet_do_not_disturb_a_handshake() {
    let net = Net::new(Settings::default());
    let mut raw = Raw::new(&net, honest_parameters()).await;
    // RFC 9000 §17: 1-RTT, 0-RTT, Handshake, and an Initial whose keys are others.
    let early = [0x43, 0xd3, 0xe3, 0xc3].repeat(8);
    let ((), far) = tokio::join!(raw.shake_amid(&early), net.welcome());
    let far = far.expect("welcomed");
    is_heard(&mut raw, &far).await;
}

// S40: CVE-2026-31812, transport parameters that cannot be.
#[tokio::test]
async fn transport_parameters_that_cannot_be_end_the_handshake() {
    let net = Net::new(Settings::default());
    let with = |id, value: &[u8]| [honest_parameters(), parameter(id, value)].concat();
    let cases = [
        ("another name than in the packets", parameter(0x0f, &[1; 8])),
        ("no name", parameter(0x04, &varint(9))),
        ("packets too small for anything", with(0x03, &varint(1_199))),
        ("an exponent too large", with(0x0a, &varint(21))),
        ("a delay too large", with(0x0b, &varint(1 << 14))),
        ("too many streams", with(0x09, &varint((1 << 60) + 1))),
        ("too few names", with(0x0e, &varint(1))),
        ("the same twice", with(0x04, &varint(9))),
        ("a server's own", with(0x02, &[7; 16])),
        ("a number with more behind it", with(0x01, &[1, 2, 3])),
        (
            "a value that is cut off",
            [honest_parameters(), vec![0x01, 60]].concat(),
        ),
    ];
    for (what, parameters) in cases {
        let mut raw = Raw::new(&net, parameters).await;
        let shaking = async {
            raw.shake().await;
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! { // order is free: a client that is refused waits for ever
            outcome = net.welcome() => outcome,
            () = shaking => unreachable!("it waits for ever"),
        };
        let Err(ConnectError::Lost(Lost::Transport { code })) = outcome else {
            panic!("{what}: {outcome:?}");
        };
        assert_eq!(code, TRANSPORT_PARAMETER, "{what}");
    }
}
