//! The head of an HTTP/1.1 CONNECT (RFC 9110 §9.3.6), and in which words HTTP tells a [`Reason`] (RFC 9209).
//!
//! The target of the request is the only truth: a `Host` that says something else is passed over (RFC 9112 §3.2.2), and
//! the tunnel begins with the first byte behind the head. Deliberately absent: requests that are to be forwarded.

use sealock_core::destination::Destination;
use sealock_core::reason::{Outcome, Reason};

use super::{Login, authority};

/// The longest head that is read: a login and what browsers say of themselves are below a quarter of it.
pub const HEAD_LIMIT: usize = 16 * 1024;
const HEADERS_LIMIT: usize = 64;
const METHOD: &[u8] = b"CONNECT ";

/// Whether a request is a CONNECT; `None` while its first bytes do not tell yet.
#[must_use]
pub fn is_connect(bytes: &[u8]) -> Option<bool> {
    if bytes.starts_with(METHOD) {
        return Some(true);
    }
    (!METHOD.starts_with(bytes)).then_some(false)
}

/// What to do after some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// All bytes belong to a head that is not whole yet.
    NeedMore,
    /// The client wants to go there, and waits for an answer.
    Asked(Destination),
    /// Answer this and hang up.
    Refuse(Status),
}

/// A refusal that is no [`Reason`]: the request itself is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is no request that a proxy understands.
    BadRequest,
    /// It lacks the login.
    Login,
    /// Its head is too long.
    TooLong,
}

impl Status {
    /// Code and phrase.
    #[must_use]
    pub fn line(self) -> (u16, &'static str) {
        match self {
            Self::BadRequest => (400, "Bad Request"),
            Self::Login => (407, "Proxy Authentication Required"),
            Self::TooLong => (431, "Request Header Fields Too Large"),
        }
    }

    /// The answer, whole.
    #[must_use]
    pub fn answer(self) -> Vec<u8> {
        let (code, phrase) = self.line();
        let challenge = match self {
            Self::Login => format!("Proxy-Authenticate: {CHALLENGE}\r\n"),
            Self::BadRequest | Self::TooLong => String::new(),
        };
        format!(
            "HTTP/1.1 {code} {phrase}\r\n{challenge}Content-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .into_bytes()
    }
}

/// What a door asks for that wants a login (RFC 7617 §2).
pub const CHALLENGE: &str = "Basic realm=\"sealock\"";

/// That the way is open; nothing follows but the tunnel's own bytes.
pub const GRANTED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";

/// Reads the head at the front of `bytes`; says how many bytes it has, and what to do.
#[must_use]
pub fn handle(login: Option<&Login>, bytes: &[u8]) -> (usize, Step) {
    let seen = &bytes[..bytes.len().min(HEAD_LIMIT)];
    if is_connect(seen) == Some(false) {
        return (seen.len(), Step::Refuse(Status::BadRequest));
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_LIMIT];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(seen) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_LIMIT => return (0, Step::NeedMore),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return (seen.len(), Step::Refuse(Status::TooLong));
        }
        Err(_) => return (seen.len(), Step::Refuse(Status::BadRequest)),
    };
    // Some clients say HTTP/1.0 here, which never had CONNECT; what they mean is the same.
    let target = request.path.filter(|_| request.method == Some("CONNECT"));
    // RFC 9112 §3.2.3: a port is always said.
    let Some(place) = target.and_then(|it| authority(it.as_bytes(), None)) else {
        return (length, Step::Refuse(Status::BadRequest));
    };
    let mut told = request
        .headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case("proxy-authorization"));
    let is_known = match (login, told.next(), told.next()) {
        (None, _, _) => true,
        (Some(login), Some(header), None) => login.is_basic(header.value),
        // Of two logins nobody can say which is meant.
        (Some(_), _, _) => false,
    };
    let refused = Step::Refuse(Status::Login);
    (
        length,
        if is_known {
            Step::Asked(place)
        } else {
            refused
        },
    )
}

/// How HTTP tells a reason: its status, and the word of RFC 9209 §2.3.
#[must_use]
pub fn status(reason: Reason) -> (u16, &'static str) {
    let one_of = |reasons: &[Reason]| reasons.contains(&reason);
    if one_of(&[
        Reason::TargetTimeout,
        Reason::OpenTimeout,
        Reason::HandshakeTimeout,
    ]) {
        return (504, "connection_timeout");
    }
    if one_of(&[Reason::TargetRefused, Reason::PeerRefused]) {
        return (502, "connection_refused");
    }
    if one_of(&[Reason::FarReset, Reason::Done, Reason::PeerLost]) {
        return (502, "connection_terminated");
    }
    if one_of(&[Reason::Overloaded, Reason::Draining]) {
        return (503, "connection_limit_reached");
    }
    match reason.outcome() {
        Outcome::Refused => (403, "http_request_denied"),
        Outcome::Unreachable => (502, "destination_unavailable"),
        Outcome::Failed if reason == Reason::NoSuchService => (502, "destination_not_found"),
        Outcome::Failed | Outcome::Success => (502, "proxy_internal_error"),
    }
}

/// The value of `Proxy-Status` that tells a reason (RFC 9209 §2).
#[must_use]
pub fn proxy_status(reason: Reason) -> String {
    let (_, error) = status(reason);
    format!("sealock; error={error}; details=\"{}\"", reason.code())
}

/// What a person reads who sees the refusal.
#[must_use]
pub fn words(reason: Reason) -> String {
    let hint = match reason.hint() {
        "" => String::new(),
        hint => format!("hint: {hint}\n"),
    };
    format!("sealock: {} ({})\n{hint}", reason.text(), reason.code())
}

/// The answer that tells a reason, whole.
#[must_use]
pub fn refusal(reason: Reason) -> Vec<u8> {
    let (code, _) = status(reason);
    let phrase = match code {
        403 => "Forbidden",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Bad Gateway",
    };
    let (told, words) = (proxy_status(reason), words(reason));
    let length = words.len();
    format!(
        "HTTP/1.1 {code} {phrase}\r\nProxy-Status: {told}\r\nContent-Type: text/plain; charset=utf-8\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{words}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: &str) -> (usize, Step) {
        handle(None, head.as_bytes())
    }

    #[test]
    fn a_connect_is_read_up_to_its_last_byte_and_its_host_line_counts_for_nothing() {
        let head = "CONNECT example.com:443 HTTP/1.1\r\nHost: other.example:1\r\n\r\n";
        let to = Step::Asked("example.com:443".parse().expect("a place"));
        assert_eq!(read(head), (head.len(), to.clone()));
        let old = "CONNECT example.com:443 HTTP/1.0\r\n\r\n";
        assert_eq!(read(old), (old.len(), to.clone()));
        assert_eq!(read(&format!("{head}\x16\x03\x01early")), (head.len(), to));
        assert_eq!(read(&head[..head.len() - 1]), (0, Step::NeedMore));
        for (start, is) in [
            ("CON", None),
            ("CONNECT ", Some(true)),
            ("GET ", Some(false)),
        ] {
            assert_eq!(is_connect(start.as_bytes()), is, "{start}");
        }
    }

    #[test]
    fn what_is_no_connect_to_a_place_is_refused() {
        let long = format!(
            "CONNECT a.example:1 HTTP/1.1\r\nX: {}",
            "x".repeat(HEAD_LIMIT)
        );
        let many = format!(
            "CONNECT a.example:1 HTTP/1.1\r\n{}\r\n",
            "X: y\r\n".repeat(HEADERS_LIMIT + 1)
        );
        let cases = [
            ("CONNECT example.com HTTP/1.1\r\n\r\n", Status::BadRequest),
            ("CONNECT 127.1:80 HTTP/1.1\r\n\r\n", Status::BadRequest),
            (
                "CONNECT http://a.example:80/ HTTP/1.1\r\n\r\n",
                Status::BadRequest,
            ),
            ("CONNECT a.example:80 HTTP/2.0\r\n\r\n", Status::BadRequest),
            ("CONNECT a.example:80\r\n\r\n", Status::BadRequest),
            (
                "\r\nCONNECT a.example:80 HTTP/1.1\r\n\r\n",
                Status::BadRequest,
            ),
            (
                "CONNECT a.example:1 HTTP/1.1\r\n x\r\n\r\n",
                Status::BadRequest,
            ),
            (&long, Status::TooLong),
            (&many, Status::TooLong),
        ];
        for (head, status) in cases {
            let start: String = head.chars().take(60).collect();
            assert_eq!(read(head).1, Step::Refuse(status), "{start}");
        }
    }

    #[test]
    fn a_login_is_asked_for_and_of_two_none_counts() {
        let login = Login::new("user:pass").expect("a login");
        let ask = |headers: &str| {
            let head = format!("CONNECT a.example:1 HTTP/1.1\r\n{headers}\r\n");
            handle(Some(&login), head.as_bytes()).1
        };
        let good = "Proxy-Authorization: Basic dXNlcjpwYXNz\r\n";
        assert!(matches!(ask(good), Step::Asked(_)));
        for bad in ["", "Proxy-Authorization: Basic eHh4\r\n", &good.repeat(2)] {
            assert_eq!(ask(bad), Step::Refuse(Status::Login), "{bad}");
        }
        let told = String::from_utf8(Status::Login.answer()).expect("text");
        assert!(told.contains("Proxy-Authenticate: Basic realm="), "{told}");
    }

    #[test]
    fn every_reason_is_told_by_a_status_and_no_refusal_looks_like_success() {
        for &reason in Reason::ALL {
            let (code, _) = status(reason);
            assert!([403, 502, 503, 504].contains(&code), "{reason}: {code}");
            let told = String::from_utf8(refusal(reason)).expect("text");
            assert!(told.contains(reason.code()), "{told}");
        }
        assert_eq!(status(Reason::PolicyDenied).0, 403);
        assert_eq!(status(Reason::TargetRefused).0, 502);
        assert_eq!(status(Reason::NoSuchService).0, 502);
        assert_eq!(status(Reason::TargetTimeout).0, 504);
        let told = proxy_status(Reason::TargetRefused);
        assert_eq!(
            told,
            "sealock; error=connection_refused; details=\"TARGET_REFUSED\""
        );
    }
}
