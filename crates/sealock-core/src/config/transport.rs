//! What carries a session between an agent and a relay, from the best to the one that nearly always works.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::value::{Element, Value, ValueError};

/// What carries a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// QUIC over UDP.
    Quic,
    /// A mux over TLS over TCP.
    Tls,
    /// A mux over a WebSocket over TLS over TCP.
    Websocket,
}

impl Transport {
    /// Every transport, the best first.
    pub const ALL: &'static [Self] = &[Self::Quic, Self::Tls, Self::Websocket];

    /// Its word in configuration and output.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tls => "tls",
            Self::Websocket => "websocket",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for Transport {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.iter().find(|it| it.word() == text);
        known.copied().ok_or_else(|| ValueError::Word {
            given: text.escape_default().take(80).collect(),
            known: "quic, tls, websocket",
        })
    }
}

impl Value for Transport {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: ValueError| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Element for Transport {
    const NOUN: &'static str = "transport";
    // Without any nothing would ever be reached.
    const LIST: Option<&'static str> = Some("a list with at least one of quic, tls, websocket");

    fn unique(&self) -> String {
        self.to_string()
    }
}
