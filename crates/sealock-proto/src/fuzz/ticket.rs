//! Proofs of any context, and any bytes as a proof: only the very same side, epoch and context verifies.

use sealock_core::identity::AgentId;
use sealock_core::secret::Secret;

use crate::fuzz::{Input, Seen, Target};
use crate::stream::{Epoch, Proof, Role, Ticket, TicketContext};

pub(super) const TICKET: Target = Target {
    name: "ticket",
    run,
    reaches: &[
        "own proof",
        "other epoch",
        "other side",
        "other secret",
        "other context",
        "same context",
        "altered proof",
        "any bytes",
        "no proof",
    ],
};

fn run(input: &[u8]) -> Seen {
    let mut input = Input(input);
    let secret: [u8; 32] = input.array();
    let (one, other) = (context(&mut input), context(&mut input));
    let role = if input.byte() & 1 == 0 {
        Role::Opener
    } else {
        Role::Accepter
    };
    let epoch = Epoch(u32::from_be_bytes(input.array()));
    let ticket = Ticket::new(Secret::new(secret), one.clone());
    let proof = ticket.prove(role, epoch);
    assert!(ticket.verify(role, epoch, Some(&proof)));
    assert!(!ticket.verify(role, epoch, None));
    let mut seen = Seen::from(["own proof", "no proof"]);

    let far = Epoch(epoch.0 ^ (1 << (input.byte() % 32)));
    assert!(!ticket.verify(role, far, Some(&proof)), "S17");
    let side = match role {
        Role::Opener => Role::Accepter,
        Role::Accepter => Role::Opener,
    };
    assert!(!ticket.verify(side, epoch, Some(&proof)), "S18");
    let mut altered = secret;
    altered[usize::from(input.byte() % 32)] ^= 1 << (input.byte() % 8);
    let stranger = Ticket::new(Secret::new(altered), one.clone());
    assert!(!stranger.verify(role, epoch, Some(&proof)), "S16");
    seen.extend(["other epoch", "other side", "other secret"]);

    let neighbour = Ticket::new(Secret::new(secret), other.clone());
    let same = one == other;
    assert_eq!(neighbour.verify(role, epoch, Some(&proof)), same, "S16");
    seen.insert(if same {
        "same context"
    } else {
        "other context"
    });

    let mut bytes = *proof.as_bytes();
    bytes[usize::from(input.byte() % 32)] ^= 1 << (input.byte() % 8);
    assert!(!ticket.verify(role, epoch, Some(&Proof::from_bytes(bytes))));
    seen.insert("altered proof");
    if !input.is_empty() {
        let bytes = input.array();
        let lucky = bytes == *proof.as_bytes();
        assert_eq!(
            ticket.verify(role, epoch, Some(&Proof::from_bytes(bytes))),
            lucky
        );
        seen.insert("any bytes");
    }
    seen
}

fn context(input: &mut Input<'_>) -> TicketContext {
    TicketContext {
        stream: input.array(),
        opener: agent(input),
        accepter: agent(input),
    }
}

// Short names of two letters: where one field ends and the next begins is what could be confused.
fn agent(input: &mut Input<'_>) -> AgentId {
    let mut name = || {
        let byte = input.byte();
        let letters = (0..=byte % 3).map(|at| {
            if (byte >> (2 + at)) & 1 == 0 {
                'a'
            } else {
                'b'
            }
        });
        letters.collect::<String>()
    };
    AgentId {
        tenant: name().parse().expect("a label"),
        name: name().parse().expect("a label"),
    }
}
