//! Names of hosts, as DNS knows them.
//!
//! Lower case, without the dot at the end. A text that some resolver would read as an IPv4 address (`127.1`, `0x7f.1`,
//! `2130706433`) is no name: whoever judges names must never be handed an address in disguise.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not the name of a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostNameError {
    /// Nothing was given.
    #[error("a host name must not be empty")]
    Empty,
    /// Longer than DNS can carry.
    #[error("a host name has at most {NAME_LIMIT} characters, this one has {0}")]
    TooLong(usize),
    /// A label that is empty, too long, or holds other characters.
    #[error(
        "`{0}` is not a host name: use labels of a-z, 0-9, `-` and `_`, joined by dots; write other letters in their `xn--` form"
    )]
    Malformed(String),
    /// A last label that makes resolvers read the whole as an IPv4 address.
    #[error("`{0}` would be read as an IPv4 address: write the address as four numbers")]
    Numeric(String),
}

/// The longest name that DNS can carry as text (RFC 1035 §2.3.4), without the dot at the end.
const NAME_LIMIT: usize = 253;
const LABEL_LIMIT: usize = 63; // RFC 1035 §2.3.4

/// A host's name: canonical, so that equal names are equal texts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(Arc<str>);

impl HostName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_label(label: &str) -> bool {
    let lawful = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    (1..=LABEL_LIMIT).contains(&label.len()) && label.bytes().all(lawful)
}

/// Whether resolvers take a name with this last label for an IPv4 address, in any of the old forms.
fn is_numeric(label: &str) -> bool {
    let hex = label.strip_prefix("0x");
    label.bytes().all(|b| b.is_ascii_digit())
        || hex.is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

impl FromStr for HostName {
    type Err = HostNameError;

    /// Reads a name in any case, with or without the dot at the end.
    fn from_str(text: &str) -> Result<Self, HostNameError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let shown = || {
            let start: String = text.chars().take(80).collect();
            start.escape_default().to_string()
        };
        if name.is_empty() {
            return Err(HostNameError::Empty);
        }
        if name.len() > NAME_LIMIT {
            return Err(HostNameError::TooLong(name.len()));
        }
        if !name.split('.').all(is_label) {
            return Err(HostNameError::Malformed(shown()));
        }
        if name.rsplit('.').next().is_some_and(is_numeric) {
            return Err(HostNameError::Numeric(shown()));
        }
        Ok(Self(name.into()))
    }
}

impl TryFrom<String> for HostName {
    type Error = HostNameError;

    fn try_from(text: String) -> Result<Self, HostNameError> {
        text.parse()
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_host_has_one_spelling() {
        for text in ["Api.Example.COM", "api.example.com.", "api.example.com"] {
            let name: HostName = text.parse().expect(text);
            assert_eq!(name.as_str(), "api.example.com");
        }
        for text in [
            "_dmarc.example.com",
            "xn--bcher-kva.example",
            "a",
            "7.example",
        ] {
            assert!(text.parse::<HostName>().is_ok(), "{text}");
        }
    }

    // S22: no spelling of an address passes as a name.
    #[test]
    fn an_address_in_disguise_is_no_name() {
        for text in [
            "127.0.0.1",
            "127.1",
            "0177.1",
            "2130706433",
            "0x7f.1",
            "0x7f000001",
            "1.2.3.4.",
            "0x",
            "0",
        ] {
            let error = text.parse::<HostName>().expect_err(text);
            assert!(
                matches!(error, HostNameError::Numeric(_)),
                "{text}: {error}"
            );
        }
        for text in [
            "",
            ".",
            "a..b",
            "a b",
            "::1",
            "[::1]",
            "fe80::1%eth0",
            "ä.example",
            "a/b",
            "a@b",
            "a\0b",
        ] {
            assert!(text.parse::<HostName>().is_err(), "{text:?}");
        }
        assert!("a.".repeat(128).parse::<HostName>().is_err());
        assert!(
            format!("{}.example", "a".repeat(64))
                .parse::<HostName>()
                .is_err()
        );
    }
}
