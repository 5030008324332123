//! The host of an HTTP/1.x request (RFC 9112 §3.2), read as strictly as the most different servers would.
//!
//! The whole head is awaited, because a second `Host` may stand in its last line. Deliberately absent: HTTP/2 with
//! prior knowledge, whose every request may name another host, and `CONNECT`, whose host is not who is spoken to.

use super::{Sniffed, Why, name_of};

const METHOD_LIMIT: usize = 20; // the longest registered one has 17 letters
/// How HTTP/2 begins without TLS (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the bytes of a stream tell, from its first one on.
#[must_use]
pub fn sniff(bytes: &[u8]) -> Sniffed {
    if !may_be_method(bytes) {
        return Sniffed::None(Why::Unknown);
    }
    if bytes.starts_with(b"PRI ") {
        return match PREFACE.starts_with(bytes) && bytes.len() < PREFACE.len() {
            true => Sniffed::NeedMore,
            false if bytes.starts_with(PREFACE) => Sniffed::None(Why::Absent),
            false => Sniffed::None(Why::Malformed),
        };
    }
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let head = end.map_or(bytes, |end| &bytes[..end + 2]);
    let broken = head.windows(2).position(is_broken);
    let first = head.windows(2).position(|two| two == b"\r\n");
    if let Some(first) = first.filter(|first| broken.is_none_or(|at| at > *first))
        && request(&head[..first]).is_none()
    {
        return Sniffed::None(Why::Unknown);
    }
    // Broken bytes are seen before the end, so that nobody waits for one.
    if broken.is_some() {
        return Sniffed::None(Why::Malformed);
    }
    end.map_or(Sniffed::NeedMore, |_| host_in(head))
}

fn may_be_method(bytes: &[u8]) -> bool {
    let letters = bytes
        .iter()
        .take_while(|b| b.is_ascii_uppercase() || **b == b'-')
        .count();
    match bytes.get(letters) {
        None => letters <= METHOD_LIMIT,
        Some(b' ') => (1..=METHOD_LIMIT).contains(&letters),
        Some(_) => false,
    }
}

/// A line that ends without CR, a CR in a line's middle, or a byte that no head may hold (RFC 9112 §2.2, RFC 9110 §5.5).
fn is_broken(two: &[u8]) -> bool {
    let (byte, next) = (two[0], two[1]);
    (next == b'\n') != (byte == b'\r') || (next < b' ' && !matches!(next, b'\r' | b'\n' | b'\t'))
}

/// The method and the target of a request line (RFC 9112 §3).
fn request(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = line.split(|b| *b == b' ');
    let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    let is_known = matches!(version, b"HTTP/1.1" | b"HTTP/1.0");
    (is_known && parts.next().is_none() && !target.is_empty()).then_some((method, target))
}

fn host_in(head: &[u8]) -> Sniffed {
    let mut lines = head
        .split(|b| *b == b'\n')
        .map(|line| line.strip_suffix(b"\r"));
    let Some((method, target)) = lines.next().flatten().and_then(request) else {
        return Sniffed::None(Why::Unknown);
    };
    let mut host = None;
    for line in lines.flatten() {
        let mut parts = line.splitn(2, |b| *b == b':');
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else {
            return Sniffed::None(Why::Malformed);
        };
        // A line that goes on (RFC 9112 §5.2) and a blank before the colon (§5.1) are read in different ways.
        if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
            return Sniffed::None(Why::Malformed);
        }
        if name.eq_ignore_ascii_case(b"host") && host.replace(value.trim_ascii()).is_some() {
            return Sniffed::None(Why::Ambiguous); // RFC 9112 §3.2: such a request must be refused
        }
    }
    if method == b"CONNECT" {
        return Sniffed::None(Why::Absent);
    }
    agreed(authority(target), host)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The authority of a target in absolute form (RFC 9112 §3.2.2).
fn authority(target: &[u8]) -> Option<&[u8]> {
    let colon = target.windows(3).position(|three| three == b"://")?;
    if target.starts_with(b"/") {
        return None; // a URL in a path or a query
    }
    let rest = &target[colon + 3..];
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#'));
    Some(&rest[..end.unwrap_or(rest.len())])
}

fn agreed(authority: Option<&[u8]>, host: Option<&[u8]>) -> Sniffed {
    let told = |text: Option<&[u8]>| text.map(named);
    match (told(authority), told(host)) {
        (None, None) => Sniffed::None(Why::Absent),
        (Some(one), None) | (None, Some(one)) => one,
        (Some(one), Some(other)) if one == other => one,
        (Some(_), Some(_)) => Sniffed::None(Why::Ambiguous),
    }
}

/// The name in `host[:port]`.
fn named(authority: &[u8]) -> Sniffed {
    if authority.is_empty() {
        return Sniffed::None(Why::Absent);
    }
    let colon = authority.iter().rposition(|b| *b == b':');
    let host = match colon.filter(|_| !authority.ends_with(b"]")) {
        Some(at) if authority[at + 1..].iter().all(u8::is_ascii_digit) => &authority[..at],
        Some(_) => return Sniffed::None(Why::Malformed),
        None => authority,
    };
    name_of(host)
}
