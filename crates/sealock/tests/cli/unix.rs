//! Unix sockets at both ends, and ends that are not clean where there is no reset.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

use crate::program::{Deployment, Running, SOON, eventually, exchange, free_tcp};

/// Takes one connection after another and hands each to `serve`.
fn origin(
    at: &Path,
    serve: impl Fn(UnixStream) -> std::io::Result<()> + Send + 'static,
) -> JoinHandle<()> {
    let listener = UnixListener::bind(at).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            // How a connection ends is looked at from its other side.
            serve(stream).ok();
        }
    })
}

/// The provider offers `target`, and the consumer listens for it at `listen`.
fn pair(deployment: &Deployment, target: &str, listen: &str) -> (Running, Running) {
    let provider = deployment.state("provider");
    let exposed = Running::start(&provider, &["expose", target, "--as", "web"]);
    exposed.wait_for("exposed");
    let arguments = ["connect", "web", "--listen", listen];
    let connected = Running::start(&deployment.state("consumer"), &arguments);
    connected.wait_for("listening on");
    (exposed, connected)
}

fn connect(at: &Path) -> UnixStream {
    let stream = UnixStream::connect(at).expect("somebody listens");
    stream.set_read_timeout(Some(SOON)).expect("a time");
    stream
}

#[test]
fn bytes_and_half_close_go_through_unix_sockets_at_both_ends() {
    let deployment = Deployment::start(&[]);
    let (target, listen) = (
        deployment.state("web.sock"),
        deployment.state("consumer").join("near.sock"),
    );
    // Answers only when it has heard all: without half-close nobody would get an answer.
    let _origin = origin(&target, |mut stream| {
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard)?;
        heard.reverse();
        stream.write_all(&heard)
    });
    let (target, at) = (
        format!("unix:{}", target.display()),
        format!("unix:{}", listen.display()),
    );
    let (_exposed, connected) = pair(&deployment, &target, &at);
    let mut sent: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let ask = || {
        let mut stream = connect(&listen);
        let mut writer = stream.try_clone()?;
        let bytes = sent.clone();
        let sender = std::thread::spawn(move || {
            writer.write_all(&bytes)?;
            writer.shutdown(Shutdown::Write)
        });
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        sender.join().expect("no panic")?;
        read.map(|_| answer)
    };
    // The relay may hear of the service a moment after its provider.
    let answer = eventually(|| ask().ok(), Option::is_some);
    sent.reverse();
    assert!(answer == Some(sent), "the answer differs");
    assert_eq!(connected.interrupt(), 0);
}

/// Takes a word, says half an answer, and is gone with a reset.
fn breaking_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            // Closed with bytes unread, which the kernel tells as a reset.
            stream.read_exact(&mut [0; 1]).ok();
            stream.write_all(b"half an ans").ok();
        }
    });
    address.to_string()
}

#[test]
fn an_answer_that_breaks_off_is_no_clean_end_at_a_unix_socket_nor_at_standard_output() {
    let deployment = Deployment::start(&[]);
    let listen = deployment.state("consumer").join("near.sock");
    let at = format!("unix:{}", listen.display());
    let (_exposed, _connected) = pair(&deployment, &breaking_server(), &at);
    for _ in 0..5 {
        let mut stream = connect(&listen);
        stream.write_all(b"question").expect("taken");
        let ended = stream.read_to_end(&mut Vec::new());
        let kind = ended.map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::ConnectionReset));
    }
    let (code, _, err) = deployment.stdio("web", b"question");
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("FAR_RESET"), "{err}");
}

#[test]
fn a_client_that_breaks_off_is_no_clean_end_at_the_services_unix_socket() {
    let deployment = Deployment::start(&[]);
    let target = deployment.state("web.sock");
    let (heard, ends) = std::sync::mpsc::channel();
    let _origin = origin(&target, move |mut stream| {
        stream.write_all(b"hello")?;
        let ended = stream.read_to_end(&mut Vec::new());
        let kind = ended.map_err(|error| error.kind());
        heard.send(kind).map_err(|_| ErrorKind::Other.into())
    });
    let listen = free_tcp();
    let target = format!("unix:{}", target.display());
    let (_exposed, _connected) = pair(&deployment, &target, &listen.to_string());
    let greeted = || exchange(listen, b"").is_ok_and(|said| said == b"hello");
    eventually(greeted, |is_greeted| *is_greeted);
    let clean = ends.recv_timeout(SOON).expect("an end");
    assert_eq!(clean, Ok(0), "a client that ends cleanly");
    let mut client = TcpStream::connect(listen).expect("somebody listens");
    client.write_all(b"half a quest").expect("taken");
    client.set_read_timeout(Some(SOON)).expect("a time");
    client.read_exact(&mut [0; 1]).expect("a word");
    drop(client); // with bytes unread, which the kernel tells as a reset
    let broken = ends.recv_timeout(SOON).expect("an end");
    assert_eq!(broken, Err(ErrorKind::ConnectionReset));
}
