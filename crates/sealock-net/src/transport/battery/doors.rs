//! Strangers at the door of connections over TCP: whatever they say or do not say, they cost a deadline and a little.

use tokio_rustls::client::TlsStream;

use super::*;

/// A client that wants HTTP, behind TLS.
async fn over_http(net: &Net) -> TlsStream<TcpStream> {
    let mut config = rustls::ClientConfig::clone(&tls::join_relay_client(net.ca.pin()));
    config.alpn_protocols = vec![alpn::HTTP.to_vec()];
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let stream = TcpStream::connect(net.address).await.expect("listening");
    let connecting = connector.connect(tls::unused_server_name(), stream);
    connecting.await.expect("connected")
}

/// Whether the port hangs up on somebody within the time of a handshake, and what it said.
async fn hung_up_on(address: SocketAddr, says: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("listening");
    stream.write_all(says).await.ok();
    let mut heard = Vec::new();
    let mut limited = stream.take(64 * 1024);
    in_time(limited.read_to_end(&mut heard)).await.ok(); // a reset is an answer too
    heard
}

// Availability: one plaintext probe or one silent client disturbs nobody.
#[tokio::test]
async fn garbage_from_a_stranger_ends_bounded_and_disturbs_nobody() {
    let net = Net::new(Transport::Tls, Settings::default());
    let scope = Scope::new("door");
    let server = net.tcp.1.clone();
    let tasks = scope.spawner();
    let (arrived_in, mut arrived) = tokio::sync::mpsc::channel(16);
    scope.spawn("accept", async move {
        while let Some(incoming) = server.accept().await {
            let arrived = arrived_in.clone();
            tasks.spawn("handshake", async move {
                let brief = Instant::now() + Duration::from_secs(2);
                arrived.send(incoming.handshake(brief).await).await.ok();
            });
        }
    });
    let silent = TcpStream::connect(net.address).await.expect("listening");
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 40_000],
        &[0x16, 3, 1, 255, 255, 1],
    ] {
        let heard = hung_up_on(net.address, garbage).await;
        assert!(heard.len() < 100, "an alert at most: {heard:?}");
        let outcome = in_time(arrived.recv()).await.expect("an outcome");
        assert!(outcome.is_err());
    }
    let near = net.dial().await.expect("connected");
    let far = in_time(arrived.recv()).await.expect("an outcome");
    let far = far.expect("welcomed");
    let outcome = in_time(arrived.recv()).await.expect("an outcome");
    assert!(matches!(outcome, Err(ConnectError::Timeout)), "{outcome:?}");
    assert_eq!((near.close_reason(), far.close_reason()), (None, None));
    drop(silent);
}

#[tokio::test]
async fn whatever_is_not_the_upgrade_gets_a_plain_404() {
    let net = Net::new(Transport::Websocket, Settings::default());
    let ask = async |request: &[u8]| {
        let mut stream = over_http(&net).await;
        stream.write_all(request).await.ok(); // a long one is not read to its end
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok(); // with what was not read, the end is a reset
        String::from_utf8(answer).expect("text")
    };
    // S30: a header of a million bytes, and ten thousand of them.
    let long = format!("GET /sealock/1 HTTP/1.1\r\nA: {}", "a".repeat(1 << 20));
    let many = format!(
        "GET /sealock/1 HTTP/1.1\r\n{}\r\n",
        "A: b\r\n".repeat(10_000)
    );
    for request in [
        "GET / HTTP/1.1\r\nHost: r\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\n",
        &long,
        &many,
    ] {
        let (answer, far) = tokio::join!(ask(request.as_bytes()), net.welcome());
        // The reset that follows what was not read may be quicker than the answer.
        let is_long = request.len() > 1_000;
        assert!(
            answer.starts_with("HTTP/1.1 404 ") || is_long && answer.is_empty(),
            "{answer}"
        );
        assert!(matches!(far, Err(ConnectError::NotSealock)), "{far:?}");
    }
}

/// How long somebody may take who says a byte now and then.
const BRIEF: Duration = Duration::from_millis(700);

/// Says the bytes one by one, for as long as somebody listens.
async fn drip(stream: &mut (impl tokio::io::AsyncWrite + Unpin), bytes: &[u8]) {
    for byte in bytes {
        if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// S28: the deadline is for the whole handshake and not for each byte of it.
#[tokio::test]
async fn whoever_says_a_byte_now_and_then_is_shown_out_at_the_deadline() {
    let net = Net::new(Transport::Websocket, Settings::default());
    let welcome = async || {
        let incoming = net.tcp.1.accept().await.expect("open");
        let began = Instant::now();
        let outcome = incoming.handshake(began + BRIEF).await;
        (outcome, began.elapsed())
    };
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 1_000]].concat();
    let in_tls = async {
        let mut stream = TcpStream::connect(net.address).await.expect("listening");
        drip(&mut stream, &hello).await;
    };
    let head = format!("GET /sealock/1 HTTP/1.1\r\nA: {}", "a".repeat(1_000));
    let in_http = async {
        let mut stream = over_http(&net).await;
        drip(&mut stream, head.as_bytes()).await;
    };
    for (what, dripping) in [
        (
            "in TLS",
            Box::pin(in_tls) as std::pin::Pin<Box<dyn Future<Output = ()>>>,
        ),
        ("in HTTP", Box::pin(in_http)),
    ] {
        let (outcome, after) = tokio::select! { // order is free: the dripping goes on for longer
            outcome = welcome() => outcome,
            () = dripping => panic!("{what}: it was let say everything"),
        };
        assert!(
            matches!(outcome, Err(ConnectError::Timeout)),
            "{what}: {outcome:?}"
        );
        assert!(after < 3 * BRIEF, "{what}: {after:?}");
    }
}
