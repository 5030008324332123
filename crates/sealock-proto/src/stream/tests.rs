//! Single rules of the stream, one by one; the simulator tests how they work together.

use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use sealock_core::reason::Reason;

use super::{
    Ack, Attach, AttachError, DecodeError, Decoder, Epoch, Event, Frame, MAX_DATA, Output, Proof,
    Read, Role, Stream, StreamConfig, Violation, WriteError,
};

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant has no other beginning; only differences to it are used"
)]
fn origin() -> Instant {
    Instant::now()
}

fn config() -> StreamConfig {
    StreamConfig {
        initial_window: 1_000,
        max_window: 64_000,
        early: 100,
        ..StreamConfig::default()
    }
}

/// Two streams on a leg that delivers at once.
struct Pair {
    now: Instant,
    opener: Stream,
    accepter: Stream,
    events: [Vec<Event>; 2],
}

impl Pair {
    fn new(config: StreamConfig) -> Self {
        let now = origin();
        Self {
            now,
            opener: Stream::new(now, Role::Opener, config),
            accepter: Stream::new(now, Role::Accepter, config),
            events: [Vec::new(), Vec::new()],
        }
    }

    fn attached() -> Self {
        let mut pair = Self::new(config());
        pair.attach();
        pair.run();
        pair
    }

    fn attach(&mut self) {
        self.opener.attach(self.now, None).expect("an opener");
    }

    fn cut(&mut self) {
        let epoch = self.opener.epoch();
        self.opener.detach(self.now, epoch);
        self.accepter.detach(self.now, epoch);
    }

    fn advance(&mut self, time: Duration) {
        self.now += time;
        self.opener.handle_timeout(self.now);
        self.accepter.handle_timeout(self.now);
    }

    // Until both have nothing to say.
    fn run(&mut self) {
        loop {
            let moved = drain(&mut self.opener, &mut self.events[0]);
            for frame in &moved {
                deliver(self.now, self.opener.epoch(), &mut self.accepter, frame);
            }
            let answered = drain(&mut self.accepter, &mut self.events[1]);
            for frame in &answered {
                deliver(self.now, self.accepter.epoch(), &mut self.opener, frame);
            }
            if moved.is_empty() && answered.is_empty() {
                return;
            }
        }
    }
}

fn deliver(now: Instant, epoch: Epoch, to: &mut Stream, frame: &Frame) {
    match frame {
        Frame::Attach(attach) if to.epoch() < epoch => {
            to.accept_attach(now, attach, None).expect("an honest leg");
        }
        Frame::Attach(_)
        | Frame::Data { .. }
        | Frame::Ack(_)
        | Frame::Fin { .. }
        | Frame::Reset { .. }
        | Frame::Closed { .. }
        | Frame::GoAway => {
            to.handle_frame(now, epoch, frame.clone())
                .expect("an honest frame");
        }
    }
}

fn drain(stream: &mut Stream, events: &mut Vec<Event>) -> Vec<Frame> {
    let mut frames = Vec::new();
    loop {
        match stream.poll_output() {
            Output::Send(frame) => frames.push(frame),
            Output::Event(event) => events.push(event),
            Output::Wait(_) => return frames,
        }
    }
}

fn write(stream: &mut Stream, bytes: &'static [u8]) {
    let mut bytes = Bytes::from_static(bytes);
    stream.write(&mut bytes).expect("an open stream");
    assert!(bytes.is_empty(), "there is room");
}

fn read_all(now: Instant, stream: &mut Stream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Read::Data(bytes) = stream.read(now, usize::MAX) {
        all.extend_from_slice(&bytes);
    }
    all
}

#[test]
fn an_idle_stream_is_small() {
    let inline = size_of::<Stream>();
    assert!(inline <= 640, "a Stream has {inline} bytes inline");
    let mut pair = Pair::attached();
    for _ in 0..50 {
        write(&mut pair.opener, &[1; 20]);
        pair.run();
    }
    assert_eq!(read_all(pair.now, &mut pair.accepter).len(), 1_000);
    pair.advance(config().ack_delay);
    pair.run();
    for stream in [&pair.opener, &pair.accepter] {
        let held = stream.progress_report();
        assert_eq!((held.replay_bytes, held.unread_bytes), (0, 0));
        let total = inline + stream.heap();
        assert!(
            total < 1_024,
            "an idle stream has {total} bytes after a burst"
        );
    }
}

#[test]
fn the_first_bytes_go_with_the_attach_and_need_no_round_trip() {
    let mut pair = Pair::new(config());
    write(&mut pair.opener, b"hello");
    pair.attach();
    let frames = drain(&mut pair.opener, &mut Vec::new());
    assert!(matches!(
        frames.as_slice(),
        [Frame::Attach(_), Frame::Data { offset: 0, .. }]
    ));
}

#[test]
fn both_directions_end_on_their_own_and_both_sides_say_done() {
    let mut pair = Pair::attached();
    write(&mut pair.opener, b"question");
    pair.opener.finish().expect("open");
    pair.run();
    assert_eq!(read_all(pair.now, &mut pair.accepter), b"question");
    assert_eq!(pair.accepter.read(pair.now, 1), Read::End);
    pair.run();
    assert_eq!(pair.opener.verdict(), None, "half-closed");
    write(&mut pair.accepter, b"answer");
    pair.accepter.finish().expect("open");
    pair.run();
    assert_eq!(read_all(pair.now, &mut pair.opener), b"answer");
    pair.run();
    for events in &pair.events {
        assert_eq!(
            &events[events.len() - 2..],
            [Event::Closed(Ok(())), Event::Released]
        );
    }
}

// Lesson: a clean end is only what the receiver has read to the end of.
#[test]
fn an_end_is_not_acknowledged_before_the_application_has_read_up_to_it() {
    let mut pair = Pair::attached();
    write(&mut pair.opener, b"unread");
    pair.opener.finish().expect("open");
    pair.accepter.finish().expect("open");
    pair.run();
    pair.advance(Duration::from_secs(60));
    pair.run();
    assert_eq!(pair.opener.verdict(), None);
    assert_eq!(read_all(pair.now, &mut pair.accepter), b"unread");
    pair.run();
    assert_eq!(pair.opener.verdict(), Some(Ok(())));
    assert_eq!(pair.accepter.verdict(), Some(Ok(())));
}

#[test]
fn a_reset_overtakes_data_and_both_sides_give_its_reason() {
    let mut pair = Pair::attached();
    write(&mut pair.opener, b"never read");
    pair.run();
    pair.opener.reset(pair.now, Reason::PolicyRevoked);
    pair.run();
    let broken = Read::Broken(Reason::PolicyRevoked);
    assert_eq!(pair.accepter.read(pair.now, 1), broken);
    assert_eq!(pair.opener.read(pair.now, 1), broken);
    let mut more = Bytes::from_static(b"x");
    assert_eq!(
        pair.accepter.write(&mut more),
        Err(WriteError::Ended(Reason::PolicyRevoked))
    );
    for stream in [&pair.opener, &pair.accepter] {
        assert_eq!(stream.verdict(), Some(Err(Reason::PolicyRevoked)));
        assert!(stream.is_released());
    }
}

#[test]
fn of_two_resets_that_cross_the_openers_wins_on_both_sides() {
    let mut pair = Pair::attached();
    pair.opener.reset(pair.now, Reason::NearReset);
    pair.accepter.reset(pair.now, Reason::FarReset);
    pair.run();
    assert_eq!(pair.opener.verdict(), Some(Err(Reason::NearReset)));
    assert_eq!(pair.accepter.verdict(), Some(Err(Reason::NearReset)));
}

#[test]
fn a_reset_while_parked_is_told_on_the_next_leg() {
    let mut pair = Pair::attached();
    pair.cut();
    pair.accepter.reset(pair.now, Reason::FarReset);
    pair.attach();
    pair.run();
    assert_eq!(pair.opener.verdict(), Some(Err(Reason::FarReset)));
    assert!(pair.accepter.is_released());
}

// F15: 120.000 s, not less, and the same on both sides.
#[test]
fn a_parked_stream_expires_at_the_end_of_the_window_on_both_sides() {
    let mut pair = Pair::attached();
    pair.cut();
    pair.advance(Duration::from_millis(119_999));
    assert_eq!(pair.opener.verdict(), None);
    assert_eq!(
        pair.opener.next_timeout(),
        Some(pair.now + Duration::from_millis(1))
    );
    pair.advance(Duration::from_millis(1));
    pair.run();
    for (stream, events) in [
        (&pair.opener, &pair.events[0]),
        (&pair.accepter, &pair.events[1]),
    ] {
        assert_eq!(stream.verdict(), Some(Err(Reason::ResumeExpired)));
        assert_eq!(events.last(), Some(&Event::Released));
        assert_eq!(stream.next_timeout(), None);
    }
}

#[test]
fn nothing_is_told_behind_the_release() {
    let mut pair = Pair::attached();
    let epoch = pair.opener.epoch();
    pair.opener.reset(pair.now, Reason::Cancelled);
    pair.run();
    assert!(pair.opener.is_released());
    pair.events[0].clear();
    pair.opener.detach(pair.now, epoch);
    pair.run();
    assert_eq!(pair.events[0], []);
}

#[test]
fn two_resets_that_never_meet_expire_on_both_sides() {
    let mut pair = Pair::attached();
    pair.cut();
    pair.opener.reset(pair.now, Reason::NearReset);
    pair.accepter.reset(pair.now, Reason::FarReset);
    pair.advance(Duration::from_secs(120));
    for stream in [&pair.opener, &pair.accepter] {
        assert_eq!(stream.verdict(), Some(Err(Reason::ResumeExpired)));
        assert!(stream.is_released());
    }
}

#[test]
fn legs_that_never_answer_do_not_put_the_end_off() {
    let mut pair = Pair::attached();
    pair.cut();
    for _ in 0..12 {
        pair.attach();
        pair.now += Duration::from_secs(10);
        pair.opener.detach(pair.now, pair.opener.epoch());
    }
    pair.opener.handle_timeout(pair.now);
    assert_eq!(pair.opener.verdict(), Some(Err(Reason::ResumeExpired)));
}

#[test]
fn an_opener_takes_the_word_of_an_accepter_that_has_forgotten() {
    let mut pair = Pair::attached();
    pair.cut();
    let epoch = pair.opener.attach(pair.now, None).expect("parked");
    let verdict = Reason::ResumeExpired;
    pair.opener
        .handle_frame(pair.now, epoch, Frame::Closed { verdict })
        .expect("lawful as a first frame");
    assert_eq!(pair.opener.verdict(), Some(Err(verdict)));
    drain(&mut pair.opener, &mut Vec::new());
    assert!(pair.opener.is_released());
}

#[test]
fn a_driver_without_resume_fails_a_stream_for_a_reason_of_its_own() {
    let mut pair = Pair::attached();
    pair.cut();
    pair.opener.fail(pair.now, Reason::SessionLost);
    drain(&mut pair.opener, &mut pair.events[0]);
    let last = &pair.events[0][pair.events[0].len() - 2..];
    assert_eq!(
        last,
        [Event::Closed(Err(Reason::SessionLost)), Event::Released]
    );
}

// C6, S17: an epoch is good once, and the live leg does not notice.
#[test]
fn a_leg_of_an_old_epoch_is_refused_and_the_live_one_goes_on() {
    let mut pair = Pair::attached();
    let replayed = Attach {
        epoch: Epoch(1),
        received: 0,
        delivered: 0,
        limit: 1_000,
        end_delivered: false,
        proof: Some(Proof::from_bytes([0; 32])),
    };
    for epoch in [0, 1] {
        let epoch = Epoch(epoch);
        let attach = Attach {
            epoch,
            ..replayed.clone()
        };
        let refused = pair.accepter.accept_attach(pair.now, &attach, None);
        assert_eq!(refused, Err(AttachError::Stale));
    }
    write(&mut pair.opener, b"goes on");
    pair.run();
    assert_eq!(read_all(pair.now, &mut pair.accepter), b"goes on");
}

#[test]
fn a_frame_or_a_death_of_an_older_leg_changes_nothing() {
    let mut pair = Pair::attached();
    let old = pair.opener.epoch();
    pair.attach();
    pair.run();
    let before = pair.accepter.progress_report();
    let bytes = Bytes::from_static(b"late");
    let late = [
        Frame::Data { offset: 0, bytes },
        Frame::Fin { offset: 0 },
        Frame::Reset {
            reason: Reason::FarReset,
        },
    ];
    for frame in late {
        pair.accepter
            .handle_frame(pair.now, old, frame)
            .expect("fenced");
    }
    pair.accepter.detach(pair.now, old);
    assert_eq!(pair.accepter.progress_report(), before);
    assert!(pair.accepter.is_attached());
}

#[test]
fn each_side_keeps_to_its_role() {
    let mut pair = Pair::attached();
    assert_eq!(
        pair.accepter.attach(pair.now, None),
        Err(AttachError::WrongRole)
    );
    let attach = Attach {
        epoch: Epoch(9),
        received: 0,
        delivered: 0,
        limit: 0,
        end_delivered: false,
        proof: None,
    };
    let refused = pair.opener.accept_attach(pair.now, &attach, None);
    assert_eq!(refused, Err(AttachError::WrongRole));
}

// Lesson 08, K8.
#[test]
fn a_full_replay_buffer_takes_no_more_until_the_peer_has_read() {
    let mut pair = Pair::attached();
    let mut bytes = Bytes::from(vec![7; 5_000]);
    assert_eq!(pair.opener.write(&mut bytes), Ok(1_000));
    pair.run();
    assert_eq!(pair.opener.writable(), 0);
    assert!(!pair.events[0].contains(&Event::Writable));
    assert_eq!(read_all(pair.now, &mut pair.accepter).len(), 1_000);
    pair.run();
    assert!(pair.events[0].contains(&Event::Writable));
    assert!(pair.opener.writable() >= 1_000);
}

#[test]
fn tiny_writes_do_not_fill_the_memory_with_chunks() {
    let mut pair = Pair::new(StreamConfig::default());
    let mut taken = 0;
    while pair.opener.write(&mut Bytes::from_static(b"x")) == Ok(1) {
        taken += 1;
    }
    assert!(taken < 2_000, "{taken} chunks");
}

#[test]
fn acknowledgements_come_by_quarters_of_the_window_or_after_a_delay() {
    let mut pair = Pair::attached();
    let mut acks = 0;
    for _ in 0..20 {
        write(&mut pair.opener, &[1; 25]);
        pair.run();
        assert_eq!(read_all(pair.now, &mut pair.accepter).len(), 25);
        let frames = drain(&mut pair.accepter, &mut Vec::new());
        acks += frames.len();
        for frame in frames {
            deliver(pair.now, Epoch(1), &mut pair.opener, &frame);
        }
    }
    assert_eq!(acks, 2, "500 bytes are two quarters of 1000");
    write(&mut pair.opener, b"rest");
    pair.run();
    read_all(pair.now, &mut pair.accepter);
    pair.run();
    assert_eq!(pair.opener.progress_report().acked, 500);
    pair.advance(config().ack_delay);
    pair.run();
    assert_eq!(pair.opener.progress_report().acked, 504);
}

#[test]
fn the_window_grows_with_a_fast_reader_on_a_long_way_up_to_its_bound() {
    let mut pair = Pair::new(config());
    pair.attach();
    for _ in 0..60 {
        // One way of 50 ms each.
        let frames = drain(&mut pair.opener, &mut Vec::new());
        pair.now += Duration::from_millis(50);
        for frame in &frames {
            deliver(pair.now, Epoch(1), &mut pair.accepter, frame);
        }
        read_all(pair.now, &mut pair.accepter);
        let frames = drain(&mut pair.accepter, &mut Vec::new());
        pair.now += Duration::from_millis(50);
        for frame in &frames {
            deliver(pair.now, Epoch(1), &mut pair.opener, frame);
        }
        let mut bytes = Bytes::from(vec![1; 64_000]);
        pair.opener.write(&mut bytes).expect("open");
    }
    assert_eq!(pair.accepter.progress_report().window, 64_000);
}

#[test]
fn the_window_stays_small_with_a_slow_reader() {
    let mut pair = Pair::attached();
    for _ in 0..100 {
        let mut bytes = Bytes::from(vec![1; 1_000]);
        pair.opener.write(&mut bytes).expect("open");
        pair.run();
        pair.advance(Duration::from_secs(1));
        let read = pair.accepter.read(pair.now, 300);
        assert!(matches!(read, Read::Data(_)));
    }
    // One round trip that was taken for longer than it is may double it once.
    assert!(pair.accepter.progress_report().window <= 2_000);
}

fn ack(delivered: u64, limit: u64, end_delivered: bool) -> Frame {
    Frame::Ack(Ack {
        delivered,
        limit,
        end_delivered,
    })
}

fn data(offset: u64, length: usize) -> Frame {
    let bytes = Bytes::from(vec![0; length]);
    Frame::Data { offset, bytes }
}

// F45, lesson 07. The opener has sent 10 bytes, of which 4 are acknowledged, and has received 5.
#[test]
fn every_broken_frame_ends_the_stream_on_both_sides_as_a_violation() {
    let attach = Frame::Attach(Attach {
        epoch: Epoch(1),
        received: 0,
        delivered: 0,
        limit: 1_000,
        end_delivered: false,
        proof: None,
    });
    let closed = Frame::Closed {
        verdict: Reason::Done,
    };
    let cases = [
        (ack(11, 2_000, false), Violation::AckBeyondSent),
        (ack(1 << 61, 1 << 61, false), Violation::AckBeyondSent),
        (ack(3, 2_000, false), Violation::AckBackwards),
        (ack(4, 999, false), Violation::LimitBackwards),
        (ack(10, 2_000, true), Violation::EndNotSent),
        (data(6, 1), Violation::Gap),
        (data(5, 996), Violation::BeyondLimit),
        (Frame::Fin { offset: 6 }, Violation::Gap),
        (Frame::Fin { offset: 4 }, Violation::FinMoved),
        (attach, Violation::StrayAttach),
        (closed, Violation::ClosedEarly),
    ];
    for (frame, violation) in cases {
        let mut pair = Pair::attached();
        write(&mut pair.opener, b"0123456789");
        write(&mut pair.accepter, b"01234");
        pair.run();
        pair.accepter.read(pair.now, 4);
        pair.advance(config().ack_delay);
        pair.run();
        let result = pair.opener.handle_frame(pair.now, Epoch(1), frame.clone());
        assert_eq!(result, Err(violation), "{frame:?}");
        pair.run();
        for stream in [&pair.opener, &pair.accepter] {
            let verdict = Some(Err(Reason::ProtocolViolation));
            assert_eq!(stream.verdict(), verdict, "{frame:?}");
        }
    }
}

#[test]
fn an_end_cannot_move_and_nothing_comes_behind_it() {
    for (frame, violation) in [
        (data(0, 1), None),
        (Frame::Fin { offset: 5 }, None),
        (data(5, 1), Some(Violation::AfterFin)),
        (data(4, 2), Some(Violation::AfterFin)),
    ] {
        let mut pair = Pair::attached();
        write(&mut pair.accepter, b"01234");
        pair.accepter.finish().expect("open");
        pair.run();
        let result = pair.opener.handle_frame(pair.now, Epoch(1), frame.clone());
        assert_eq!(result.err(), violation, "{frame:?}");
    }
}

#[test]
fn a_resume_that_claims_what_was_never_sent_ends_the_stream_on_the_new_leg() {
    for (received, delivered) in [(1, 0), (0, 1), (1 << 61, 1 << 61)] {
        let mut pair = Pair::attached();
        let attach = Attach {
            epoch: Epoch(2),
            received,
            delivered,
            limit: 1_000,
            end_delivered: false,
            proof: None,
        };
        let result = pair.accepter.accept_attach(pair.now, &attach, None);
        let violation = AttachError::Violation(Violation::AckBeyondSent);
        assert_eq!(result, Err(violation));
        let frames = drain(&mut pair.accepter, &mut Vec::new());
        let reason = Reason::ProtocolViolation;
        assert_eq!(frames.last(), Some(&Frame::Reset { reason }));
    }
}

#[test]
fn an_accepter_asks_for_another_leg_and_only_the_opener_is_told() {
    let mut pair = Pair::attached();
    pair.opener.go_away();
    pair.accepter.go_away();
    pair.run();
    assert!(pair.events[0].contains(&Event::LegWanted));
    assert!(!pair.events[1].contains(&Event::LegWanted));
    let epoch = pair.accepter.epoch();
    assert_eq!(
        pair.accepter.handle_frame(pair.now, epoch, Frame::GoAway),
        Err(Violation::StrayGoAway)
    );
}

#[test]
fn asking_for_another_leg_is_forgotten_with_the_leg() {
    let mut pair = Pair::attached();
    pair.accepter.go_away();
    pair.cut();
    pair.attach();
    pair.run();
    assert!(!pair.events[0].contains(&Event::LegWanted));
}

#[test]
fn a_smaller_bound_stops_the_growth_and_takes_nothing_back() {
    let mut pair = Pair::attached();
    let granted = pair.accepter.progress_report().limit;
    pair.accepter.set_max_window(10);
    pair.opener.set_max_window(10);
    let mut bytes = Bytes::from(vec![7; 5_000]);
    let taken = pair.opener.write(&mut bytes).expect("open");
    assert_eq!(
        taken, 10,
        "the replay buffer keeps to the bound of the moment"
    );
    pair.run();
    assert!(pair.accepter.progress_report().limit >= granted);
    assert_eq!(pair.opener.committed(), 1_000 + 10);
}

#[test]
fn a_leg_that_begins_with_data_is_a_violation() {
    let mut pair = Pair::new(config());
    pair.attach();
    let result = pair.opener.handle_frame(pair.now, Epoch(1), data(0, 1));
    assert_eq!(result, Err(Violation::NotAttached));
}

// ---- bytes

fn every_frame() -> Vec<Frame> {
    let attach = |proof| {
        Frame::Attach(Attach {
            epoch: Epoch(u32::MAX),
            received: 1 << 40,
            delivered: 16_384,
            limit: (1 << 62) - 1,
            end_delivered: true,
            proof,
        })
    };
    vec![
        attach(None),
        attach(Some(Proof::from_bytes([9; 32]))),
        data(70, 1),
        data(1 << 33, MAX_DATA),
        ack(63, 64, false),
        ack(1 << 30, 1 << 30, true),
        Frame::Fin { offset: 0 },
        Frame::Reset {
            reason: Reason::FarReset,
        },
        Frame::Closed {
            verdict: Reason::Done,
        },
    ]
}

fn bytes_of(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        let encoded = frame.clone().encode();
        bytes.extend_from_slice(encoded.header.as_ref());
        bytes.extend_from_slice(encoded.payload.as_deref().unwrap_or_default());
    }
    bytes
}

// Joins the pieces of one DATA frame again.
fn decode(chunks: impl Iterator<Item = Bytes>) -> Result<Vec<Frame>, DecodeError> {
    let mut decoder = Decoder::new();
    let mut frames: Vec<Frame> = Vec::new();
    for chunk in chunks {
        decoder.push(chunk);
        while let Some(frame) = decoder.next()? {
            if let (
                Some(Frame::Data {
                    offset,
                    bytes: known,
                }),
                Frame::Data { offset: at, bytes },
            ) = (frames.last_mut(), &frame)
                && *offset + known.len() as u64 == *at
            {
                *known = [known.as_ref(), bytes.as_ref()].concat().into();
                continue;
            }
            frames.push(frame);
        }
    }
    Ok(frames)
}

#[test]
fn every_frame_round_trips_however_its_bytes_are_cut() {
    let frames = every_frame();
    let bytes = Bytes::from(bytes_of(&frames));
    for size in [1, 2, 3, 7, 64, 65, 1_000, 100_000] {
        let chunks = (0..bytes.len())
            .step_by(size)
            .map(|at| bytes.slice(at..bytes.len().min(at + size)));
        assert_eq!(decode(chunks), Ok(frames.clone()), "in pieces of {size}");
    }
}

#[test]
fn a_payload_is_a_slice_of_what_was_pushed() {
    let bytes = Bytes::from(bytes_of(&[data(0, 1_000)]));
    let mut decoder = Decoder::new();
    decoder.push(bytes.clone());
    let Ok(Some(Frame::Data { bytes: payload, .. })) = decoder.next() else {
        panic!("a whole frame was pushed");
    };
    assert!(bytes.as_ptr_range().contains(&payload.as_ptr()));
}

// F43, S32, S37: no length is believed, nothing unknown is passed over.
#[test]
fn what_is_no_frame_is_refused_and_stays_refused() {
    let cases: [(&[u8], DecodeError); 8] = [
        (&[0x00], DecodeError::UnknownType(0)),
        (&[0x09], DecodeError::UnknownType(9)),
        (&[0xff], DecodeError::UnknownType(255)),
        (&[0x02, 0x00, 0x00], DecodeError::EmptyData),
        (&[0x02, 0x00, 0x80, 0x01, 0x00, 0x01], DecodeError::TooLong),
        (
            &[0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            DecodeError::OutOfRange,
        ),
        (
            &[0x01, 0xc0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
            DecodeError::OutOfRange,
        ),
        (&[0x01, 1, 0, 0, 0, 4], DecodeError::UnknownFlags),
    ];
    for (bytes, error) in cases {
        let mut decoder = Decoder::new();
        decoder.push(Bytes::copy_from_slice(bytes));
        assert_eq!(decoder.next(), Err(error), "{bytes:x?}");
        decoder.push(Bytes::from_static(&[0x05, 0x00]));
        assert_eq!(decoder.next(), Err(error));
    }
}

#[test]
fn a_reset_is_never_clean_whatever_number_it_carries() {
    let mut decoder = Decoder::new();
    decoder.push(Bytes::from_static(&[0x06, 0x00]));
    let reason = Reason::Unknown;
    assert_eq!(decoder.next(), Ok(Some(Frame::Reset { reason })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_frames_or_an_error_alike_in_one_piece_and_in_many(
        bytes in proptest::collection::vec(prop_oneof![0u8..9, any::<u8>()], 0..200),
        size in 1..20usize,
    ) {
        let bytes = Bytes::from(bytes);
        let whole = decode(std::iter::once(bytes.clone()));
        let chunks = (0..bytes.len()).step_by(size).map(|at| bytes.slice(at..bytes.len().min(at + size)));
        prop_assert_eq!(decode(chunks), whole);
    }

    // F45: a hostile peer with a valid leg finds no panic, no overflow and no state without an end.
    #[test]
    fn any_frames_of_a_hostile_peer_leave_a_bounded_stream_with_an_end(
        bytes in proptest::collection::vec(prop_oneof![4 => 0u8..9, 1 => any::<u8>()], 0..300),
    ) {
        let mut pair = Pair::attached();
        let mut decoder = Decoder::new();
        decoder.push(Bytes::from(bytes));
        while let Ok(Some(frame)) = decoder.next() {
            let broken = pair.opener.handle_frame(pair.now, Epoch(1), frame).is_err();
            drain(&mut pair.opener, &mut Vec::new());
            prop_assert!(!broken || pair.opener.is_ending());
            prop_assert!(pair.opener.progress_report().unread_bytes <= 1_000);
        }
        pair.opener.detach(pair.now, Epoch(1));
        pair.advance(Duration::from_secs(120));
        pair.advance(Duration::from_secs(120));
        prop_assert!(pair.opener.is_released());
    }
}
