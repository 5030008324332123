//! Two ends of the encryption with somebody between them who alters the records of the one or the other, in many ways.
//!
//! Not altered is what TLS itself tells to overlook, because nothing depends on it: the version in a record's header
//! (RFC 8446 §5.1) and the records that are only there for machines on the way (RFC 8446 §D.4). The kind in the header of
//! an encrypted record is always the same (RFC 8446 §5.2), and the library may overlook another one; the kind that counts
//! is inside.

use std::collections::BTreeSet;

use rustls::{ClientConfig, ServerConfig};

use super::*;
use crate::identity::testing::TestCa;
use crate::tls;

/// What each end says, in so many records of its own.
const RECORDS: usize = 4;
const LENGTH: usize = 700;
/// For the short set; a handshake takes milliseconds.
const SOME: u64 = 150;
const HEADER: usize = 5; // RFC 8446 §5.1: kind, version (2 bytes), length (2 bytes)
const CHANGE_CIPHER_SPEC: u8 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alteration {
    /// One bit, in the content of the record or in its header.
    Flip {
        bit: usize,
    },
    Drop,
    Repeat,
    /// Comes behind the record that follows it.
    Later,
    /// The record of the same number of another stream between the same two.
    Mix,
    /// Nothing more comes from here on.
    Cut,
}

/// How far an end has come.
enum Stage {
    Shaking(Box<Tls>),
    Up(Box<(Records, Seals)>),
    Failed,
}

/// One end, and what has become of it.
struct End {
    stage: Stage,
    said: bool,
    /// Says its end only when it has heard the other one's.
    waits: bool,
    closed: bool,
    heard: Vec<u8>,
    ended: Option<Result<(), Reason>>,
}

fn pattern(salt: u8) -> Vec<u8> {
    let byte = |n: usize| n.to_le_bytes()[0] ^ n.to_le_bytes()[1] ^ salt;
    (0..RECORDS * LENGTH).map(byte).collect()
}

const SALTS: [u8; 2] = [0x55, 0xaa];

impl End {
    fn new(tls: Tls, waits: bool) -> Self {
        Self {
            stage: Stage::Shaking(Box::new(tls)),
            said: false,
            waits,
            closed: false,
            heard: Vec::new(),
            ended: None,
        }
    }

    /// Takes some bytes in, or the end of the stream.
    fn hear(&mut self, bytes: Option<Bytes>) {
        if self.ended.is_some() {
            return;
        }
        let Some(bytes) = bytes else {
            self.ended = Some(Err(Reason::Truncated));
            return;
        };
        match &mut self.stage {
            Stage::Shaking(tls) => {
                if let Err(reason) = tls.hear(&bytes) {
                    self.ended = Some(Err(reason));
                }
            }
            Stage::Up(up) => {
                let records = &mut up.0;
                records.opens.push(bytes);
                self.read();
            }
            Stage::Failed => {}
        }
    }

    fn read(&mut self) {
        let Stage::Up(up) = &mut self.stage else {
            return;
        };
        let records = &mut up.0;
        self.ended = loop {
            match records.open() {
                Ok(Decrypted::Plaintext(bytes)) => self.heard.extend_from_slice(&bytes),
                Ok(Decrypted::End) => break Some(Ok(())),
                Ok(Decrypted::Hungry) => break None,
                Err(reason) => break Some(Err(reason)),
            }
        };
    }

    /// What it says next: its part of the handshake, and then all it has, and its end.
    fn say(&mut self, me: usize) -> Vec<Bytes> {
        let mut said = BytesMut::new();
        if let Stage::Shaking(tls) = &mut self.stage {
            said.extend_from_slice(&tls.say());
            if tls.is_done() && self.ended.is_none() {
                self.go_up();
            }
        }
        let failed = matches!(self.ended, Some(Err(_)));
        if let Stage::Up(up) = &mut self.stage
            && !failed
        {
            let seals = &mut up.1;
            if !std::mem::replace(&mut self.said, true) {
                for part in pattern(SALTS[me]).chunks(LENGTH) {
                    said.extend_from_slice(&seals.seal(part).expect("a key"));
                }
            }
            let may_close = !self.waits || self.ended.is_some();
            if may_close && !std::mem::replace(&mut self.closed, true) {
                let end = seals.word(Kind::Alert, CLOSE_NOTIFY).expect("a key");
                said.extend_from_slice(&end);
            }
        }
        records(said.freeze())
    }

    fn go_up(&mut self) {
        let Stage::Shaking(tls) = std::mem::replace(&mut self.stage, Stage::Failed) else {
            return;
        };
        match tls.finish() {
            Ok(Established { opens, seals, .. }) => {
                let records = Records::new(opens, StreamId([7; 16]));
                self.stage = Stage::Up(Box::new((records, seals)));
                self.read();
            }
            Err(reason) => self.ended = Some(Err(reason)),
        }
    }
}

fn records(mut bytes: Bytes) -> Vec<Bytes> {
    let mut records = Vec::new();
    while bytes.len() >= HEADER {
        let length = HEADER + usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
        records.push(bytes.split_to(length));
    }
    records
}

/// The two ends of one stream.
struct Pair([End; 2]);

struct Scene {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Scene {
    fn new() -> Self {
        let ca = TestCa::new("sealock");
        let trust = ca.trust_store();
        let providers = BTreeSet::from([AgentId {
            tenant: "default".parse().expect("a name"),
            name: "provider".parse().expect("a name"),
        }]);
        let caller = ca.identity("default/agent/caller");
        let judge: tls::Judge = Arc::new(|_| Ok(()));
        Self {
            client: tls::e2e_client(&caller, &trust, &providers, Some(judge)),
            server: tls::e2e_server(&ca.identity("default/agent/provider"), &trust, None),
        }
    }

    /// Two ends, of which this one waits for the other.
    fn pair(&self, waits: usize) -> Pair {
        let stream = StreamId([7; 16]);
        let caller = client(Arc::clone(&self.client), stream).expect("configured");
        let provider = server(Arc::clone(&self.server), stream).expect("configured");
        Pair([End::new(caller, waits == 0), End::new(provider, waits == 1)])
    }

    /// The records that each end says when nobody alters anything.
    fn untouched(&self) -> [Vec<Bytes>; 2] {
        let mut said = [Vec::new(), Vec::new()];
        let ends = self.pair(1).run(|from, number, record| {
            assert_eq!(said[from].len(), number);
            said[from].push(record.clone());
            Some(vec![record])
        });
        for (me, end) in ends.0.iter().enumerate() {
            assert_eq!(end.ended, Some(Ok(())));
            assert_eq!(end.heard, pattern(SALTS[1 - me]));
        }
        said
    }
}

impl Pair {
    /// Carries records to and fro until nobody has more to say, each as `between` leaves it; nothing cuts the direction.
    fn run(mut self, mut between: impl FnMut(usize, usize, Bytes) -> Option<Vec<Bytes>>) -> Self {
        let mut numbers = [0; 2];
        let mut cut = [false; 2];
        loop {
            let mut quiet = true;
            for from in [0, 1] {
                for record in self.0[from].say(from) {
                    quiet = false;
                    let passed = if record[0] == CHANGE_CIPHER_SPEC {
                        Some(vec![record])
                    } else {
                        numbers[from] += 1;
                        between(from, numbers[from] - 1, record)
                    };
                    cut[from] |= passed.is_none();
                    for record in passed.into_iter().flatten().filter(|_| !cut[from]) {
                        self.0[1 - from].hear(Some(record));
                    }
                }
            }
            if quiet {
                self.0.iter_mut().for_each(|end| end.hear(None));
                return self;
            }
        }
    }
}

/// A seeded choice (SplitMix64).
struct Choice(u64);

impl Choice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let limit = u64::try_from(limit).expect("small");
        usize::try_from((mixed ^ (mixed >> 31)) % limit).expect("small")
    }

    fn kind(&mut self, record: usize) -> Alteration {
        match self.below(8) {
            0 => Alteration::Drop,
            1 => Alteration::Repeat,
            2 => Alteration::Later,
            3 => Alteration::Mix,
            4 => Alteration::Cut,
            _ => loop {
                let bit = self.below(8 * record);
                if !(8..24).contains(&bit) {
                    break Alteration::Flip { bit }; // all but the version
                }
            },
        }
    }
}

fn flipped(record: &Bytes, bit: usize) -> Bytes {
    let mut bytes = record.to_vec();
    let at = bit / 8 % bytes.len(); // signatures differ in length from stream to stream
    bytes[at] ^= 1 << (bit % 8);
    bytes.into()
}

/// One alteration, drawn from its seed, and what comes of it.
fn alter_once(scene: &Scene, untouched: &[Vec<Bytes>; 2], seed: u64) {
    let mut choice = Choice(seed);
    let from = choice.below(2);
    let count = untouched[from].len();
    let target = choice.below(count);
    let kind = choice.kind(untouched[from][target].len());
    let mut later = None;
    let mut was_met = false;
    let ends = scene.pair(1 - from).run(|who, number, record| {
        if who != from {
            return Some(vec![record]);
        }
        if number != target {
            return Some([record].into_iter().chain(later.take()).collect());
        }
        was_met = true;
        match kind {
            Alteration::Flip { bit } => Some(vec![flipped(&record, bit)]),
            Alteration::Drop => Some(Vec::new()),
            Alteration::Repeat => Some(vec![record.clone(), record]),
            Alteration::Later => {
                later = Some(record);
                Some(Vec::new())
            }
            Alteration::Mix => Some(vec![untouched[from][number].clone()]),
            Alteration::Cut => None,
        }
    });
    let what = format!("seed {seed}: {kind:?} at record {target} of {count} from {from}");
    assert!(was_met, "{what}: the record never came");
    for (me, end) in ends.0.iter().enumerate() {
        let said = pattern(SALTS[1 - me]);
        assert!(said.starts_with(&end.heard), "{what}: a wrong byte at {me}");
    }
    let victim = &ends.0[1 - from];
    // The last record is TLS's own end: what comes behind it is nobody's.
    let is_behind_the_end = kind == Alteration::Repeat && target == count - 1;
    let is_kind = matches!(kind, Alteration::Flip { bit: 0..8 }) && victim.ended == Some(Ok(()));
    if is_behind_the_end || is_kind {
        assert_eq!(victim.ended, Some(Ok(())), "{what}");
        assert!(
            victim.heard == pattern(SALTS[from]),
            "{what}: not all of it"
        );
        return;
    }
    let Some(Err(reason)) = victim.ended else {
        panic!("{what}: passed for the truth, {:?}", victim.ended);
    };
    let first_of_ours = count - RECORDS - 1;
    if target < first_of_ours {
        let other = &ends.0[from];
        assert!(other.heard.is_empty(), "{what}: believed too early");
        return;
    }
    // Of the application's records it is known that only somebody on the way does this.
    let is_waited_for = match kind {
        Alteration::Cut => true,
        Alteration::Drop | Alteration::Later => target == count - 1,
        // A record that claims to be longer may be waited for to the end.
        Alteration::Flip { bit } => (24..40).contains(&bit),
        Alteration::Repeat | Alteration::Mix => false,
    };
    let expected = [Reason::Integrity, Reason::Truncated];
    let expected = &expected[..1 + usize::from(is_waited_for)];
    assert!(expected.contains(&reason), "{what}: {reason:?}");
}

fn alter_often(count: u64) {
    let scene = Scene::new();
    let untouched = scene.untouched();
    for seed in 0..count {
        alter_once(&scene, &untouched, seed);
    }
}

// A key that is worn is followed by the next one at both ends, in either direction, in the middle of what is said.
#[test]
fn keys_are_renewed_at_both_ends_without_a_word() {
    let scene = Scene::new();
    for left in [1, 2, 5] {
        let mut ends = scene.pair(1);
        let mut up = 0;
        while up < 2 {
            up = 0;
            for from in [0, 1] {
                let end = &mut ends.0[from];
                if let Stage::Shaking(tls) = &mut end.stage {
                    let said = tls.say();
                    if tls.is_done() {
                        end.go_up();
                    }
                    ends.0[1 - from].hear(Some(said));
                } else {
                    up += 1;
                }
            }
        }
        for end in &mut ends.0 {
            let Stage::Up(up) = &mut end.stage else {
                panic!("no keys");
            };
            let (records, seals) = &mut **up;
            records.opens.wear(left);
            seals.wear(left);
        }
        let ends = ends.run(|_, _, record| Some(vec![record]));
        for (me, end) in ends.0.iter().enumerate() {
            assert_eq!(end.ended, Some(Ok(())), "{left} left");
            assert_eq!(end.heard, pattern(SALTS[1 - me]), "{left} left");
        }
    }
}

// S03, F47: both ways, in the handshake and behind it.
#[test]
fn whatever_is_altered_between_the_ends_is_found_and_named() {
    alter_often(SOME);
}

mod long {
    // F47: every one of ten thousand.
    #[test]
    fn every_one_of_ten_thousand_alterations_is_found() {
        super::alter_often(10_000);
    }
}
