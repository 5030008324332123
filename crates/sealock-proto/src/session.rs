//! The control stream of a session, seen from both ends: what may be said when, and what it means.
//!
//! The agent says hello, the relay welcomes it; then the agent offers and withdraws services, and either side may
//! announce that it drains or leave. Anything out of order ends the session as a violation. Liveness is the
//! transport's (QUIC's keep-alive and idle time-out), so there is no ping here.

use std::collections::BTreeSet;

use sealock_core::name::ServiceName;
use sealock_core::reason::Reason;

use crate::wire::{
    Drain, Hello, Message, PROTOCOL_VERSION, SERVICES_LIMIT, Services, SessionKind, Welcome,
};

/// How many services one session may offer.
pub const SERVICES_PER_SESSION: usize = 4_096;

/// Why a session must end: the reason that the other side is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer broke the order of the session ({0})")]
pub struct Violation(pub Reason);

const OUT_OF_ORDER: Violation = Violation(Reason::ProtocolViolation);

/// What the relay's side learned from a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayEvent {
    /// The agent introduced itself; send this welcome back.
    Greeted(Hello),
    /// The agent's offers changed; answer with those of `asked` that do not work yet.
    OffersChanged {
        /// Which message to answer.
        sequence: u64,
        /// The services that the message named.
        asked: Vec<ServiceName>,
    },
    /// The agent takes no new streams.
    Draining,
    /// The agent leaves.
    Left(Reason),
}

/// The relay's side of a session's control stream.
#[derive(Debug, Default)]
pub struct RelaySide {
    greeted: Option<SessionKind>,
    draining: bool,
    offers: BTreeSet<ServiceName>,
}

impl RelaySide {
    /// The services that the agent offers on this session.
    #[must_use]
    pub fn offers(&self) -> &BTreeSet<ServiceName> {
        &self.offers
    }

    /// Whether the agent said that it takes no new streams: its control stream may end without ending the session.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Takes the agent's next message.
    ///
    /// # Errors
    /// When the message may not come now; the session ends with the violation's reason.
    pub fn handle_message(&mut self, message: Message) -> Result<RelayEvent, Violation> {
        match message {
            Message::Hello(hello) if self.greeted.is_none() => {
                if hello.protocol != PROTOCOL_VERSION {
                    return Err(Violation(Reason::VersionUnsupported));
                }
                self.greeted = Some(hello.kind);
                Ok(RelayEvent::Greeted(hello))
            }
            // A session that only calls has nothing to offer.
            Message::Register(list)
                if self.greeted == Some(SessionKind::Full) && !self.draining =>
            {
                self.offers.extend(list.names.iter().cloned());
                if self.offers.len() > SERVICES_PER_SESSION {
                    return Err(Violation(Reason::QuotaExceeded));
                }
                Ok(RelayEvent::OffersChanged {
                    sequence: list.sequence,
                    asked: list.names,
                })
            }
            Message::Withdraw(list) if self.greeted == Some(SessionKind::Full) => {
                for name in &list.names {
                    self.offers.remove(name);
                }
                Ok(RelayEvent::OffersChanged {
                    sequence: list.sequence,
                    asked: Vec::new(),
                })
            }
            Message::Drain(_) if self.greeted.is_some() => {
                self.draining = true;
                self.offers.clear();
                Ok(RelayEvent::Draining)
            }
            Message::Bye(reason) => Ok(RelayEvent::Left(reason)),
            Message::Hello(_)
            | Message::Register(_)
            | Message::Withdraw(_)
            | Message::Drain(_)
            | Message::Welcome(_)
            | Message::Registered(_)
            | Message::Open(_)
            | Message::Incoming(_)
            | Message::Opened(_)
            | Message::Refused(_)
            | Message::Peer
            | Message::Presence(_)
            | Message::Forward(_)
            | Message::Controller
            | Message::Join(_)
            | Message::Joined(_) => Err(OUT_OF_ORDER),
        }
    }
}

/// What the agent's side learned from a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentEvent {
    /// The relay admitted the session.
    Welcomed(Welcome),
    /// The answer to a registration or a withdrawal.
    Registered(Services),
    /// The relay takes no new streams.
    Draining(Drain),
    /// The relay ends the session.
    Left(Reason),
}

/// The agent's side of a session's control stream.
#[derive(Debug, Default)]
pub struct AgentSide {
    welcomed: bool,
    sequence: u64,
}

impl AgentSide {
    /// Takes the relay's next message.
    ///
    /// # Errors
    /// When the message may not come now; the session ends with the violation's reason.
    pub fn handle_message(&mut self, message: Message) -> Result<AgentEvent, Violation> {
        match message {
            Message::Welcome(welcome) if !self.welcomed => {
                self.welcomed = true;
                Ok(AgentEvent::Welcomed(welcome))
            }
            Message::Registered(list) if self.welcomed && list.sequence <= self.sequence => {
                Ok(AgentEvent::Registered(list))
            }
            Message::Drain(drain) if self.welcomed => Ok(AgentEvent::Draining(drain)),
            Message::Bye(reason) => Ok(AgentEvent::Left(reason)),
            Message::Welcome(_)
            | Message::Registered(_)
            | Message::Drain(_)
            | Message::Hello(_)
            | Message::Register(_)
            | Message::Withdraw(_)
            | Message::Open(_)
            | Message::Incoming(_)
            | Message::Opened(_)
            | Message::Refused(_)
            | Message::Peer
            | Message::Presence(_)
            | Message::Forward(_)
            | Message::Controller
            | Message::Join(_)
            | Message::Joined(_) => Err(OUT_OF_ORDER),
        }
    }

    /// The messages that offer these services.
    pub fn register(&mut self, names: &[ServiceName]) -> Vec<Message> {
        self.lists(names)
            .into_iter()
            .map(Message::Register)
            .collect()
    }

    /// The messages that take these services back.
    pub fn withdraw(&mut self, names: &[ServiceName]) -> Vec<Message> {
        self.lists(names)
            .into_iter()
            .map(Message::Withdraw)
            .collect()
    }

    fn lists(&mut self, names: &[ServiceName]) -> Vec<Services> {
        let list = |names: &[ServiceName]| {
            self.sequence += 1;
            Services {
                sequence: self.sequence,
                names: names.to_vec(),
            }
        };
        names.chunks(SERVICES_LIMIT).map(list).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(protocol: u32) -> Message {
        of_kind(protocol, SessionKind::Full)
    }

    fn of_kind(protocol: u32, kind: SessionKind) -> Message {
        Message::Hello(Hello {
            protocol,
            instance: [0; 16],
            kind,
            software: "0.1.0".into(),
            voucher: None,
            region: None,
        })
    }

    fn names(count: usize) -> Vec<ServiceName> {
        (0..count)
            .map(|n| format!("s{n}").parse().expect("a name"))
            .collect()
    }

    #[test]
    fn nothing_is_heard_before_hello() {
        for message in [
            Message::Drain(Drain::default()),
            Message::Register(Services {
                sequence: 1,
                names: names(1),
            }),
        ] {
            assert_eq!(
                RelaySide::default().handle_message(message),
                Err(OUT_OF_ORDER)
            );
        }
    }

    #[test]
    fn a_second_hello_is_a_violation() {
        let mut relay = RelaySide::default();
        assert!(relay.handle_message(hello(PROTOCOL_VERSION)).is_ok());
        assert_eq!(
            relay.handle_message(hello(PROTOCOL_VERSION)),
            Err(OUT_OF_ORDER)
        );
    }

    #[test]
    fn another_version_is_told_so() {
        let outcome = RelaySide::default().handle_message(hello(PROTOCOL_VERSION + 1));
        assert_eq!(outcome, Err(Violation(Reason::VersionUnsupported)));
    }

    #[test]
    fn a_session_that_only_calls_offers_nothing() {
        let mut relay = RelaySide::default();
        let hello = of_kind(PROTOCOL_VERSION, SessionKind::CallerOnly);
        relay.handle_message(hello).expect("in order");
        let offer = Message::Register(Services {
            sequence: 1,
            names: names(1),
        });
        assert_eq!(relay.handle_message(offer), Err(OUT_OF_ORDER));
    }

    #[test]
    fn offers_grow_and_shrink_over_many_messages_and_are_bounded() {
        let (mut relay, mut agent) = (RelaySide::default(), AgentSide::default());
        relay
            .handle_message(hello(PROTOCOL_VERSION))
            .expect("in order");
        let all = names(SERVICES_PER_SESSION);
        for message in agent.register(&all) {
            relay.handle_message(message).expect("within the bound");
        }
        for message in agent.withdraw(&all[10..]) {
            relay
                .handle_message(message)
                .expect("a withdrawal is always fine");
        }
        assert_eq!(relay.offers().len(), 10);
        let refused = agent
            .register(&names(SERVICES_PER_SESSION + 1))
            .into_iter()
            .find_map(|message| relay.handle_message(message).err());
        assert_eq!(refused, Some(Violation(Reason::QuotaExceeded)));
    }

    #[test]
    fn the_agent_takes_no_answer_to_what_it_never_asked() {
        let mut agent = AgentSide::default();
        agent
            .handle_message(Message::Welcome(Welcome { session: 1 }))
            .expect("in order");
        let answer = Message::Registered(Services {
            sequence: 1,
            names: Vec::new(),
        });
        assert_eq!(agent.handle_message(answer.clone()), Err(OUT_OF_ORDER));
        agent.register(&names(1));
        assert!(agent.handle_message(answer).is_ok());
    }
}
