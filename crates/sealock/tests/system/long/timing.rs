//! What the time of a refusal could tell a stranger, measured often enough to tell.

use std::convert::Infallible;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sealock_core::identity::AgentId;
use sealock_core::secret::Secret;
use sealock_net::timing::{ALIKE, Timings};
use sealock_proto::stream::{Epoch, Proof, Role, Ticket, TicketContext};
use sealock_proto::wire::SessionKind;
use sealock_relay::OpenLimit;

use crate::door::{answer_to, with_name};
use crate::world::{RelayLimits, World};

#[expect(clippy::print_stderr, reason = "says what was measured")]
fn say(what: &str, timings: &Timings) {
    eprintln!("{what}: t = {:.1}, {:?}", timings.t(), timings.means());
}

/// As many comparisons as S33 asks for.
const COMPARISONS: usize = 1_000_000;
const SECRET: [u8; 32] = [0x5a; 32];

/// The secret with one bit that is not its own, at its beginning or at its end.
fn guess(is_nearly_right: bool) -> [u8; 32] {
    let mut guess = SECRET;
    guess[if is_nearly_right { 31 } else { 0 }] ^= 1;
    guess
}

/// How long it takes to refuse each of two guesses, the one wrong at its beginning, the other at its end.
async fn guesses<T>(pair: [T; 2], mut is_right: impl FnMut(&T) -> bool) -> Timings {
    let timings = Timings::take(COMPARISONS, async |is_nearly_right| {
        let guess = black_box(&pair[usize::from(is_nearly_right)]);
        let began = Instant::now();
        let is_right = black_box(is_right(guess));
        let took = began.elapsed();
        assert!(!is_right);
        Ok::<_, Infallible>(took)
    });
    match timings.await {
        Ok(timings) => timings,
    }
}

fn agent(name: &str) -> Result<AgentId> {
    let (tenant, name) = ("default".parse()?, name.parse()?);
    Ok(AgentId { tenant, name })
}

// S33: a guess that is right but for its last byte is refused as soon as one that is wrong from its first.
#[tokio::test]
async fn how_much_of_a_guess_is_right_cannot_be_told_by_the_time_of_its_refusal() -> Result<()> {
    let pair = [false, true];
    let secret = Secret::new(SECRET);
    let timings = guesses(pair.map(guess), |guess| secret.matches(guess)).await;
    say("a secret", &timings);
    ensure!(timings.t() < ALIKE, "a secret: {:?}", timings.means());

    let proof = Proof::from_bytes(SECRET);
    let proofs = pair.map(|it| Proof::from_bytes(guess(it)));
    let timings = guesses(proofs, |guess| proof == *guess).await;
    say("two proofs", &timings);
    ensure!(timings.t() < ALIKE, "two proofs: {:?}", timings.means());

    let context = TicketContext {
        stream: [1; 16],
        opener: agent("caller")?,
        accepter: agent("provider")?,
    };
    let ticket = Ticket::new(Secret::new(SECRET), context);
    let right = *ticket.prove(Role::Opener, Epoch(2)).as_bytes();
    let proofs = [0, 31].map(|at| {
        let mut bytes = right;
        bytes[at] ^= 1;
        Proof::from_bytes(bytes)
    });
    let timings = guesses(proofs, |guess| {
        ticket.verify(Role::Opener, Epoch(2), Some(guess))
    });
    let timings = timings.await;
    say("a proof of its ticket", &timings);
    ensure!(timings.t() < ALIKE, "a ticket: {:?}", timings.means());

    // The same look does see it where a comparison ends at the first byte that differs.
    let timings = guesses(pair.map(guess), |guess| {
        SECRET.iter().zip(guess).all(|(one, other)| one == other)
    });
    let timings = timings.await;
    say("a comparison that ends early", &timings);
    ensure!(
        timings.t() > ALIKE,
        "nothing is seen: {:?}",
        timings.means()
    );
    Ok(())
}

/// Of each message; half of them with a name of ours.
const ANSWERS: usize = 1_000;

// S11: how long the relay takes to answer an agent of another tenant tells as little as what it answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_answers_another_tenants_agent_as_soon_for_our_services_as_for_none() -> Result<()>
{
    let world = World::new()?;
    let limits = RelayLimits {
        opens: OpenLimit {
            burst: u32::MAX,
            per_second: u32::MAX,
        },
        ..RelayLimits::default()
    };
    let relay = world.relay_with(limits).await?;
    let _provider = world
        .agent("provider", SessionKind::Full, relay.listen)
        .await?;
    let identity = world.ca.identity("other/agent/caller");
    let raw = world.connect_with(&identity, relay.listen).await?;
    let mut control = raw.greet(SessionKind::Full, [1; 16]).await?;
    for number in 0..with_name("echo")?.len() {
        let mut kind = 0;
        let timings = Timings::take(ANSWERS, async |is_nobodys| {
            let messages = with_name(if is_nobodys { "nil0" } else { "echo" })?;
            kind = messages[number].encode()[0];
            let began = Instant::now();
            answer_to(&raw, &mut control, &messages[number]).await?;
            anyhow::Ok(began.elapsed())
        });
        let timings = timings.await?;
        say(&format!("message {kind:#04x}"), &timings);
        ensure!(timings.t() < ALIKE, "{kind:#04x}: {:?}", timings.means());
    }
    // The same look does see a millisecond.
    let timings = Timings::take(ANSWERS, async |is_late| {
        let messages = with_name("echo")?;
        let began = Instant::now();
        answer_to(&raw, &mut control, &messages[0]).await?;
        let late = Duration::from_millis(u64::from(is_late));
        anyhow::Ok(began.elapsed() + late)
    });
    let timings = timings.await?;
    say("held back", &timings);
    ensure!(
        timings.t() > ALIKE,
        "nothing is seen: {:?}",
        timings.means()
    );
    Ok(())
}
