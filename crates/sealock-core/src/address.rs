//! Where things are: targets of services, addresses of relays, and socket addresses that know their side.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::host::HostName;

/// The other end of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Remote<T>(pub T);

/// Our end of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Local<T>(pub T);

impl<T: fmt::Display> fmt::Display for Remote<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: fmt::Display> fmt::Display for Local<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No port where one is needed.
    #[error("`{0}` has no port: write HOST:PORT")]
    NoPort(String),
    /// A port outside 1 to 65535.
    #[error("`{0}` is not a port: write HOST:PORT with a port of 1 to 65535")]
    BadPort(String),
    /// A host that is neither an IP address nor a DNS name.
    #[error("`{0}` is neither an IP address nor a host name")]
    BadHost(String),
    /// A unix socket's path that is not absolute.
    #[error("the unix socket path `{0}` must be absolute")]
    RelativePath(String),
}

/// A host, by name or by IP address, with a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// A host by its name; `None` for port 0.
    #[must_use]
    pub fn named(host: &HostName, port: u16) -> Option<Self> {
        (port != 0).then(|| Self {
            host: host.as_str().to_owned(),
            port,
        })
    }

    /// The host without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The socket address, when the host is an IP address.
    #[must_use]
    pub fn as_socket_addr(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.host.parse().ok()?, self.port))
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

fn port(text: &str) -> Result<u16, AddressError> {
    let bad = || AddressError::BadPort(text.escape_default().to_string());
    // `parse` alone would take «+80».
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    match text.parse() {
        Ok(0) | Err(_) => Err(bad()),
        Ok(port) => Ok(port),
    }
}

fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    host.len() <= 253 && host.split('.').all(label)
}

impl FromStr for HostPort {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let shown = || text.escape_default().to_string();
        if let Some(rest) = text.strip_prefix('[') {
            let (host, tail) = rest
                .split_once(']')
                .ok_or_else(|| AddressError::BadHost(shown()))?;
            let tail = tail
                .strip_prefix(':')
                .ok_or_else(|| AddressError::NoPort(shown()))?;
            let host: std::net::Ipv6Addr =
                host.parse().map_err(|_| AddressError::BadHost(shown()))?;
            return Ok(Self {
                host: host.to_string(),
                port: port(tail)?,
            });
        }
        let (host, tail) = text
            .rsplit_once(':')
            .ok_or_else(|| AddressError::NoPort(shown()))?;
        if host.parse::<std::net::Ipv4Addr>().is_err() && !is_host_name(host) {
            return Err(AddressError::BadHost(shown()));
        }
        Ok(Self {
            host: host.to_ascii_lowercase(),
            port: port(tail)?,
        })
    }
}

impl TryFrom<String> for HostPort {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<HostPort> for String {
    fn from(address: HostPort) -> Self {
        address.to_string()
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The program behind a service, seen from its providing agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// A TCP listener.
    Tcp(HostPort),
    /// A unix stream socket at an absolute path.
    Unix(PathBuf),
}

impl FromStr for Target {
    type Err = AddressError;

    /// Reads `PORT` (on 127.0.0.1), `HOST:PORT`, `unix:/path` or `/path`.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text
            .strip_prefix("unix:")
            .or_else(|| text.starts_with('/').then_some(text))
        {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err(AddressError::RelativePath(path.display().to_string()))
            };
        }
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(Self::Tcp(HostPort {
                host: "127.0.0.1".into(),
                port: port(text)?,
            }));
        }
        text.parse().map(Self::Tcp)
    }
}

impl TryFrom<String> for Target {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_round_trip_through_their_text() {
        for (text, shown) in [
            ("3000", "127.0.0.1:3000"),
            ("localhost:80", "localhost:80"),
            ("[::1]:5432", "[::1]:5432"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
            ("/run/app.sock", "unix:/run/app.sock"),
        ] {
            let target: Target = text.parse().expect(text);
            assert_eq!(target.to_string(), shown);
            assert_eq!(shown.parse::<Target>().expect(shown), target);
        }
    }

    #[test]
    fn refuses_what_is_no_address() {
        for text in [
            "",
            "0",
            "70000",
            "host",
            "host:",
            "host:0",
            "host:+80",
            "::1:80",
            "[::1]",
            "[::1]80",
            "a b:80",
            "unix:app.sock",
            ":80",
            "a..b:80",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
    }
}
