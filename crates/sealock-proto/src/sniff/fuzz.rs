//! Any bytes as the beginning of a flow: nothing breaks, and what was decided stays decided.

use super::quic::{Initials, keys::Version, seal};
use super::{BUDGET, Sniffed, Spoken, stream};
use crate::fuzz::{Input, Seen, Target};

pub(crate) const STREAM: Target = Target {
    name: "sniff_stream",
    run: bytes,
    reaches: &[
        "tls name",
        "tls needs more",
        "tls unknown",
        "tls absent",
        "tls ambiguous",
        "tls hidden",
        "tls too long",
        "tls malformed",
        "http name",
        "http needs more",
        "http unknown",
        "http absent",
        "http ambiguous",
        "http too long",
        "http malformed",
    ],
};

fn bytes(input: &[u8]) -> Seen {
    let (spoken, whole) = stream(input);
    let step = (input.len() / 16).max(1); // every byte of short inputs; of long ones, what a run can afford
    for end in (0..input.len()).step_by(step) {
        let (_, early) = stream(&input[..end]);
        assert!(early == Sniffed::NeedMore || early == whole, "at {end}");
    }
    if input.len() >= BUDGET {
        assert_ne!(whole, Sniffed::NeedMore);
    }
    let name = match (spoken, &whole) {
        (Spoken::Tls, Sniffed::Name(_)) => "tls name",
        (Spoken::Tls, Sniffed::NeedMore) => "tls needs more",
        (Spoken::Http, Sniffed::Name(_)) => "http name",
        (Spoken::Http, Sniffed::NeedMore) => "http needs more",
        (_, Sniffed::None(why)) => {
            let end = format!(" {}", why.as_str());
            let start = match spoken {
                Spoken::Tls => "tls",
                Spoken::Http => "http",
            };
            let named = STREAM.reaches.iter();
            let mut named = named.filter(|name| name.starts_with(start) && name.ends_with(&end));
            named.next().expect("each outcome has a name")
        }
    };
    Seen::from([name])
}

pub(crate) const QUIC: Target = Target {
    name: "sniff_quic",
    run: packets,
    reaches: &[
        "name",
        "need more",
        "unknown",
        "absent",
        "ambiguous",
        "hidden",
        "too long",
        "malformed",
        "raw",
        "sealed",
    ],
};

/// Datagrams: raw ones, and ones that are sealed as a client would, of frames that the input says.
fn packets(input: &[u8]) -> Seen {
    let mut input = Input(input);
    let mut seen = Seen::new();
    let mut initials = Initials::default();
    let mut told = Sniffed::NeedMore;
    while !input.is_empty() {
        let how = input.byte();
        let length = usize::from(u16::from_be_bytes(input.array()) % 1_500);
        let bytes: Vec<u8> = (0..length.min(input.0.len()))
            .map(|_| input.byte())
            .collect();
        let datagram = if how & 1 == 0 {
            seen.insert("raw");
            bytes
        } else {
            seen.insert("sealed");
            let version = if how & 2 == 0 {
                Version::One
            } else {
                Version::Two
            };
            let keyed_by = [how & 4; 8];
            seal::initial(
                version,
                &keyed_by,
                &[how & 12; 8],
                u32::from(how >> 4),
                &bytes,
            )
        };
        let next = initials.handle(&datagram);
        assert!(told == Sniffed::NeedMore || told == next);
        told = next;
    }
    seen.insert(match told {
        Sniffed::Name(_) => "name",
        Sniffed::NeedMore => "need more",
        Sniffed::None(why) => why.as_str(),
    });
    seen
}
