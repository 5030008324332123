//! S13: a token that many show at once, over the nodes' own interface. That the database decides, whoever asks it, stands
//! in the tests of the store; a second controller over one state directory does not start.

use futures_util::future::join_all;

use super::*;

const ROUNDS: usize = 3;
const AT_ONCE: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_that_join_with_one_token_at_once_one_gets_in() {
    let running = started(|config| config.limits.joins = 1_000).await;
    for round in 0..ROUNDS {
        let token = running.token(CreateRequest::default()).await;
        let attempts = (0..AT_ONCE).map(|number| {
            let (running, token) = (&running, &token);
            async move {
                let name = format!("a{round}-{number}");
                running.enrol(token, &name, Role::Agent).await
            }
        });
        let mut won = 0;
        for outcome in join_all(attempts).await {
            match outcome {
                Ok(_) => won += 1,
                Err(error) => assert_eq!(error.reason(), Reason::TokenInvalid, "{error}"),
            }
        }
        assert_eq!(won, 1, "round {round}");
        let late = running.enrol(&token, "late", Role::Agent).await;
        let reason = late.err().map(|error| error.reason());
        assert_eq!(reason, Some(Reason::TokenInvalid), "round {round}");
    }
}

#[tokio::test]
async fn a_second_controller_over_one_state_does_not_start() {
    let running = started(|_| ()).await;
    let mut config = running.config.clone();
    config.socket = config.socket.with_file_name("other.sock");
    let scope = Scope::new("second");
    let error = start(config, &scope).await.expect_err("one is enough");
    let error = format!("{error:#}");
    assert!(!error.contains("control socket"), "{error}");
    running.join("web-1").await;
}
