//! Any bytes at a front door: nothing breaks, and how they were cut into pieces changes nothing.

use super::{Login, connect, socks5};
use crate::fuzz::{Seen, Target};

pub(crate) const SOCKS5: Target = Target {
    name: "socks5",
    run: socks5,
    reaches: &[
        "needs more",
        "said method",
        "said login",
        "asked address",
        "asked name",
        "no method",
        "bad login",
        "bad command",
        "bad address",
        "something else",
    ],
};

/// The first byte says whether the door wants a login.
fn socks5(input: &[u8]) -> Seen {
    let Some((&how, bytes)) = input.split_first() else {
        return Seen::from(["needs more"]);
    };
    let login = (how & 1 == 1).then(|| Login::new("user:pass").expect("a login"));
    let whole = talk(login.clone(), bytes, bytes.len());
    assert_eq!(
        whole,
        talk(login, bytes, 1),
        "in one piece and byte by byte"
    );
    let (length, steps) = whole;
    assert!(length <= bytes.len());
    steps.iter().map(seen).collect()
}

/// What a client is told that sends so many bytes at a time, and how many were read before the end.
fn talk(login: Option<Login>, bytes: &[u8], piece: usize) -> (usize, Vec<socks5::Step>) {
    let mut handshake = socks5::Handshake::new(login);
    let (mut read, mut come) = (0, piece.min(bytes.len()));
    let mut steps = Vec::new();
    loop {
        let (length, step) = handshake.handle(&bytes[read..come]);
        assert!(length <= come - read);
        read += length;
        match step {
            socks5::Step::NeedMore if come < bytes.len() => come = bytes.len().min(come + piece),
            socks5::Step::Say(_) => steps.push(step),
            socks5::Step::NeedMore | socks5::Step::Asked(_) | socks5::Step::Refuse(_) => {
                steps.push(step);
                return (read, steps);
            }
        }
    }
}

fn seen(step: &socks5::Step) -> &'static str {
    match step {
        socks5::Step::NeedMore => "needs more",
        socks5::Step::Say([5, _]) => "said method",
        socks5::Step::Say(_) => "said login",
        socks5::Step::Asked(place) => {
            assert_ne!(place.port(), 0);
            place.name().map_or("asked address", |_| "asked name")
        }
        socks5::Step::Refuse(None) => "something else",
        socks5::Step::Refuse(Some(said)) => {
            let mut known = REFUSALS.iter().filter(|(start, _)| said.starts_with(start));
            known
                .next()
                .map(|(_, name)| *name)
                .expect("each refusal has a name")
        }
    }
}

const REFUSALS: [(&[u8], &str); 4] = [
    (&[5, 0xff], "no method"),
    (&[1, 1], "bad login"),
    (&[5, 7], "bad command"),
    (&[5, 8], "bad address"),
];

pub(crate) const CONNECT: Target = Target {
    name: "http_connect_head",
    run: connect,
    reaches: &[
        "needs more",
        "asked address",
        "asked name",
        "bad request",
        "no login",
        "too long",
        "another method",
    ],
};

/// The first byte says whether the door wants a login.
fn connect(input: &[u8]) -> Seen {
    let Some((&how, bytes)) = input.split_first() else {
        return Seen::from(["needs more"]);
    };
    let login = (how & 1 == 1).then(|| Login::new("user:pass").expect("a login"));
    let (length, step) = connect::handle(login.as_ref(), bytes);
    assert!(length <= bytes.len());
    let pieces = (bytes.len() / 16).max(1); // every byte of short inputs; of long ones, what a run can afford
    for end in (0..bytes.len()).step_by(pieces) {
        let (_, early) = connect::handle(login.as_ref(), &bytes[..end]);
        // Broken bytes are told early or late; a place is told when the head is whole, and only then.
        let settled = matches!(early, connect::Step::Asked(_));
        assert!(!settled || (early == step && end >= length), "at {end}");
    }
    if connect::is_connect(bytes) == Some(false) {
        assert!(!matches!(step, connect::Step::Asked(_)));
        return Seen::from(["another method"]);
    }
    Seen::from([match step {
        connect::Step::NeedMore => "needs more",
        connect::Step::Asked(place) => {
            assert_ne!(place.port(), 0);
            place.name().map_or("asked address", |_| "asked name")
        }
        connect::Step::Refuse(connect::Status::BadRequest) => "bad request",
        connect::Step::Refuse(connect::Status::Login) => "no login",
        connect::Step::Refuse(connect::Status::TooLong) => "too long",
    }])
}
