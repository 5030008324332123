//! The server's side of SOCKS5 (RFC 1928), with a user and a password where the door asks for them (RFC 1929).
//!
//! [`Handshake::handle`] is given all bytes that came and were not read yet; it says how many of them it read, and what to
//! do. Deliberately absent: BIND and UDP ASSOCIATE, which are refused by their own code, and GSSAPI.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sealock_core::destination::Destination;
use sealock_core::reason::{Outcome, Reason};

use super::{Login, place};

const VERSION: u8 = 5;
const NO_LOGIN: u8 = 0;
const PASSWORD: u8 = 2;
const NO_METHOD: u8 = 0xff; // RFC 1928 §3: none of those that were offered
const LOGIN_VERSION: u8 = 1; // RFC 1929 §2
const CONNECT: u8 = 1;

/// What a request is answered with (RFC 1928 §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The way is open.
    Granted,
    /// Anything that no other code says.
    Failure,
    /// A rule, or the want of one.
    NotAllowed,
    /// We have no way out.
    NetworkUnreachable,
    /// The host has no way in, or no address.
    HostUnreachable,
    /// Nobody listens there.
    Refused,
    /// Nobody answered in time.
    Expired,
    /// A command other than CONNECT.
    Command,
    /// An address of no kind that we know.
    Address,
}

impl Reply {
    /// The reply that tells a reason.
    #[must_use]
    pub fn of(reason: Reason) -> Self {
        if [Reason::TargetRefused, Reason::PeerRefused].contains(&reason) {
            return Self::Refused;
        }
        if [
            Reason::TargetTimeout,
            Reason::OpenTimeout,
            Reason::HandshakeTimeout,
        ]
        .contains(&reason)
        {
            return Self::Expired;
        }
        if [Reason::RelayUnreachable, Reason::ControllerUnreachable].contains(&reason) {
            return Self::NetworkUnreachable;
        }
        if reason == Reason::NoSuchService {
            return Self::HostUnreachable;
        }
        match reason.outcome() {
            Outcome::Success => Self::Granted,
            Outcome::Refused => Self::NotAllowed,
            Outcome::Unreachable => Self::HostUnreachable,
            Outcome::Failed => Self::Failure,
        }
    }

    /// The reply on the wire. Which address we speak from is nobody's business: RFC 1928 §6 wants one, so it is no address.
    #[must_use]
    pub fn encode(self) -> [u8; 10] {
        let code = match self {
            Self::Granted => 0,
            Self::Failure => 1,
            Self::NotAllowed => 2,
            Self::NetworkUnreachable => 3,
            Self::HostUnreachable => 4,
            Self::Refused => 5,
            Self::Expired => 6,
            Self::Command => 7,
            Self::Address => 8,
        };
        [VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0]
    }
}

/// What to do after some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// All bytes belong to a message that is not whole yet.
    NeedMore,
    /// Send this, and go on.
    Say([u8; 2]),
    /// The client wants to go there, and waits for a [`Reply`].
    Asked(Destination),
    /// Send this and hang up; where nothing is said, it speaks something else.
    Refuse(Option<Vec<u8>>),
}

/// A client that has not said yet where it wants to go.
#[derive(Debug)]
pub struct Handshake {
    login: Option<Login>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Methods,
    Login,
    Request,
}

impl Handshake {
    /// A client from its first byte on, who has to show the login where there is one.
    #[must_use]
    pub fn new(login: Option<Login>) -> Self {
        Self {
            login,
            stage: Stage::Methods,
        }
    }

    /// Reads one message at the front of `bytes`; says how many bytes it has, and what to do.
    pub fn handle(&mut self, bytes: &[u8]) -> (usize, Step) {
        let mut rest = Cursor { bytes, at: 0 };
        let step = match self.stage {
            Stage::Methods => self.methods(&mut rest),
            Stage::Login => self.login(&mut rest),
            Stage::Request => request(&mut rest),
        };
        step.map_or((0, Step::NeedMore), |step| (rest.at, step))
    }

    /// RFC 1928 §3.
    fn methods(&mut self, rest: &mut Cursor<'_>) -> Option<Step> {
        if rest.u8()? != VERSION {
            return Some(Step::Refuse(None));
        }
        let length = rest.u8()?;
        let offered = rest.take(length.into())?;
        let (method, next) = match self.login {
            Some(_) => (PASSWORD, Stage::Login),
            None => (NO_LOGIN, Stage::Request),
        };
        if !offered.contains(&method) {
            return Some(Step::Refuse(Some(vec![VERSION, NO_METHOD])));
        }
        self.stage = next;
        Some(Step::Say([VERSION, method]))
    }

    /// RFC 1929 §2.
    fn login(&mut self, rest: &mut Cursor<'_>) -> Option<Step> {
        if rest.u8()? != LOGIN_VERSION {
            return Some(Step::Refuse(None));
        }
        let length = rest.u8()?;
        let user = rest.take(length.into())?;
        let length = rest.u8()?;
        let password = rest.take(length.into())?;
        let is_known = self.login.as_ref().is_none_or(|it| it.is(user, password));
        if !is_known {
            return Some(Step::Refuse(Some(vec![LOGIN_VERSION, 1])));
        }
        self.stage = Stage::Request;
        Some(Step::Say([LOGIN_VERSION, 0]))
    }
}

/// RFC 1928 §4.
fn request(rest: &mut Cursor<'_>) -> Option<Step> {
    let refuse = |reply: Reply| Some(Step::Refuse(Some(reply.encode().to_vec())));
    if rest.u8()? != VERSION {
        return Some(Step::Refuse(None));
    }
    let (command, _reserved, kind) = (rest.u8()?, rest.u8()?, rest.u8()?);
    let host = match kind {
        1 => {
            let octets: [u8; 4] = rest.array()?;
            Named::Address(Ipv4Addr::from(octets).into())
        }
        4 => {
            let octets: [u8; 16] = rest.array()?;
            Named::Address(Ipv6Addr::from(octets).into())
        }
        3 => {
            let length = rest.u8()?;
            Named::Text(rest.take(length.into())?)
        }
        _ => return refuse(Reply::Address),
    };
    let port = u16::from_be_bytes(rest.array()?);
    if command != CONNECT {
        return refuse(Reply::Command);
    }
    let place = match host {
        Named::Address(address) => place(address.to_string().as_bytes(), port),
        Named::Text(text) => place(text, port),
    };
    place.map_or_else(|| refuse(Reply::Address), |it| Some(Step::Asked(it)))
}

enum Named<'a> {
    Address(IpAddr),
    Text(&'a [u8]),
}

/// Takes bytes apart from the front and counts them; `None` where they end too early.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at + length)?;
        self.at += length;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a whole talk comes to, and how many of its bytes were read.
    fn talk(login: Option<&str>, bytes: &[u8]) -> (usize, Step) {
        let login = login.map(|it| Login::new(it).expect("a login"));
        let mut handshake = Handshake::new(login);
        let mut at = 0;
        loop {
            let (length, step) = handshake.handle(&bytes[at..]);
            at += length;
            if !matches!(step, Step::Say(_)) {
                return (at, step);
            }
        }
    }

    fn asked(request: &[u8]) -> Step {
        let bytes = [&[5, 1, 0][..], request].concat();
        talk(None, &bytes).1
    }

    fn to(text: &str) -> Step {
        Step::Asked(text.parse().expect(text))
    }

    #[test]
    fn a_client_asks_by_name_and_by_address_of_both_families() {
        let name = b"\x05\x01\x00\x03\x0bexample.com\x01\xbb";
        assert_eq!(asked(name), to("example.com:443"));
        assert_eq!(
            asked(&[5, 1, 0, 1, 192, 0, 2, 1, 0, 22]),
            to("192.0.2.1:22")
        );
        let v6 = [&[5, 1, 0, 4][..], &[0x20; 16], &[0, 22]].concat();
        assert_eq!(
            asked(&v6),
            to("[2020:2020:2020:2020:2020:2020:2020:2020]:22")
        );
        // Clients write addresses into the place of a name, with and without brackets.
        assert_eq!(asked(b"\x05\x01\x00\x03\x05[::1]\x00\x50"), to("[::1]:80"));
        assert_eq!(asked(b"\x05\x01\x00\x03\x03::1\x00\x50"), to("[::1]:80"));
        let v4 = b"\x05\x01\x00\x03\x09192.0.2.1\x00\x50";
        assert_eq!(asked(v4), to("192.0.2.1:80"));
    }

    #[test]
    fn what_is_behind_the_request_is_not_read() {
        let bytes = b"\x05\x01\x00\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x16SSH-2.0-early";
        let (length, step) = talk(None, bytes);
        assert_eq!((length, step), (13, to("192.0.2.1:22")));
    }

    #[test]
    fn a_login_is_asked_for_and_nothing_goes_without_it() {
        let request = b"\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x16";
        let with = |login: &[u8]| [&[5, 2, 0, 2][..], login, request].concat();
        let good = with(b"\x01\x04user\x04pass");
        assert_eq!(talk(Some("user:pass"), &good).1, to("192.0.2.1:22"));
        let bad = with(b"\x01\x04user\x04pasS");
        let refused = Step::Refuse(Some(vec![1, 1]));
        assert_eq!(talk(Some("user:pass"), &bad).1, refused);
        // A client that offers no login is told that none of its methods will do.
        let none = [&[5, 1, 0][..], request].concat();
        let refused = Step::Refuse(Some(vec![5, 0xff]));
        assert_eq!(talk(Some("user:pass"), &none).1, refused);
    }

    #[test]
    fn what_cannot_be_done_is_told_by_its_code() {
        let code = |request: &[u8]| {
            let Step::Refuse(Some(reply)) = asked(request) else {
                panic!("{request:?} is not refused");
            };
            reply[1]
        };
        assert_eq!(code(&[5, 2, 0, 1, 192, 0, 2, 1, 0, 22]), 7);
        assert_eq!(code(&[5, 3, 0, 1, 192, 0, 2, 1, 0, 22]), 7);
        assert_eq!(code(&[5, 1, 0, 2]), 8);
        assert_eq!(code(b"\x05\x01\x00\x03\x05127.1\x00\x50"), 8);
        assert_eq!(code(&[5, 1, 0, 1, 192, 0, 2, 1, 0, 0]), 8, "port 0");
        for other in [&b"GET / HTTP/1.1\r\n"[..], &[4, 1, 0, 80], &[0x16, 3, 1]] {
            assert_eq!(talk(None, other).1, Step::Refuse(None), "{other:?}");
        }
    }

    #[test]
    fn every_reason_has_a_reply_and_only_a_clean_end_is_granted() {
        for &reason in Reason::ALL {
            let granted = Reply::of(reason) == Reply::Granted;
            assert_eq!(granted, reason == Reason::Done, "{reason}");
        }
        let of = |reason| Reply::of(reason).encode()[1];
        assert_eq!(of(Reason::PolicyDenied), 2);
        assert_eq!(of(Reason::RelayUnreachable), 3);
        assert_eq!(of(Reason::TargetUnreachable), 4);
        assert_eq!(of(Reason::NoSuchService), 4);
        assert_eq!(of(Reason::TargetRefused), 5);
        assert_eq!(of(Reason::TargetTimeout), 6);
        assert_eq!(of(Reason::Internal), 1);
    }
}
