//! Texts that people paste and files say: join tokens, and the patterns of policy rules.

use std::str::FromStr;

use sealock_core::policy::{CallerPattern, PatternError, ServicePattern};
use sealock_core::token::{JoinToken, TokenError};

use crate::fuzz::{Seen, Target};

pub(super) const TOKEN: Target = Target {
    name: "join_token",
    run: token,
    reaches: &["token", "prefix", "alphabet", "damaged", "no text"],
};

fn token(input: &[u8]) -> Seen {
    let Ok(text) = std::str::from_utf8(input) else {
        return Seen::from(["no text"]);
    };
    let outcome = match text.parse::<JoinToken>() {
        Ok(token) => {
            let again: JoinToken = token.to_text().parse().expect("our own text");
            assert_eq!(again.to_text(), token.to_text());
            assert!(!token.addresses.is_empty());
            "token"
        }
        Err(TokenError::Prefix) => "prefix",
        Err(TokenError::Alphabet) => "alphabet",
        Err(TokenError::Damaged) => "damaged",
    };
    Seen::from([outcome])
}

pub(super) const PATTERN: Target = Target {
    name: "policy_pattern",
    run: pattern,
    reaches: &[
        "caller",
        "service",
        "empty",
        "double star",
        "upper case",
        "empty label",
        "malformed",
        "unknown kind",
        "bad group",
        "bad label",
        "no text",
    ],
};

fn pattern(input: &[u8]) -> Seen {
    let Ok(text) = std::str::from_utf8(input) else {
        return Seen::from(["no text"]);
    };
    let mut seen = Seen::new();
    seen.insert(parsed::<CallerPattern>(text, "caller"));
    seen.insert(parsed::<ServicePattern>(text, "service"));
    seen
}

fn parsed<P>(text: &str, name: &'static str) -> &'static str
where
    P: FromStr<Err = PatternError> + ToString + PartialEq + std::fmt::Debug,
{
    match text.parse::<P>() {
        Ok(pattern) => {
            // What a rule file says is what a listing shows: parse(print) = id.
            assert_eq!(pattern.to_string().parse::<P>().ok(), Some(pattern));
            name
        }
        Err(error) => match error {
            PatternError::Empty => "empty",
            PatternError::DoubleStar(_) => "double star",
            PatternError::UpperCase { .. } => "upper case",
            PatternError::EmptyLabel(_) => "empty label",
            PatternError::Malformed { .. } => "malformed",
            PatternError::UnknownKind { .. } => "unknown kind",
            PatternError::Group(_) => "bad group",
            PatternError::Label(_) => "bad label",
        },
    }
}
