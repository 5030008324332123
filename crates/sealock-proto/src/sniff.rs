//! The name that the first bytes of a flow tell: TLS and QUIC say a server name, HTTP a host.
//!
//! What is found is a claim of whoever sent the bytes, no more. A name is told only where every reader must find the same
//! one: where two readers could differ (two names, two hosts, a host beside another one in the target) none is told.
//! What was decided on the first bytes stays decided whatever follows, and no more than [`BUDGET`] bytes are looked at.
//! Deliberately absent: names out of HTTP/2 and HTTP/3, which say one for each request, and any change to the bytes.

pub mod http;
pub mod quic;
pub mod tls;

use sealock_core::host::HostName;

/// The most that is looked at of a flow: a hello with post-quantum keys is below 2 KiB, a head of a request below 8.
pub const BUDGET: usize = 8 * 1024;

/// What the first bytes of a flow tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sniffed {
    /// This name, and no other reader finds a different one.
    Name(HostName),
    /// Nothing yet: the bytes so far fit a protocol that tells a name further on.
    NeedMore,
    /// No name, whatever follows.
    None(Why),
}

/// Why the first bytes tell no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// A protocol that we do not read.
    Unknown,
    /// A protocol that we read, without a name, or with an address in its place.
    Absent,
    /// Two names where there is one, or bytes that readers could take for different names.
    Ambiguous,
    /// The true name is encrypted (RFC 9849), or may be: a client that only pretends looks the same.
    Hidden,
    /// It would come behind the bytes that we look at.
    TooLong,
    /// The protocol's own rules are broken.
    Malformed,
}

impl Why {
    /// The word in logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Absent => "absent",
            Self::Ambiguous => "ambiguous",
            Self::Hidden => "hidden",
            Self::TooLong => "too long",
            Self::Malformed => "malformed",
        }
    }
}

/// Which protocol told the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// A TLS server name.
    Tls,
    /// An HTTP host.
    Http,
}

/// What the first bytes of a stream tell; `bytes` is all that came so far.
#[must_use]
pub fn stream(bytes: &[u8]) -> (Spoken, Sniffed) {
    let seen = &bytes[..bytes.len().min(BUDGET)];
    // No method begins with the number of a TLS record, so the first byte parts the two.
    let (spoken, sniffed) = if tls::is_like(seen) {
        (Spoken::Tls, tls::sniff(seen))
    } else {
        (Spoken::Http, http::sniff(seen))
    };
    if sniffed == Sniffed::NeedMore && bytes.len() >= BUDGET {
        return (spoken, Sniffed::None(Why::TooLong));
    }
    (spoken, sniffed)
}

/// A name as a protocol writes it; an address, or what is no host name, is none.
fn name_of(text: &[u8]) -> Sniffed {
    let Ok(text) = std::str::from_utf8(text) else {
        return Sniffed::None(Why::Malformed);
    };
    let address = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    if address.unwrap_or(text).parse::<std::net::IpAddr>().is_ok() {
        return Sniffed::None(Why::Absent);
    }
    match text.parse() {
        Ok(name) => Sniffed::Name(name),
        Err(_) => Sniffed::None(Why::Malformed),
    }
}

/// Takes bytes apart from the front; `None` where they end too early.
#[derive(Debug, Clone, Copy)]
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A vector whose length stands before it in so many bytes.
    fn vector(&mut self, width: usize) -> Option<&'a [u8]> {
        let length = self.take(width)?;
        let length = length.iter().fold(0, |sum, &b| (sum << 8) | usize::from(b));
        self.take(length)
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
#[cfg(any(test, fuzzing))]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
