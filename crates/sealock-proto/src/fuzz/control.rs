//! What agents and relays say to each other, from a stranger: any bytes as messages, and both sides of a session.

use crate::fuzz::{Seen, Target};
use crate::session::{AgentSide, RelaySide};
use crate::wire::{DecodeError, HEADER_LENGTH, Header, Message, SERVICES_LIMIT};

pub(super) const MESSAGES: Target = Target {
    name: "control_message",
    run,
    reaches: &[
        "Hello",
        "Welcome",
        "Register",
        "Withdraw",
        "Registered",
        "Drain",
        "Bye",
        "Open",
        "Incoming",
        "Opened",
        "Refused",
        "Controller",
        "Peer",
        "Presence",
        "Forward",
        "skipped",
        "cut off",
        "unknown type",
        "too long",
        "no body",
        "bad field",
        "relay listens",
        "relay refuses",
        "agent listens",
        "agent refuses",
    ],
};

fn run(input: &[u8]) -> Seen {
    let mut seen = Seen::new();
    let (mut relay, mut agent) = (RelaySide::default(), AgentSide::default());
    let mut rest = input;
    while let Some((head, tail)) = rest.split_first_chunk::<HEADER_LENGTH>() {
        let header = match Header::decode(*head) {
            Ok(header) => header,
            Err(error) => {
                seen.insert(name_of_error(error));
                return seen;
            }
        };
        let Some((body, tail)) = tail.split_at_checked(header.body_length()) else {
            seen.insert("cut off");
            return seen;
        };
        rest = tail;
        match header.decode_body(body) {
            Ok(Some(message)) => {
                seen.insert(name_of(&message));
                round_trip(&message);
                listen(&mut relay, &mut agent, &message, &mut seen);
            }
            Ok(None) => drop(seen.insert("skipped")),
            Err(error) => drop(seen.insert(name_of_error(error))),
        }
    }
    seen
}

// What was decoded is a domain value, so it has an encoding, and that means the same again.
fn round_trip(message: &Message) {
    let bytes = message.encode();
    let (head, body) = bytes.split_first_chunk().expect("a header");
    let header = Header::decode(*head).expect("our own header");
    assert_eq!(header.body_length(), body.len());
    let again = header.decode_body(body).expect("our own body");
    assert_eq!(again.as_ref(), Some(message));
}

fn listen(relay: &mut RelaySide, agent: &mut AgentSide, message: &Message, seen: &mut Seen) {
    let heard = relay.handle_message(message.clone());
    seen.insert(if heard.is_ok() {
        "relay listens"
    } else {
        "relay refuses"
    });
    let bound = crate::session::SERVICES_PER_SESSION + SERVICES_LIMIT;
    assert!(
        relay.offers().len() <= bound,
        "a session's offers are bounded"
    );
    // What an agent makes of the same names are messages that can be read.
    let said = if let Message::Register(services) = message {
        agent.register(&services.names)
    } else if let Message::Withdraw(services) = message {
        agent.withdraw(&services.names)
    } else {
        Vec::new()
    };
    said.iter().for_each(round_trip);
    let heard = agent.handle_message(message.clone());
    seen.insert(if heard.is_ok() {
        "agent listens"
    } else {
        "agent refuses"
    });
}

fn name_of(message: &Message) -> &'static str {
    match message {
        Message::Hello(_) => "Hello",
        Message::Welcome(_) => "Welcome",
        Message::Register(_) => "Register",
        Message::Withdraw(_) => "Withdraw",
        Message::Registered(_) => "Registered",
        Message::Drain(_) => "Drain",
        Message::Bye(_) => "Bye",
        Message::Open(_) => "Open",
        Message::Incoming(_) => "Incoming",
        Message::Opened(_) => "Opened",
        Message::Refused(_) => "Refused",
        Message::Controller => "Controller",
        Message::Peer => "Peer",
        Message::Presence(_) => "Presence",
        Message::Forward(_) => "Forward",
        Message::Join(_) => "Join",
        Message::Joined(_) => "Joined",
    }
}

fn name_of_error(error: DecodeError) -> &'static str {
    match error {
        DecodeError::UnknownType(_) => "unknown type",
        DecodeError::TooLong(_) => "too long",
        DecodeError::Body(_) => "no body",
        DecodeError::Field { .. } => "bad field",
    }
}
