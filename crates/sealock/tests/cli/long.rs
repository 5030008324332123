//! Scenes that take longer than a change should wait for: `make lab` runs them, `make test` does not.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::program::{Deployment, Running, SOON, eventually, free_tcp, run};

/// F10, as often as it says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_is_killed_two_hundred_times_loses_nothing_that_it_confirmed() {
    crate::controller::survives_kills(200).await;
}

const ABSENCE: Duration = Duration::from_secs(600);
const JOIN_PATIENCE: Duration = Duration::from_secs(6); // five, and a process that starts

/// F11: ten minutes without a controller: what is live goes on, what is known opens, what is new fails with a code and
/// soon.
#[test]
fn a_controller_that_is_absent_for_ten_minutes_is_missed_by_newcomers_alone() {
    let (deployment, controller) = Deployment::split();
    let _exposed = deployment.expose("echo");
    eventually(|| deployment.stdio("echo", b"x").1, |out| out == "x");
    let listen = free_tcp();
    let connect = ["connect", "echo", "--listen", &listen.to_string()];
    let connected = Running::start(&deployment.state("consumer"), &connect);
    connected.wait_for("listening on");
    let mut live = TcpStream::connect(listen).expect("listening");
    live.set_read_timeout(Some(SOON)).expect("set");
    let late = deployment.token();
    drop(controller);
    let began = Instant::now();
    while began.elapsed() < ABSENCE {
        let mut answer = [0; 4];
        live.write_all(b"live").expect("the stream takes it");
        live.read_exact(&mut answer).expect("the stream lives");
        assert_eq!(&answer, b"live");
        let (code, out, err) = deployment.stdio("echo", b"still");
        assert_eq!(
            (code, out.as_str()),
            (0, "still"),
            "{:?} {err}",
            began.elapsed()
        );
        let asked = Instant::now();
        let (code, _, err) = run(
            &deployment.state("late"),
            &["join", &late, "--name", "late"],
        );
        assert_eq!(code, 4, "{err}");
        assert!(err.contains("CONTROLLER_UNREACHABLE"), "{err}");
        assert!(asked.elapsed() < JOIN_PATIENCE, "{:?}", asked.elapsed());
        std::thread::park_timeout(Duration::from_secs(10));
    }
}
