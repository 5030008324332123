//! Between messages and domain types; what a peer sent is judged here and nowhere later.

use sealock_core::choice::{Terms, Weight};
use sealock_core::identity::Role;
use sealock_core::name::{Region, ServiceName};
use sealock_core::reason::Reason;
use sealock_core::view::{Delta, Entries, Offering, ViewVersion};

use super::{DecisionRow, Issued, WatchEvent, proto};
use crate::identity::Trust;
use crate::relays::{RELAYS_LIMIT, Relay};
use crate::tls::signed::SignedHead;

/// A message that is well-formed, but says what it may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {0} in the message is not what it must be")]
pub struct BadMessage(pub &'static str);

impl From<Role> for proto::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Agent => Self::Agent,
            Role::Relay => Self::Relay,
            Role::User | Role::Controller => Self::Unspecified,
        }
    }
}

impl TryFrom<proto::Role> for Role {
    type Error = BadMessage;

    fn try_from(role: proto::Role) -> Result<Self, BadMessage> {
        match role {
            proto::Role::Agent => Ok(Self::Agent),
            proto::Role::Relay => Ok(Self::Relay),
            proto::Role::Unspecified => Err(BadMessage("role")),
        }
    }
}

impl From<&Trust> for proto::Trust {
    fn from(trust: &Trust) -> Self {
        Self {
            trust_domain: trust.trust_domain.to_string(),
            roots: trust.roots.iter().map(|root| root.to_vec()).collect(),
        }
    }
}

impl TryFrom<proto::Trust> for Trust {
    type Error = BadMessage;

    fn try_from(trust: proto::Trust) -> Result<Self, BadMessage> {
        if trust.roots.is_empty() {
            return Err(BadMessage("trust"));
        }
        Ok(Self {
            trust_domain: trust
                .trust_domain
                .parse()
                .map_err(|_| BadMessage("trust domain"))?,
            roots: trust.roots.into_iter().map(Into::into).collect(),
        })
    }
}

impl TryFrom<proto::Identity> for Issued {
    type Error = BadMessage;

    fn try_from(identity: proto::Identity) -> Result<Self, BadMessage> {
        if identity.chain.is_empty() {
            return Err(BadMessage("certificate chain"));
        }
        let trust = identity.trust.ok_or(BadMessage("trust"))?;
        Ok(Self {
            chain: identity.chain.into_iter().map(Into::into).collect(),
            trust: trust.try_into()?,
            id: identity.id.parse().map_err(|_| BadMessage("identity"))?,
        })
    }
}

impl From<&SignedHead> for proto::SignedHead {
    fn from(signed: &SignedHead) -> Self {
        Self {
            head: serde_json::to_vec(&signed.head).unwrap_or_default(),
            signature: signed.signature.clone(),
            signer_chain: signed.chain.iter().map(|der| der.to_vec()).collect(),
        }
    }
}

impl TryFrom<proto::SignedHead> for SignedHead {
    type Error = BadMessage;

    fn try_from(signed: proto::SignedHead) -> Result<Self, BadMessage> {
        Ok(Self {
            head: serde_json::from_slice(&signed.head).map_err(|_| BadMessage("head"))?,
            signature: signed.signature,
            chain: signed.signer_chain.into_iter().map(Into::into).collect(),
        })
    }
}

fn entry((key, value): (&str, &[u8])) -> proto::Entry {
    proto::Entry {
        key: key.to_owned(),
        value: value.to_vec(),
    }
}

impl From<&WatchEvent> for proto::WatchEvent {
    fn from(event: &WatchEvent) -> Self {
        use proto::watch_event::Event;
        let event = match event {
            WatchEvent::Full { head, entries } => Event::Full(proto::Full {
                head: Some(head.into()),
                entries: entries.iter().map(entry).collect(),
            }),
            WatchEvent::Delta { head, from, delta } => {
                let put = delta.put.iter();
                Event::Delta(proto::Delta {
                    head: Some(head.into()),
                    from_version: from.0,
                    put: put.map(|(key, value)| entry((key, value))).collect(),
                    remove: delta.remove.clone(),
                })
            }
            WatchEvent::Trust(trust) => Event::Trust(trust.into()),
            WatchEvent::Relays(relays) => Event::Relays(proto::Relays {
                relays: relays.iter().map(Into::into).collect(),
            }),
        };
        Self { event: Some(event) }
    }
}

impl TryFrom<proto::WatchEvent> for WatchEvent {
    type Error = BadMessage;

    fn try_from(message: proto::WatchEvent) -> Result<Self, BadMessage> {
        use proto::watch_event::Event;
        let head = |head: Option<proto::SignedHead>| head.ok_or(BadMessage("head"))?.try_into();
        match message.event.ok_or(BadMessage("event"))? {
            Event::Full(full) => {
                let mut entries = Entries::default();
                for entry in full.entries {
                    entries.put(entry.key, entry.value);
                }
                let head = head(full.head)?;
                Ok(Self::Full { head, entries })
            }
            Event::Delta(delta) => {
                let put = delta.put.into_iter();
                Ok(Self::Delta {
                    head: head(delta.head)?,
                    from: ViewVersion(delta.from_version),
                    delta: Delta {
                        put: put.map(|entry| (entry.key, entry.value)).collect(),
                        remove: delta.remove,
                    },
                })
            }
            Event::Trust(trust) => Ok(Self::Trust(trust.try_into()?)),
            Event::Relays(list) if list.relays.len() > RELAYS_LIMIT => {
                Err(BadMessage("number of relays"))
            }
            Event::Relays(list) => {
                let relays = list.relays.into_iter().map(Relay::try_from);
                Ok(Self::Relays(relays.collect::<Result<_, _>>()?))
            }
        }
    }
}

impl From<&Relay> for proto::Relay {
    fn from(relay: &Relay) -> Self {
        let region = relay.region.as_ref();
        Self {
            name: relay.name.to_string(),
            addresses: relay.addresses.iter().map(ToString::to_string).collect(),
            region: region.map(ToString::to_string).unwrap_or_default(),
            connected: relay.connected,
        }
    }
}

impl TryFrom<proto::Relay> for Relay {
    type Error = BadMessage;

    fn try_from(relay: proto::Relay) -> Result<Self, BadMessage> {
        let address = |text: &String| text.parse().map_err(|_| BadMessage("address"));
        Ok(Self {
            name: relay.name.parse().map_err(|_| BadMessage("relay name"))?,
            addresses: relay
                .addresses
                .iter()
                .map(address)
                .collect::<Result<_, _>>()?,
            region: region(&relay.region)?,
            connected: relay.connected,
        })
    }
}

/// A region as it goes over the wire: no text for none.
///
/// # Errors
/// When the text is no name of a region.
pub fn region(text: &str) -> Result<Option<Region>, BadMessage> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| BadMessage("region"))
}

impl From<(&ServiceName, &Offering)> for proto::Offer {
    fn from((name, offering): (&ServiceName, &Offering)) -> Self {
        let terms = &offering.terms;
        Self {
            name: name.to_string(),
            labels: offering.labels.clone().into_iter().collect(),
            weight: terms.weight.number(),
            standby: terms.standby,
            region: terms
                .region
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            sticky: offering.sticky,
        }
    }
}

impl TryFrom<proto::Offer> for Offering {
    type Error = BadMessage;

    fn try_from(offer: proto::Offer) -> Result<Self, BadMessage> {
        let weight = match offer.weight {
            0 => Weight::default(),
            number => number.try_into().map_err(|_| BadMessage("weight"))?,
        };
        Ok(Self {
            labels: offer.labels.into_iter().collect(),
            terms: Terms {
                weight,
                standby: offer.standby,
                region: region(&offer.region)?,
            },
            sticky: offer.sticky,
        })
    }
}

impl From<&DecisionRow> for proto::DecisionRow {
    fn from(row: &DecisionRow) -> Self {
        Self {
            at_ms: row.at.as_millisecond(),
            tenant: row.tenant.to_string(),
            caller: row.caller.clone(),
            service: row.service.clone(),
            reason: row.reason.number(),
            rule: row.rule.clone(),
            count: row.count,
        }
    }
}

impl TryFrom<proto::DecisionRow> for DecisionRow {
    type Error = BadMessage;

    fn try_from(row: proto::DecisionRow) -> Result<Self, BadMessage> {
        Ok(Self {
            at: jiff::Timestamp::from_millisecond(row.at_ms).map_err(|_| BadMessage("time"))?,
            tenant: row.tenant.parse().map_err(|_| BadMessage("tenant"))?,
            caller: row.caller,
            service: row.service,
            reason: Reason::from_number(row.reason.into()),
            rule: row.rule,
            count: row.count,
        })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::super::proto;

    // S41, RUSTSEC-2020-0002: groups within groups, lengths that claim everything, numbers without an end.
    #[test]
    fn bombs_in_place_of_messages_are_errors() {
        let mut within = vec![0x12; 200_000]; // field 2 with a length, which is the next byte, and so on
        within.extend([0xff; 16]);
        let bombs = [
            ("groups within groups", vec![0x0b; 200_000]),
            ("groups of an unknown field", [0x7b].repeat(200_000)),
            ("ends of groups", vec![0x0c; 200_000]),
            ("messages within messages", within),
            ("a number without an end", vec![0xff; 200_000]),
            (
                "a field with a number without an end",
                [&[0x08][..], &[0xff; 11]].concat(),
            ),
            (
                "a length of 63 bits",
                [&[0x12][..], &[0xff; 8], &[0x7f]].concat(),
            ),
            (
                "a length of 64 bits",
                [&[0x12][..], &[0xff; 9], &[0x01]].concat(),
            ),
            (
                "a length of four gigabytes",
                vec![0x12, 0xff, 0xff, 0xff, 0xff, 0x0f],
            ),
            ("field 0", vec![0x00, 0x00]),
            ("a wire type that is none", vec![0x0f, 0x00]),
        ];
        for (what, bytes) in bombs {
            assert!(proto::EnrolRequest::decode(&bytes[..]).is_err(), "{what}");
            assert!(
                proto::RegisterRequest::decode(&bytes[..]).is_err(),
                "{what}"
            );
            assert!(proto::WatchEvent::decode(&bytes[..]).is_err(), "{what}");
        }
    }
}
