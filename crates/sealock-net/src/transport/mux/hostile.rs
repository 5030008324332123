//! A peer that speaks the mux's frames by itself, and means no good: the connection ends with a reason, or memory for it
//! is bounded.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use super::word::WORD;
use super::*;
use crate::task::Scope;
use crate::transport::{ReadError, WriteError};

const DATA: u8 = 0;
const CREDIT: u8 = 1;
const PING: u8 = 2;
const NONE: u16 = 0;
const SYN: u16 = 1;
const ACK: u16 = 2;
const FIN: u16 = 4;
const RST: u16 = 8;
const WINDOW: usize = yamux::DEFAULT_CREDIT as usize;
/// What is on its way between the two.
const PIPE: usize = 64 * 1024;

fn header(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    let mut bytes = vec![0, kind];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(stream.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

fn data(flags: u16, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("short");
    [&header(DATA, flags, stream, length), body].concat()
}

/// The first frame of a stream, with its greeting.
fn opens(stream: u32) -> Vec<u8> {
    data(SYN, stream, &[0])
}

fn says(word: Word) -> Vec<u8> {
    data(NONE, 1, &word.encode())
}

/// A listening side of ours, and the raw frames of whoever dialled it.
struct Hostile {
    ours: Connection,
    writer: WriteHalf<DuplexStream>,
    reader: ReadHalf<DuplexStream>,
    _scope: Scope,
}

impl Hostile {
    fn new(streams: u32) -> Self {
        let settings = Settings {
            streams,
            ..Settings::default()
        };
        let scope = Scope::new("test");
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let facts = Facts {
            peer: None,
            alpn: None,
            remote: None,
        };
        let tasks = scope.spawner();
        let ours = start(Box::new(ours), Side::Listens, &settings, facts, &tasks);
        let (reader, writer) = tokio::io::split(theirs);
        Self {
            ours,
            writer,
            reader,
            _scope: scope,
        }
    }

    fn shared(&self) -> &Shared {
        &self.ours.0.shared
    }

    /// Sends as much of it as is taken.
    async fn send(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            let sent = self.writer.write_all(frame);
            match tokio::time::timeout(Duration::from_millis(100), sent).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// Waits until our side has looked at everything that was sent.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// Everything that our side said on the control stream, until it hung up.
    async fn heard(mut self) -> Vec<Word> {
        let mut bytes = Vec::new();
        self.reader.read_to_end(&mut bytes).await.expect("a pipe");
        let (mut words, mut rest) = (Vec::new(), &bytes[..]);
        while let Some((head, behind)) = rest.split_first_chunk::<12>() {
            let length = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
            let length = if head[1] == DATA { length as usize } else { 0 };
            let (body, behind) = behind.split_at(length.min(behind.len()));
            if head[4..8] == [0, 0, 0, 1] {
                words.extend_from_slice(body);
            }
            rest = behind;
        }
        let words = words.chunks_exact(WORD);
        words
            .filter_map(|word| Word::decode(word.try_into().expect("a word")))
            .collect()
    }
}

/// How our side ends, and whether the mux can still say so then.
struct Case {
    what: &'static str,
    frames: Vec<Vec<u8>>,
    is_told: bool,
}

fn case(what: &'static str, frames: impl Into<Vec<Vec<u8>>>) -> Case {
    Case {
        what,
        frames: frames.into(),
        is_told: true,
    }
}

fn untold(what: &'static str, frames: impl Into<Vec<Vec<u8>>>) -> Case {
    Case {
        is_told: false,
        ..case(what, frames)
    }
}

/// Of the frames themselves, behind the first one that opens the control stream.
fn bad_frames() -> Vec<Case> {
    let full = vec![7; 16 * 1024];
    let mut too_much = vec![opens(3)];
    too_much.extend(vec![data(NONE, 3, &full); WINDOW / full.len() + 1]);
    vec![
        case(
            "a window that begins too wide",
            [header(CREDIT, SYN, 3, u32::MAX)],
        ),
        case(
            "a window that grows too wide",
            [opens(3), header(CREDIT, NONE, 3, u32::MAX)],
        ),
        case(
            "a control stream's window that grows too wide",
            [header(CREDIT, NONE, 1, u32::MAX)],
        ),
        case(
            "a beginning that is longer than the window",
            [header(DATA, SYN, 3, 262_145)],
        ),
        case(
            "a body that is longer than anybody's",
            [opens(3), header(DATA, NONE, 3, 65_537)],
        ),
        case(
            "a body for a stream that is not there",
            [header(DATA, NONE, 99, 1 << 20)],
        ),
        untold("a giant", [header(DATA, NONE, 3, u32::MAX)]),
        case("more than the window", too_much),
        case("a stream twice", [opens(3), opens(3)]),
        case("a stream of ours", [opens(2)]),
        case("no stream at all", [opens(0)]),
        case("the last stream first", [opens(u32::MAX)]),
        case("one stream too many", [opens(3), opens(5), opens(7)]),
        untold("the end of the control stream", [header(DATA, FIN, 1, 0)]),
        untold("no control stream any more", [header(DATA, RST, 1, 0)]),
        untold("another version", [vec![1; 12]]),
        untold("another kind of frame", [header(4, NONE, 0, 0)]),
    ]
}

/// Of the words: S44, numbers at the edges of what they may be.
fn bad_words() -> Vec<Case> {
    let streams = |total| says(Word::Streams { total });
    let reason = Reason::Cancelled;
    vec![
        case("an unknown word", [data(NONE, 1, &[9; WORD])]),
        case("places that are taken back", [streams(5), streams(4)]),
        case("places beyond all measure", [streams(65_537)]),
        case("as many as fit 63 bits", [streams(i64::MAX as u64)]),
        case("one more than fit 63 bits", [streams(1 << 63)]),
        case("as many as fit 64 bits", [streams(u64::MAX)]),
        case(
            "many times what is allowed once",
            vec![says(Word::Reset { lane: 3, reason }); 5],
        ),
        case(
            "words about more streams than may come",
            [3, 5, 7, 9].map(|lane| says(Word::Reset { lane, reason })),
        ),
    ]
}

/// S37: what costs its sender 12 bytes each, and our side a look.
fn floods() -> Vec<Case> {
    let flood = |frame: Vec<u8>| vec![frame; 2_000];
    vec![
        case("empty data", flood(header(DATA, NONE, 1, 0))),
        case("empty data for nobody", flood(header(DATA, NONE, 1_001, 0))),
        case("questions", flood(header(PING, SYN, 0, 7))),
        case("answers to nothing", flood(header(PING, ACK, 0, 7))),
        case("crumbs of credit", flood(header(CREDIT, NONE, 1, 1))),
        case("no credit", flood(header(CREDIT, NONE, 1, 0))),
    ]
}

// S39, S37, S44, F44: the mux itself says so and goes on, so the connection has to end.
#[tokio::test(start_paused = true)]
async fn whatever_no_honest_peer_sends_ends_the_connection_and_is_named() {
    let cases = bad_frames().into_iter().chain(bad_words()).chain(floods());
    for Case {
        what,
        frames,
        is_told,
    } in cases
    {
        let mut hostile = Hostile::new(2);
        hostile.send(&[opens(1)]).await;
        hostile.send(&frames).await;
        let lost = tokio::time::timeout(Duration::from_secs(60), hostile.ours.closed()).await;
        assert_eq!(lost.ok(), Some(VIOLATION), "{what}");
        let words = hostile.heard().await;
        let named = Word::Close {
            reason: Reason::ProtocolViolation,
        };
        assert_eq!(words.last() == Some(&named), is_told, "{what}: {words:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_does_not_begin_with_its_control_stream_ends() {
    let mut hostile = Hostile::new(2);
    hostile.send(&[opens(3)]).await;
    assert_eq!(hostile.ours.closed().await, VIOLATION);
}

// S44: lengths at the edges. One that was passed already is a violation, one that never comes is waited for.
#[tokio::test(start_paused = true)]
async fn a_length_is_believed_only_when_it_is_the_length() {
    for (length, ends) in [
        (0, Some(Err(ReadError::Reset(Reason::ProtocolViolation)))),
        (1, Some(Ok(None))),
        (2, None),
        (i64::MAX as u64, None),
        (1 << 63, None),
        (u64::MAX, None),
    ] {
        let mut hostile = Hostile::new(2);
        let finished = says(Word::Finished { lane: 3, length });
        let byte = data(NONE, 3, b"x");
        hostile.send(&[opens(1), opens(3), byte]).await;
        let (_send, mut recv) = hostile.ours.accept_bi().await.expect("a stream");
        assert_eq!(recv.read_chunk(9).await, Ok(Some(Bytes::from_static(b"x"))));
        hostile.send(&[finished]).await;
        let read = tokio::time::timeout(Duration::from_millis(500), recv.read_chunk(9)).await;
        assert_eq!(read.ok(), ends, "{length}");
        assert_eq!(hostile.ours.close_reason(), None, "{length}");
    }
}

// S44: a question is answered as it was asked, and an answer that nobody asked for harms nothing.
#[tokio::test(start_paused = true)]
async fn questions_with_any_number_are_answered_with_it() {
    for nonce in [0, 1, i64::MAX as u64, 1 << 63, u64::MAX] {
        let mut hostile = Hostile::new(2);
        let frames = [
            opens(1),
            says(Word::Ping { nonce }),
            says(Word::Pong { nonce }),
        ];
        hostile.send(&frames).await;
        hostile.settle().await;
        assert_eq!(hostile.ours.close_reason(), None, "{nonce}");
        hostile.ours.close(Reason::Done);
        let words = hostile.heard().await;
        assert!(words.contains(&Word::Pong { nonce }), "{nonce}: {words:?}");
    }
}

// S39, CVE-2024-32984: frames of streams that are not there are not kept for one that may come.
#[tokio::test(start_paused = true)]
async fn bytes_for_streams_that_are_not_open_are_not_kept() {
    let mut hostile = Hostile::new(100);
    hostile.send(&[opens(1)]).await;
    for stream in (3..2_003).step_by(2) {
        hostile.send(&[data(NONE, stream, &[7; 4_096])]).await;
    }
    hostile.settle().await;
    assert_eq!(hostile.ours.close_reason(), None);
    assert_eq!(hostile.shared().kept.load(Ordering::Relaxed), 0);
    assert!(hostile.shared().lanes.lock().is_empty());
    hostile.send(&[opens(3), data(NONE, 3, b"y")]).await;
    let (_send, mut recv) = hostile.ours.accept_bi().await.expect("a stream");
    let read = recv.read_chunk(9).await;
    assert_eq!(
        read,
        Ok(Some(Bytes::from_static(b"y"))),
        "nothing of before"
    );
}

// F46: a window of the smallest frames would be many times as much memory. The stream ends, and no other with it.
#[tokio::test(start_paused = true)]
async fn a_stream_of_crumbs_that_nobody_reads_is_given_up_alone() {
    let mut hostile = Hostile::new(2);
    hostile.send(&[opens(1), opens(3), opens(5)]).await;
    let (_send, mut crumbs) = hostile.ours.accept_bi().await.expect("a stream");
    let (_other_send, mut other) = hostile.ours.accept_bi().await.expect("a stream");
    let many = data(NONE, 3, b"z").repeat(4_096);
    for _ in 0..KEPT_OF_ONE / 4_096 {
        hostile.send(std::slice::from_ref(&many)).await;
    }
    hostile.settle().await;
    assert_eq!(hostile.shared().kept.load(Ordering::Relaxed), KEPT_OF_ONE);
    hostile.send(&[data(NONE, 3, b"z")]).await;
    hostile.settle().await;
    let ended = crumbs.read_chunk(9).await;
    assert_eq!(ended, Err(ReadError::Reset(Reason::ProtocolViolation)));
    hostile.send(&[data(NONE, 5, b"y")]).await;
    let read = other.read_chunk(9).await;
    assert_eq!(read, Ok(Some(Bytes::from_static(b"y"))));
    assert_eq!(hostile.ours.close_reason(), None);
    drop((crumbs, _send));
    hostile.settle().await;
    assert_eq!(
        hostile.shared().kept.load(Ordering::Relaxed),
        0,
        "forgotten"
    );
}

// F46, S39: a peer that reads nothing and takes any amount costs us what is on its way, whatever its window says.
#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_nothing_is_not_written_for() {
    let mut hostile = Hostile::new(2);
    let wide = u32::MAX - yamux::DEFAULT_CREDIT;
    hostile
        .send(&[opens(1), header(CREDIT, SYN, 3, wide)])
        .await;
    let (mut send, _recv) = hostile.ours.accept_bi().await.expect("a stream");
    let chunk = Bytes::from_static(&[7; 16 * 1024]);
    let mut taken = 0;
    // It shows that it is alive all the while.
    let lasted = loop {
        hostile.send(&[says(Word::Ping { nonce: 1 })]).await;
        let mut rest = [chunk.clone()];
        let write = send.write_all_chunks(&mut rest);
        match tokio::time::timeout(Duration::from_millis(200), write).await {
            Ok(Ok(())) => taken += chunk.len(),
            Ok(Err(error)) => break Err(error),
            Err(_elapsed) => break Ok(()),
        }
        assert!(taken < 1 << 20, "the memory of it has no end");
    };
    assert!(taken > PIPE, "{taken}");
    assert_eq!(lasted, Ok::<(), WriteError>(()));
}

// F46, S35: streams that are opened, filled and refused while nothing of ours is read: each holds a window until our
// last words have left, so there must not be more and more of them.
#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_nothing_gets_no_new_places() {
    const STREAMS: u32 = 4;
    let mut hostile = Hostile::new(STREAMS);
    hostile.send(&[opens(1)]).await;
    let server = hostile.ours.clone();
    let scope = Scope::new("refuse");
    scope.spawn("refuse", async move {
        while let Ok(stream) = server.accept_bi().await {
            drop(stream);
        }
    });
    let mut opened = 0;
    for stream in (3..200_003).step_by(2) {
        let full = data(NONE, stream, &[7; 4_096]);
        hostile.send(&[opens(stream), full]).await;
        hostile.settle().await;
        if hostile.ours.close_reason().is_some() {
            break;
        }
        opened += 1;
        let held = hostile.shared().retired.lock().len();
        assert!(held <= STREAMS as usize, "{held} after {opened}");
    }
    // Its own count tells it nothing: one more than it was told is a violation.
    assert_eq!(hostile.ours.close_reason(), Some(VIOLATION));
    let words = hostile.shared().words.lock().len();
    assert!(words <= 6 * WORD * STREAMS as usize + WORD, "{words}");
}
