//! Conduits at a relay: who is let in, what is carried, and what ends them.

use std::net::SocketAddr;
use std::time::Duration;

use sealock_core::identity::AgentId;
use sealock_proto::wire::ConduitId;
use tokio::time::Instant;

use super::*;
use crate::identity::testing::TestCa;
use crate::task::Scope;
use crate::tls;
use crate::transport::{Arrived, Settings, TcpEndpoint};

const SOON: Duration = Duration::from_secs(20);
const ID: ConduitId = ConduitId([1; 16]);

fn agent(name: &str) -> AgentId {
    AgentId {
        tenant: "default".parse().expect("a name"),
        name: name.parse().expect("a name"),
    }
}

/// A relay's door for conduits.
struct Door {
    ca: TestCa,
    address: SocketAddr,
    conduits: Conduits,
    _tasks: Scope,
}

impl Door {
    fn open() -> Self {
        let ca = TestCa::new("sealock");
        let tls = tls::relay_tcp_listener(&ca.identity("relay/r"), &ca.trust_store());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let endpoint = TcpEndpoint::server(any, tls, Settings::default()).expect("an address");
        let address = endpoint.local_addr().expect("an address");
        let (conduits, tasks) = (Conduits::default(), Scope::new("door"));
        let (spawner, serving) = (tasks.spawner(), conduits.clone());
        tasks.spawn("accept", async move {
            while let Some(incoming) = endpoint.accept().await {
                let serving = serving.clone();
                spawner.spawn("end", async move {
                    let entered = incoming.enter(Instant::now() + SOON).await;
                    if let Ok(Arrived::Conduit(end)) = entered {
                        serving.serve(end).await;
                    }
                });
            }
        });
        Self {
            ca,
            address,
            conduits,
            _tasks: tasks,
        }
    }

    async fn join(
        &self,
        name: &str,
        id: ConduitId,
        is_opener: bool,
    ) -> Result<Unkeyed, ConnectError> {
        let identity = self.ca.identity(&format!("default/agent/{name}"));
        let tls = tls::relay_client(&identity, &self.ca.trust_store());
        let socket = TcpStream::connect(self.address).await.expect("listening");
        let join = Join {
            conduit: id,
            is_opener,
            salt: Salt([u8::from(is_opener); 16]),
        };
        let joining = TcpEndpoint::join(socket, &tls, join);
        tokio::time::timeout(SOON, joining).await.expect("in time")
    }

    /// Both ends of a conduit that is awaited.
    async fn pair(&self) -> (Conduit, Conduit, Expected) {
        let expected = self.conduits.expect(ID, agent("ann"), agent("bob"));
        let expected = expected.expect("a place");
        let (ann, bob) = tokio::join!(self.join("ann", ID, true), self.join("bob", ID, false));
        let (ann, bob) = (ann.expect("joined"), bob.expect("joined"));
        assert_eq!((ann.salt, bob.salt), (Salt([0; 16]), Salt([1; 16])));
        let secret = |of: u8| Secret::new([of; 32]);
        (
            ann.keyed(secret(1), secret(2)).expect("keys"),
            bob.keyed(secret(2), secret(1)).expect("keys"),
            expected,
        )
    }
}

fn is_sent_away(outcome: &Result<Unkeyed, ConnectError>) -> bool {
    let refused = Lost::ByPeer(Reason::AttachRefused);
    matches!(outcome, Err(ConnectError::Lost(lost)) if *lost == refused)
}

async fn say_and_hear(from: &mut Sender, to: &mut Receiver, length: usize) {
    let bytes: Vec<u8> = (0..length).map(|at| (at * 31 / 7) as u8).collect();
    let mut chunks = [Bytes::from(bytes.clone()), Bytes::from_static(b"end")];
    let hear = async {
        let mut heard = Vec::new();
        while heard.len() < length + 3 {
            let chunk = to.read_chunk().await.expect("whole").expect("more");
            heard.extend_from_slice(&chunk);
        }
        heard
    };
    let (said, heard) = tokio::join!(from.write_all_chunks(&mut chunks), hear);
    said.expect("written");
    assert_eq!(heard, [&bytes, b"end".as_slice()].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_ends_that_are_awaited_are_joined_and_carry_bytes_both_ways() {
    let door = Door::open();
    let (mut ann, mut bob, expected) = door.pair().await;
    for length in [1, 16 * 1024, 3_000_000] {
        say_and_hear(&mut ann.send, &mut bob.recv, length).await;
        say_and_hear(&mut bob.send, &mut ann.recv, length).await;
    }
    assert_eq!(door.conduits.joined(), 1);
    let (up, down) = expected.moved();
    assert!(up > 3_000_000 && down > 3_000_000, "{up} and {down} bytes");
    ann.send.finish();
    assert_eq!(bob.recv.read_chunk().await, Ok(None));
}

// S16, S17: neither a name that somebody made up, nor somebody else's certificate, nor a second one opens anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_not_awaited_is_sent_away_and_the_two_who_are_do_not_notice() {
    let door = Door::open();
    let stranger = door.join("ann", ID, true).await;
    assert!(is_sent_away(&stranger), "a name of nothing: {stranger:?}");
    let expected = door.conduits.expect(ID, agent("ann"), agent("bob"));
    let expected = expected.expect("a place");
    let other = door.join("eve", ID, true).await;
    assert!(is_sent_away(&other), "another agent: {other:?}");
    let swapped = door.join("bob", ID, true).await;
    assert!(is_sent_away(&swapped), "in the other's place: {swapped:?}");
    // Of two in one place the second is sent away at once, while the first waits for the other end.
    let (one, two) = (door.join("ann", ID, true), door.join("ann", ID, true));
    tokio::pin!(one, two);
    let (second, first) = tokio::select! { // whichever is second
        second = &mut one => (second, two),
        second = &mut two => (second, one),
    };
    assert!(is_sent_away(&second), "{second:?}");
    let (ann, bob) = tokio::join!(first, door.join("bob", ID, false));
    assert!(ann.is_ok() && bob.is_ok(), "{ann:?}, {bob:?}");
    let used = door.join("ann", ID, true).await;
    assert!(is_sent_away(&used), "a name is good once: {used:?}");
    drop(expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conduit_ends_with_the_leg_that_it_is_for() {
    let door = Door::open();
    let (_ann, mut bob, expected) = door.pair().await;
    drop(expected);
    let heard = tokio::time::timeout(SOON, bob.recv.read_chunk()).await;
    let heard = heard.expect("in time");
    assert!(matches!(heard, Ok(None) | Err(_)), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sealed_under_another_key_is_not_believed() {
    let door = Door::open();
    let (ann, mut bob, _expected) = door.pair().await;
    let mut stranger = Sender {
        seals: Seals::from_secret(Secret::new([9; 32])).expect("keys"),
        ..ann.send
    };
    let said = stranger
        .write_all_chunks(&mut [Bytes::from_static(b"hello")])
        .await;
    said.expect("written");
    let heard = bob.recv.read_chunk().await;
    assert_eq!(heard, Err(ReadError::Lost(Lost::Cut)));
}

#[tokio::test]
async fn a_caller_has_so_many_conduits_and_takes_none_of_the_others() {
    let conduits = Conduits::default();
    let expect = |number: u8, caller: &str| {
        let id = ConduitId([number; 16]);
        conduits.expect(id, agent(caller), agent("bob"))
    };
    let first = expect(200, "ann");
    assert!(first.is_some());
    assert!(expect(200, "eve").is_none(), "the name is taken");
    assert!(expect(201, "eve").is_some());
    let many: Vec<_> = (0..64).map(|number| expect(number, "ann")).collect();
    assert!(many.iter().any(Option::is_none), "there is a bound");
    assert!(expect(202, "eve").is_some(), "which is each caller's own");
    drop((first, many));
    assert!(expect(200, "ann").is_some(), "places are free again");
}

#[test]
fn what_has_left_is_cut_off_the_front() {
    let mut chunks = [
        Bytes::from_static(b"abc"),
        Bytes::new(),
        Bytes::from_static(b"def"),
    ];
    cut_off(&mut chunks, 4);
    assert_eq!(
        chunks,
        [Bytes::new(), Bytes::new(), Bytes::from_static(b"ef")]
    );
}

#[tokio::test]
async fn conduits_leave_most_of_the_files_that_a_relay_may_open_to_others() {
    let bounds = |files| {
        let conduits = Conduits::within(files);
        let expect = |number: u32| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_be_bytes());
            conduits.expect(
                ConduitId(id),
                agent(&format!("a{}", number / 1_000)),
                agent("bob"),
            )
        };
        let of_one: Vec<_> = (0..1_000).filter_map(expect).collect();
        let count = of_one.len();
        let others: Vec<_> = (1_000..20_000).filter_map(expect).collect();
        (count, count + others.len())
    };
    assert_eq!(bounds(1_024), (11, 42));
    assert_eq!(bounds(1_000_000), (64, 512));
    assert_eq!(bounds(10), (0, 0));
}
