//! The join token: all that a new node needs to find its deployment, to know it again and to be let in once.
//!
//! `SLK1-` and base32 (RFC 4648, no padding, any case) of: role, pin, secret, addresses, checksum. The pin is the
//! SHA-256 of the root certificate's SubjectPublicKeyInfo, so the node can authenticate the controller end to end
//! through a relay that it does not trust yet. Deliberately absent: expiry and name binding; these the controller
//! keeps, because what the holder could edit protects nothing.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};

use crate::address::HostPort;
use crate::identity::Role;
use crate::secret::Secret;

/// The SHA-256 of a root certificate's SubjectPublicKeyInfo (RFC 7469 §2.4 hashes the same bytes).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CaPin(pub [u8; 32]);

impl fmt::Debug for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// The bytes that let one node in, once: 128 bits.
pub type TokenSecret = Secret<[u8; SECRET_LENGTH]>;

/// A join token, as `sealock token create` prints it.
#[derive(Debug, Clone)]
pub struct JoinToken {
    /// The role that the new node will have.
    pub role: Role,
    /// The root that the controller's certificate must lead to.
    pub pin: CaPin,
    /// What the controller asks for before it issues a certificate.
    pub secret: TokenSecret,
    /// Where to go, first one first: relays for an agent, the controller for a relay.
    pub addresses: Vec<HostPort>,
}

/// Why a text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not one of ours, or of a version that this one does not know.
    #[error("a join token begins with SLK1-")]
    Prefix,
    /// A character that base32 does not have.
    #[error("the join token has a character that does not belong to it: was it copied whole?")]
    Alphabet,
    /// Cut off or altered.
    #[error("the join token is incomplete or altered: copy it again")]
    Damaged,
}

const PREFIX: &str = "SLK1-";
const PIN_LENGTH: usize = 32;
const SECRET_LENGTH: usize = 16;
const CHECKSUM_LENGTH: usize = 4; // enough to notice a bad copy; the secret is what protects
const TEXT_LIMIT: usize = 2_048; // about 30 addresses
const ADDRESS_LIMIT: usize = 16;

fn role_byte(role: Role) -> u8 {
    match role {
        Role::Agent => 1,
        Role::Relay => 2,
        Role::Controller => 3,
        Role::User => 4,
    }
}

fn role_of(byte: u8) -> Option<Role> {
    [Role::Agent, Role::Relay, Role::Controller, Role::User]
        .into_iter()
        .find(|&role| role_byte(role) == byte)
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_LENGTH] {
    let digest = Sha256::digest(body);
    [digest[0], digest[1], digest[2], digest[3]]
}

impl JoinToken {
    /// The token's text. It holds the secret: for the eyes of the one who joins, never for a log.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut body = vec![role_byte(self.role)];
        body.extend_from_slice(&self.pin.0);
        body.extend_from_slice(self.secret.expose());
        for address in self.addresses.iter().take(ADDRESS_LIMIT) {
            let text = address.to_string();
            body.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
            body.extend_from_slice(&text.as_bytes()[..text.len().min(usize::from(u8::MAX))]);
        }
        let sum = checksum(&body);
        body.extend_from_slice(&sum);
        format!("{PREFIX}{}", BASE32_NOPAD.encode(&body))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TEXT_LIMIT {
            return Err(TokenError::Damaged);
        }
        let upper = text.to_ascii_uppercase();
        let encoded = upper.strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let bytes = BASE32_NOPAD
            .decode(encoded.as_bytes())
            .map_err(|error| match error.kind {
                data_encoding::DecodeKind::Symbol => TokenError::Alphabet,
                data_encoding::DecodeKind::Length
                | data_encoding::DecodeKind::Trailing
                | data_encoding::DecodeKind::Padding => TokenError::Damaged,
            })?;
        let (body, sum) = bytes
            .split_last_chunk::<CHECKSUM_LENGTH>()
            .ok_or(TokenError::Damaged)?;
        if checksum(body) != *sum {
            return Err(TokenError::Damaged);
        }
        parse_body(body).ok_or(TokenError::Damaged)
    }
}

fn parse_body(body: &[u8]) -> Option<JoinToken> {
    let (&role, rest) = body.split_first()?;
    let (pin, rest) = rest.split_first_chunk::<PIN_LENGTH>()?;
    let (secret, mut rest) = rest.split_first_chunk::<SECRET_LENGTH>()?;
    let mut addresses = Vec::new();
    while let Some((&length, tail)) = rest.split_first() {
        let (text, tail) = tail.split_at_checked(length.into())?;
        addresses.push(std::str::from_utf8(text).ok()?.parse().ok()?);
        rest = tail;
    }
    let role = role_of(role)?;
    let usable = !addresses.is_empty() && addresses.len() <= ADDRESS_LIMIT;
    usable.then(|| JoinToken {
        role,
        pin: CaPin(*pin),
        secret: Secret::new(*secret),
        addresses,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> JoinToken {
        JoinToken {
            role: Role::Agent,
            pin: CaPin([7; 32]),
            secret: Secret::new([9; 16]),
            addresses: vec![
                "relay.example:7443".parse().expect("valid"),
                "[::1]:7443".parse().expect("valid"),
            ],
        }
    }

    #[test]
    fn round_trips_in_any_case_and_with_white_space_around() {
        let text = sample().to_text();
        for copy in [
            text.clone(),
            text.to_ascii_lowercase(),
            format!("  {text}\n"),
        ] {
            let token: JoinToken = copy.parse().expect("the same token");
            assert_eq!(token.to_text(), text);
        }
    }

    #[test]
    fn every_single_altered_or_missing_character_is_noticed() {
        let text = sample().to_text();
        for at in PREFIX.len()..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(altered).expect("still ASCII");
            assert!(altered.parse::<JoinToken>().is_err(), "altered at {at}");
            assert!(text[..at].parse::<JoinToken>().is_err(), "cut at {at}");
        }
    }

    #[test]
    fn debug_output_hides_the_secret() {
        assert!(format!("{:?}", sample()).contains("[secret]"));
    }

    #[test]
    fn other_versions_and_other_texts_are_named_as_such() {
        assert_eq!(
            "SLK2-AAAA".parse::<JoinToken>().err(),
            Some(TokenError::Prefix)
        );
        assert_eq!(
            "SLK1-0189".parse::<JoinToken>().err(),
            Some(TokenError::Alphabet)
        );
        assert_eq!(
            "SLK1-".parse::<JoinToken>().err(),
            Some(TokenError::Damaged)
        );
    }
}
