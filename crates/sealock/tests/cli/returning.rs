//! A machine that was off for longer than its certificate, as its user meets it.

use std::time::Duration;

use crate::program::{Deployment, echo_server, eventually, run, run_with, sealock};

/// The shortest life that the configuration takes, and a moment.
const LIFE: (&str, &str) = ("SEALOCK_CONTROLLER__CERTIFICATE_TTL", "10s");
const OFF: Duration = Duration::from_millis(10_500);

// controller.recover_within
#[test]
fn a_machine_that_was_off_comes_back_by_itself_where_the_configuration_lets_it() {
    let open = Deployment::start_with(&[], &[LIFE]);
    let shut = Deployment::start_with(&[], &[LIFE, ("SEALOCK_CONTROLLER__RECOVER_WITHIN", "0s")]);
    std::thread::park_timeout(OFF);
    let exposed = open.expose("echo");
    let errors = eventually(|| exposed.errors(), |errors| !errors.is_empty());
    assert!(errors.contains("it was given a new one"), "{errors}");
    let stdio = || {
        let arguments = ["connect", "echo", "--stdio"];
        run_with(sealock(&open.state("consumer"), &arguments), b"hello")
    };
    let (code, out, err) = stdio();
    assert_eq!((code, out.as_str()), (0, "hello"), "{err}");
    assert!(err.contains("it was given a new one"), "{err}");
    assert_eq!(stdio().2, "", "said once");

    let target = echo_server().to_string();
    let arguments = ["expose", &target, "--as", "echo"];
    let (code, out, err) = run(&shut.state("provider"), &arguments);
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert!(err.contains("the certificate was not accepted"), "{err}");
    assert!(
        err.lines()
            .last()
            .is_some_and(|hint| hint.contains("sealock join SLK1-")),
        "{err}"
    );

    // Nobody there to ask.
    let state = open.state("consumer");
    assert_eq!(open.up.interrupt(), 0);
    std::thread::park_timeout(OFF);
    let (code, _, err) = run(&state, &["connect", "echo", "--stdio"]);
    assert_eq!(code, 4, "{err}");
    assert!(err.contains("hint: start it again when"), "{err}");
}
