//! The server name of a TLS ClientHello (RFC 8446 §4.1.2, RFC 6066 §3), over as many records as it was cut into.

use super::{BUDGET, Cursor, Sniffed, Why, name_of};

const HANDSHAKE: u8 = 22; // RFC 8446 §5.1
const CLIENT_HELLO: u8 = 1; // RFC 8446 §4
const RECORD_LIMIT: usize = 1 << 14; // RFC 8446 §5.1
const RECORD_HEAD: usize = 5;
const HANDSHAKE_HEAD: usize = 4;
const SERVER_NAME: u16 = 0; // RFC 6066 §3
const ENCRYPTED_HELLO: u16 = 0xfe0d; // RFC 9849 §5
const HOST_NAME: u8 = 0; // RFC 6066 §3

/// Whether these bytes may become a TLS handshake.
#[must_use]
pub fn is_like(bytes: &[u8]) -> bool {
    bytes.first() == Some(&HANDSHAKE)
}

/// What the bytes of a stream tell, from its first one on.
#[must_use]
pub fn sniff(bytes: &[u8]) -> Sniffed {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        // What the first bytes of a record say is judged before the record is whole.
        match rest {
            [kind, ..] if *kind != HANDSHAKE => return broken(&message),
            [_, major, ..] if *major != 3 => return broken(&message),
            _ => {}
        }
        let Some((head, tail)) = rest.split_first_chunk::<RECORD_HEAD>() else {
            return Sniffed::NeedMore;
        };
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if length == 0 || length > RECORD_LIMIT {
            return Sniffed::None(Why::Malformed);
        }
        let (fragment, tail) = tail.split_at(length.min(tail.len()));
        message.extend_from_slice(fragment);
        match hello(&message) {
            Sniffed::NeedMore => {}
            decided @ (Sniffed::Name(_) | Sniffed::None(_)) => return decided,
        }
        if fragment.len() < length {
            return Sniffed::NeedMore;
        }
        rest = tail;
    }
}

fn broken(message: &[u8]) -> Sniffed {
    // In the middle of a hello nothing else may stand (RFC 8446 §5.1).
    Sniffed::None(if message.is_empty() {
        Why::Unknown
    } else {
        Why::Malformed
    })
}

/// What the bytes of a handshake tell, without records around them.
#[must_use]
pub fn hello(message: &[u8]) -> Sniffed {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Sniffed::None(Why::Unknown);
    }
    let Some((head, body)) = message.split_first_chunk::<HANDSHAKE_HEAD>() else {
        return Sniffed::NeedMore;
    };
    let length = usize::from(head[1]) << 16 | usize::from(head[2]) << 8 | usize::from(head[3]);
    if length + HANDSHAKE_HEAD > BUDGET {
        return Sniffed::None(Why::TooLong);
    }
    match body.get(..length) {
        Some(body) => extensions(body).map_or(Sniffed::None(Why::Malformed), name_in),
        None => Sniffed::NeedMore,
    }
}

/// The extensions of a whole hello; none at all is lawful up to TLS 1.2.
fn extensions(body: &[u8]) -> Option<&[u8]> {
    let mut body = Cursor(body);
    body.take(2 + 32)?; // version, random
    let session = body.vector(1)?;
    let suites = body.vector(2)?;
    let compressions = body.vector(1)?;
    if session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 || compressions.is_empty() {
        return None;
    }
    if body.0.is_empty() {
        return Some(&[]);
    }
    let extensions = body.vector(2)?;
    body.0.is_empty().then_some(extensions)
}

fn name_in(extensions: &[u8]) -> Sniffed {
    let mut rest = Cursor(extensions);
    let mut found = None;
    let mut is_hidden = false;
    while !rest.0.is_empty() {
        let (Some(kind), Some(body)) = (rest.u16(), rest.vector(2)) else {
            return Sniffed::None(Why::Malformed);
        };
        match kind {
            SERVER_NAME if found.is_some() => return Sniffed::None(Why::Ambiguous),
            SERVER_NAME => found = Some(server_name(body)),
            ENCRYPTED_HELLO => is_hidden = true,
            _ => {} // GREASE (RFC 8701) among them
        }
    }
    if is_hidden {
        return Sniffed::None(Why::Hidden);
    }
    found.unwrap_or(Sniffed::None(Why::Absent))
}

fn server_name(body: &[u8]) -> Sniffed {
    let mut body = Cursor(body);
    let list = body.vector(2).filter(|_| body.0.is_empty());
    let Some(list) = list.filter(|list| !list.is_empty()) else {
        return Sniffed::None(Why::Malformed);
    };
    let mut list = Cursor(list);
    let (Some(HOST_NAME), Some(name)) = (list.u8(), list.vector(2)) else {
        // Of other kinds of names nobody knows the shape.
        return Sniffed::None(Why::Malformed);
    };
    if !list.0.is_empty() {
        return Sniffed::None(Why::Ambiguous);
    }
    name_of(name)
}
