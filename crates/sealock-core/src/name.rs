//! Names of tenants, agents, services and relays: validated once, newtypes from then on.
//!
//! All names are lower-case ASCII labels as in RFC 1123 (letters, digits, inner hyphens, 63 bytes a label), so
//! that a name means the same in a certificate's URI, a policy file, a DNS answer and a file path.
//! There is deliberately no normalisation: a name that is not canonical is an error, never «fixed».

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("a {kind} must not be empty")]
    Empty {
        /// What kind of name was asked for.
        kind: &'static str,
    },
    /// Longer than the kind allows.
    #[error("a {kind} has at most {limit} characters, this one has {length}")]
    TooLong {
        /// What kind of name was asked for.
        kind: &'static str,
        /// The longest that is allowed, in bytes.
        limit: usize,
        /// The length that was given, in bytes.
        length: usize,
    },
    /// A character outside `a-z`, `0-9`, `-` (and `.` where labels may be joined), or a hyphen at a label's edge.
    #[error("`{text}` is not a {kind}: use a-z, 0-9 and inner hyphens{dots}")]
    Malformed {
        /// What kind of name was asked for.
        kind: &'static str,
        /// What was given, escaped.
        text: String,
        /// A note on dots for the kinds that allow them.
        dots: &'static str,
    },
}

const LABEL_LIMIT: usize = 63; // RFC 1035 §2.3.4
const DOTTED_LIMIT: usize = 253; // the longest host name that DNS can carry

fn is_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    !bytes.is_empty()
        && bytes.len() <= LABEL_LIMIT
        && bytes.iter().all(inner)
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

fn check(kind: &'static str, text: &str, dotted: bool) -> Result<(), NameError> {
    let limit = if dotted { DOTTED_LIMIT } else { LABEL_LIMIT };
    if text.is_empty() {
        return Err(NameError::Empty { kind });
    }
    if text.len() > limit {
        return Err(NameError::TooLong {
            kind,
            limit,
            length: text.len(),
        });
    }
    let well_formed = if dotted {
        text.split('.').all(is_label)
    } else {
        is_label(text)
    };
    if well_formed {
        return Ok(());
    }
    let dots = if dotted {
        ", labels joined by dots"
    } else {
        ""
    };
    Err(NameError::Malformed {
        kind,
        text: text.escape_default().to_string(),
        dots,
    })
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, dotted: $dotted:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check($kind, text, $dotted)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", &self.0)
            }
        }
    };
}

name! {
    /// The trust domain of a deployment: the authority part of every SPIFFE id in it.
    TrustDomain, "trust domain", dotted: true
}
name! {
    /// A tenant: a closed world of agents, services and rules.
    TenantName, "tenant name", dotted: false
}
name! {
    /// An agent, unique in its tenant.
    AgentName, "agent name", dotted: false
}
name! {
    /// A person known to a gateway, unique in its tenant.
    UserName, "user name", dotted: false
}
name! {
    /// A service, unique in its tenant.
    ServiceName, "service name", dotted: true
}
name! {
    /// A relay or a controller, unique in the trust domain.
    NodeName, "node name", dotted: false
}
name! {
    /// A part of the world, as its operator calls it: relays and agents of one region are near each other.
    Region, "region", dotted: false
}
name! {
    /// A set of agents or users that a rule can speak of at once.
    GroupName, "group name", dotted: false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_canonical_labels_only() {
        for good in ["a", "web", "web-1", "0", &"x".repeat(63)] {
            assert!(good.parse::<AgentName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a_b",
            "a.b",
            "a b",
            "ä",
            "a\n",
            "a%2e",
            "..",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<AgentName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn services_and_trust_domains_may_join_labels_with_dots() {
        assert!("db.prod".parse::<ServiceName>().is_ok());
        for bad in ["db..prod", ".db", "db.", "db.-x", &"a.".repeat(127)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_error_escapes_what_it_repeats() {
        let error = "a\u{1b}[2J"
            .parse::<AgentName>()
            .expect_err("an escape sequence is no name");
        assert!(!error.to_string().contains('\u{1b}'));
    }
}
