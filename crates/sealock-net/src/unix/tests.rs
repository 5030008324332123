//! The control socket as its callers meet it.

use std::os::unix::fs::{PermissionsExt, symlink};

use futures_util::stream;
use sealock_core::api::{ApiError, Method, Permission};
use sealock_core::reason::Reason;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    number: u32,
}

struct Double;

impl Method for Double {
    const PATH: &'static str = "/v1/test/double";
    const NEEDS: Permission = Permission::Read;
    type Request = Question;
    type Response = u32;
}

struct Count;

impl Method for Count {
    const PATH: &'static str = "/v1/test/count";
    const NEEDS: Permission = Permission::Read;
    type Request = Question;
    type Response = u32;
}

struct Missing;

impl Method for Missing {
    const PATH: &'static str = "/v1/test/missing";
    const NEEDS: Permission = Permission::Read;
    type Request = Question;
    type Response = u32;
}

fn routes() -> Router {
    Routes::new()
        .method::<Double, _, _>(
            async |_caller: Caller, question: Question| match question.number {
                0 => Err(ApiError::from(Reason::PolicyDenied)),
                1 => panic!("as the test wishes"),
                number => Ok(number * 2),
            },
        )
        .lines::<Count, _, _, _>(async |_caller: Caller, question: Question| {
            match question.number {
                0 => Err(ApiError::new("nothing to count").with_hint("say a number")),
                number => Ok(stream::iter(0..number)),
            }
        })
        .into_router()
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("run").join("control.sock");
    (dir, path)
}

fn serve(path: &Path) -> Scope {
    let scope = Scope::new("test");
    serve_json(
        PrivateListener::bind(path).expect("bound"),
        routes(),
        &scope,
    );
    scope
}

#[tokio::test]
async fn a_call_is_answered_and_an_error_keeps_reason_and_hint() {
    let (_guard, path) = place();
    let _scope = serve(&path);
    let client = UnixClient::new(&path);
    for number in [2, 21] {
        let answer = client
            .call::<Double>(&Question { number })
            .await
            .expect("answered");
        assert_eq!(answer, number * 2);
    }
    let error = client
        .call::<Double>(&Question { number: 0 })
        .await
        .expect_err("refused");
    let CallError::Api(error) = error else {
        panic!("{error:?}")
    };
    assert_eq!(error, ApiError::from(Reason::PolicyDenied));
    let error = client
        .lines::<Count>(&Question { number: 0 })
        .await
        .expect_err("refused");
    assert!(matches!(error, CallError::Api(error) if error.hint.is_some()));
    let error = client
        .call::<Missing>(&Question { number: 2 })
        .await
        .expect_err("unknown");
    assert!(matches!(error, CallError::Api(error) if error.hint.is_some()));
}

// S88: a handler that panics costs its own caller the answer, and nobody else anything.
#[tokio::test]
async fn a_panic_in_a_handler_ends_that_connection_only() {
    let (_guard, path) = place();
    let _scope = serve(&path);
    let client = UnixClient::new(&path);
    let error = client
        .call::<Double>(&Question { number: 1 })
        .await
        .expect_err("panicked");
    assert!(matches!(error, CallError::Broken(_)), "{error:?}");
    assert_eq!(
        client
            .call::<Double>(&Question { number: 4 })
            .await
            .expect("answered"),
        8
    );
}

#[tokio::test]
async fn lines_come_one_after_another_and_end() {
    let (_guard, path) = place();
    let _scope = serve(&path);
    let mut lines = UnixClient::new(&path)
        .lines::<Count>(&Question { number: 1_000 })
        .await
        .expect("answered");
    for expected in 0..1_000 {
        assert_eq!(lines.next().await.expect("a line"), Some(expected));
    }
    assert_eq!(lines.next().await.expect("the end"), None);
}

async fn raw(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).await.expect("listening");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok(); // a refused connection may be reset after its answer
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn bad_requests_get_words_and_not_a_panic() {
    let (_guard, path) = place();
    let _scope = serve(&path);
    for (body, words) in [
        ("{}", "missing field"),
        (r#"{"number":1,"x":2}"#, "unknown field"),
        ("", "EOF"),
        ("\u{0}", "expected value"),
    ] {
        let length = body.len();
        let request = format!(
            "POST /v1/test/double HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let answer = raw(&path, &request).await;
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains(words),
            "{answer}"
        );
    }
    // S41: as deep as a body may be long; S44: numbers at the edges of what they may be.
    let deep = "[".repeat(60_000);
    let deeper = "{\"number\":".repeat(5_000);
    let edges = [
        "-1",
        "1e400",
        "18446744073709551616",
        "-9223372036854775809",
        "0.5",
        "1e3",
    ];
    let edges = edges.map(|number| format!("{{\"number\":{number}}}"));
    for body in [deep, deeper].iter().chain(&edges) {
        let length = body.len();
        let request = format!(
            "POST /v1/test/double HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let answer = raw(&path, &request).await;
        assert!(
            answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.1 413"),
            "{}: {answer}",
            &body[..body.len().min(40)]
        );
    }
    let answer = raw(
        &path,
        "GET /v1/test/double HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}

// S30, S32: headers and bodies have limits that are applied before memory is taken.
#[tokio::test]
async fn oversized_headers_and_bodies_are_refused() {
    let (_guard, path) = place();
    let _scope = serve(&path);
    let header = format!(
        "POST / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "a".repeat(64 * 1024)
    );
    let answer = raw(&path, &header).await;
    assert!(
        answer.starts_with("HTTP/1.1 431") || answer.is_empty(),
        "{answer}"
    );
    let many = format!(
        "POST / HTTP/1.1\r\nhost: x\r\n{}\r\n",
        "a: b\r\n".repeat(10_000)
    );
    let answer = raw(&path, &many).await;
    assert!(
        answer.starts_with("HTTP/1.1 431") || answer.is_empty(),
        "{answer}"
    );
    let claims = "POST /v1/test/double HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 4294967295\r\n\r\n";
    let answer = raw(&path, claims).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

// S61: the socket and its directory are closed from the first moment.
#[tokio::test]
async fn the_socket_is_0600_in_a_directory_0700() {
    let (_guard, path) = place();
    let _listener = PrivateListener::bind(&path).expect("bound");
    let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o7777;
    assert_eq!(mode(path.parent().expect("a directory")), 0o700);
    assert_eq!(mode(&path), 0o600);
    let file = path.with_file_name("later");
    fs::write(&file, b"").expect("written");
    assert_ne!(mode(&file), 0o600, "the umask of the process is as before");
}

#[tokio::test]
async fn a_directory_that_others_may_enter_is_refused() {
    let (_guard, path) = place();
    let dir = path.parent().expect("a directory");
    files::ensure_private_dir(dir).expect("made");
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).expect("ours");
    let error = PrivateListener::bind(&path).expect_err("open");
    assert!(
        matches!(error, BindError::File(FileError::TooOpen { .. })),
        "{error}"
    );
}

// S63: only an old socket of ours is replaced.
#[tokio::test]
async fn nothing_but_a_stale_socket_is_replaced() {
    let (_guard, path) = place();
    let dir = path.parent().expect("a directory");
    files::ensure_private_dir(dir).expect("made");
    let victim = dir.join("victim");
    fs::write(&victim, b"precious").expect("written");
    let dangling = dir.join("nowhere");
    let plant: [&dyn Fn(); 5] = [
        &|| symlink(&victim, &path).expect("a link"),
        &|| symlink(&dangling, &path).expect("a link"),
        &|| fs::write(&path, b"a file").expect("written"),
        &|| fs::create_dir(&path).expect("made"),
        &|| rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).expect("a fifo"),
    ];
    for (n, plant) in plant.into_iter().enumerate() {
        plant();
        let error = PrivateListener::bind(&path).expect_err("taken");
        assert!(
            matches!(error, BindError::File(FileError::WrongKind { .. })),
            "{n}: {error}"
        );
        let kind = fs::symlink_metadata(&path)
            .expect("still there")
            .file_type();
        if kind.is_dir() {
            fs::remove_dir(&path).expect("empty");
        } else {
            fs::remove_file(&path).expect("ours");
        }
    }
    assert_eq!(fs::read(&victim).expect("there"), b"precious");
    drop(StdListener::bind(&path).expect("a socket that its process left behind"));
    let _scope = serve(&path);
    assert_eq!(
        UnixClient::new(&path)
            .call::<Double>(&Question { number: 3 })
            .await
            .expect("answered"),
        6
    );
}

#[tokio::test]
async fn a_live_socket_is_never_taken_over() {
    let (_guard, path) = place();
    let first = PrivateListener::bind(&path).expect("bound");
    assert!(matches!(
        PrivateListener::bind(&path),
        Err(BindError::InUse { .. })
    ));
    drop(first);
    assert!(!path.exists(), "a listener removes its socket");
    // A process of another version, which takes no lock.
    let _foreign = StdListener::bind(&path).expect("bound");
    assert!(matches!(
        PrivateListener::bind(&path),
        Err(BindError::InUse { .. })
    ));
}

#[tokio::test]
async fn a_listener_does_not_remove_a_socket_that_took_its_place() {
    let (_guard, path) = place();
    let first = PrivateListener::bind(&path).expect("bound");
    fs::remove_file(&path).expect("ours");
    let _second = StdListener::bind(&path).expect("bound");
    drop(first);
    assert!(path.exists());
}

// S61: even where the modes were loosened by hand, the kernel's word on the caller's user counts.
#[tokio::test]
#[ignore = "needs root, to become another user"]
async fn another_user_is_turned_away_and_the_next_caller_served() {
    let (guard, path) = place();
    let _scope = serve(&path);
    for (place, mode) in [
        (guard.path(), 0o711),
        (path.parent().expect("a directory"), 0o711),
        (&path, 0o666),
    ] {
        fs::set_permissions(place, fs::Permissions::from_mode(mode)).expect("ours");
    }
    let target = path.clone();
    let heard = std::thread::spawn(move || {
        let nobody = rustix::fs::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody)
            .expect("root may, for this thread");
        let mut stream = StdStream::connect(target).expect("the modes allow it");
        let mut heard = Vec::new();
        io::Read::read_to_end(&mut stream, &mut heard).map(|_| heard)
    });
    let heard = tokio::task::spawn_blocking(|| heard.join().expect("no panic"))
        .await
        .expect("no panic");
    assert_eq!(
        heard.expect("closed"),
        b"",
        "not a byte, and the connection closed"
    );
    let answer = UnixClient::new(&path)
        .call::<Double>(&Question { number: 2 })
        .await;
    assert_eq!(answer.expect("answered"), 4);
}

#[test]
fn only_our_own_user_and_root_are_trusted() {
    let us = sys::own_uid();
    let caller = |uid| Caller { uid, pid: None };
    assert!(caller(us).is_trusted() && caller(ROOT).is_trusted());
    for other in [us + 1, 65_534, u32::MAX] {
        assert_eq!(caller(other).is_trusted(), other == us);
    }
}

#[tokio::test]
async fn without_a_listener_the_client_says_that_nothing_runs() {
    let (_guard, path) = place();
    let client = UnixClient::new(&path);
    let error = client
        .call::<Double>(&Question { number: 2 })
        .await
        .expect_err("nobody");
    assert!(matches!(error, CallError::NotRunning { .. }));
    let scope = serve(&path);
    scope.shutdown(Duration::from_secs(5)).await;
    let error = client
        .call::<Double>(&Question { number: 2 })
        .await
        .expect_err("gone");
    assert!(matches!(error, CallError::NotRunning { .. }));
}
