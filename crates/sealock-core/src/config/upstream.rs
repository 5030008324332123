//! The proxy that may stand between this machine and the internet, and the hosts that are reached without it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::value::Value;
use crate::address::HostPort;
use crate::secret::Secret;

/// How a proxy is talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamKind {
    /// HTTP CONNECT.
    Http,
    /// SOCKS5.
    Socks5,
}

/// A proxy: `http://host:port` or `socks5://host:port`, with `user:password@` before the host when it wants a login.
#[derive(Clone)]
pub struct Upstream {
    kind: UpstreamKind,
    address: HostPort,
    user: Option<String>,
    password: Secret<String>,
}

impl Upstream {
    /// How it is talked to.
    #[must_use]
    pub fn kind(&self) -> UpstreamKind {
        self.kind
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &HostPort {
        &self.address
    }

    /// The user and the password to show it.
    #[must_use]
    pub fn login(&self) -> Option<(&str, &str)> {
        let user = self.user.as_deref()?;
        Some((user, self.password.expose()))
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.kind {
            UpstreamKind::Http => "http",
            UpstreamKind::Socks5 => "socks5",
        };
        // The password is shown to nobody, not even to whoever gave it.
        let login = self
            .user
            .as_ref()
            .map(|user| format!("{}:***@", user.escape_default()));
        write!(
            f,
            "{scheme}://{}{}",
            login.unwrap_or_default(),
            self.address
        )
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text names no proxy. It does not repeat the text, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// Not one of the kinds that there are.
    #[error(
        "a proxy is `http://HOST:PORT` or `socks5://HOST:PORT`, with USER:PASSWORD@ before the host if it wants a login"
    )]
    Scheme,
    /// No host and port.
    #[error("the proxy's address is no HOST:PORT")]
    Address,
    /// A `%` in the login without two hexadecimal digits, or bytes that are no text.
    #[error("the proxy's login is not percent-encoded text")]
    Login,
}

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        let (scheme, rest) = text.split_once("://").ok_or(UpstreamError::Scheme)?;
        let (kind, port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (UpstreamKind::Http, 80),
            "socks5" | "socks5h" => (UpstreamKind::Socks5, 1080),
            _ => return Err(UpstreamError::Scheme),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, address) = match rest.rsplit_once('@') {
            Some((login, address)) => (Some(login), address),
            None => (None, rest),
        };
        let address = address
            .parse()
            .or_else(|_| format!("{address}:{port}").parse())
            .map_err(|_| UpstreamError::Address)?;
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, "")))
        {
            Some((user, password)) => (Some(decoded(user)?), decoded(password)?),
            None => (None, String::new()),
        };
        Ok(Self {
            kind,
            address,
            user,
            password: Secret::new(password),
        })
    }
}

/// Undoes percent-encoding (RFC 3986 §2.1).
fn decoded(text: &str) -> Result<String, UpstreamError> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = tail
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.ok_or(UpstreamError::Login)?);
        rest = &tail[2..];
    }
    // A control character would end a line of the talk with the proxy.
    let text = String::from_utf8(bytes).map_err(|_| UpstreamError::Login)?;
    if text.chars().any(char::is_control) {
        return Err(UpstreamError::Login);
    }
    Ok(text)
}

impl Value for Upstream {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|error: UpstreamError| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// The proxy to use, if any, and for whom it is not used.
#[derive(Debug, Clone, Default)]
pub struct Upstreams {
    proxy: Option<Upstream>,
    /// As in `NO_PROXY`: host names with their subdomains, IP addresses, `*` for everybody.
    without: Vec<String>,
}

impl Upstreams {
    /// A proxy for everybody but those that `without` names, separated by commas.
    #[must_use]
    pub fn new(proxy: Option<Upstream>, without: &str) -> Self {
        let names = without
            .split(',')
            .map(|it| it.trim().trim_start_matches('.'));
        let names = names.filter(|it| !it.is_empty());
        Self {
            proxy,
            without: names.map(str::to_ascii_lowercase).collect(),
        }
    }

    /// The proxy towards a host.
    #[must_use]
    pub fn towards(&self, target: &HostPort) -> Option<Upstream> {
        let host = target.host().to_ascii_lowercase();
        // Nothing on this machine is beyond a proxy.
        let is_here = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        let is_named = |name: &String| {
            let below = host.strip_suffix(name.as_str());
            name == "*" || below.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if is_here || self.without.iter().any(is_named) {
            return None;
        }
        self.proxy.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_read_with_its_login_and_shown_without_its_password() {
        let cases = [
            (
                "http://proxy.example:3128",
                "http://proxy.example:3128",
                None,
            ),
            ("socks5h://10.0.0.1", "socks5://10.0.0.1:1080", None),
            (
                "HTTP://a:b@proxy.example/",
                "http://a:***@proxy.example:80",
                Some(("a", "b")),
            ),
            (
                "http://a%40b:p%3a%25@[::1]:8080",
                "http://a@b:***@[::1]:8080",
                Some(("a@b", "p:%")),
            ),
        ];
        for (text, shown, login) in cases {
            let proxy: Upstream = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((proxy.to_string().as_str(), proxy.login()), (shown, login));
            assert_eq!(format!("{proxy:?}"), shown);
        }
        for text in [
            "proxy:3128",
            "ftp://proxy:21",
            "http://",
            "http://a:%zz@p:1",
            "http://a%0d%0a:b@p:1",
        ] {
            let error = text.parse::<Upstream>().expect_err(text).to_string();
            assert!(!error.contains(text), "{error}");
        }
    }

    #[test]
    fn no_proxy_names_hosts_and_their_subdomains_and_this_machine_needs_none() {
        let proxy = || "http://proxy:1".parse().ok();
        let some = Upstreams::new(proxy(), "corp.example, .lan,192.0.2.1");
        for (host, through) in [
            ("relay.example:443", true),
            ("corp.example:443", false),
            ("a.CORP.example:443", false),
            ("notcorp.example:443", true),
            ("b.lan:443", false),
            ("192.0.2.1:443", false),
            ("192.0.2.10:443", true),
            ("127.0.0.1:443", false),
            ("localhost:443", false),
        ] {
            let target = host.parse().expect("an address");
            assert_eq!(some.towards(&target).is_some(), through, "{host}");
        }
        let nobody = Upstreams::new(proxy(), "*");
        assert!(
            nobody
                .towards(&"relay.example:443".parse().expect("an address"))
                .is_none()
        );
    }
}
