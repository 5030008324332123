//! The time of an answer, which takes many of them to tell.

use sealock_net::timing::{ALIKE, Timings};

use super::*;

/// Of each field; half of them with a name of the other tenant.
const ANSWERS: usize = 600;

/// S11: how long an answer takes tells as little as what it says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_of_another_tenant_takes_as_long_as_a_name_of_nobody() {
    let tenants = Tenants::start_with(|config| config.limits.joins = u32::MAX).await;
    let raw = tenants.raw();
    for (message, field, holds) in FIELDS {
        let Holds::Name(named) = holds else { continue };
        let send = async |name| {
            let at = (*message, *field);
            tenants.send(raw.clone(), at, name, Duration::ZERO).await
        };
        // What a first time costs either of them is not what they are asked about.
        for names in [&NOBODYS, &THEIRS] {
            send(of(names, *named)).await;
        }
        let timings = Timings::take(ANSWERS, async |is_theirs| {
            let names = if is_theirs { &THEIRS } else { &NOBODYS };
            let answer = send(of(names, *named)).await;
            Ok::<_, std::convert::Infallible>(answer.took)
        });
        let timings = timings.await.expect("measured");
        let (t, means) = (timings.t(), timings.means());
        say(&format!("{message}.{field}: t = {t:.1}, {means:?}"));
        assert!(t < ALIKE, "{message}.{field} tells them apart: {means:?}");
    }
    // The same look does see what a difference is: one that is refused without a question to the store.
    let known = async |is_refused| {
        let name = if is_refused { "Not A Name" } else { "bank1" };
        let at = ("Offer", "name");
        let answer = tenants.send(raw.clone(), at, name, Duration::ZERO).await;
        Ok::<_, std::convert::Infallible>(answer.took)
    };
    let timings = Timings::take(ANSWERS, known).await.expect("measured");
    assert!(timings.t() > ALIKE, "{:?}", timings.means());
}

#[expect(clippy::print_stderr, reason = "says what was measured")]
fn say(line: &str) {
    eprintln!("{line}");
}
