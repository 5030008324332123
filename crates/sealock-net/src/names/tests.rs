//! What comes of names when the resolver answers, refuses, fails or says nothing.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::*;

const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

/// A resolver that says what it is told to say, and counts how often it was asked.
#[derive(Clone)]
struct Resolver {
    says: Arc<Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
}

impl Resolver {
    fn new() -> (Self, Names) {
        let this = Self {
            says: Arc::new(Mutex::new(Ok(vec![FIRST]))),
            asked: Arc::default(),
        };
        let resolver = this.clone();
        let names = Names::asked_of(Arc::new(move |_host| {
            resolver.asked.fetch_add(1, Ordering::SeqCst);
            resolver.says.lock().clone()
        }));
        (this, names)
    }

    fn says(&self, answer: Answer) {
        *self.says.lock() = answer;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn failure() -> NameError {
    NameError::Failed("SERVFAIL".to_owned())
}

/// A resolver that answers only when it is let.
fn held() -> (mpsc::Sender<Answer>, Arc<AtomicUsize>, Names) {
    let (let_go, waits) = mpsc::channel();
    let asked: Arc<AtomicUsize> = Arc::default();
    let (waits, count) = (Mutex::new(waits), Arc::clone(&asked));
    let names = Names::asked_of(Arc::new(move |_host| {
        count.fetch_add(1, Ordering::SeqCst);
        waits.lock().recv().unwrap_or_else(|_| Err(failure()))
    }));
    (let_go, asked, names)
}

async fn pass(span: Duration) {
    tokio::time::sleep(span + Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_used_for_a_second_and_then_asked_for_again() {
    let (resolver, names) = Resolver::new();
    for _ in 0..10 {
        assert_eq!(names.lookup("host").await, Ok(vec![FIRST]));
    }
    assert_eq!(resolver.asked(), 1);
    resolver.says(Ok(vec![SECOND]));
    pass(FRESH).await;
    assert_eq!(names.lookup("HOST").await, Ok(vec![SECOND]));
    assert_eq!(resolver.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_was_known_serves_while_the_resolver_fails_and_for_a_day_at_most() {
    let (resolver, names) = Resolver::new();
    assert_eq!(names.lookup("host").await, Ok(vec![FIRST]));
    resolver.says(Err(failure()));
    pass(FRESH).await;
    for _ in 0..10 {
        assert_eq!(names.lookup("host").await, Ok(vec![FIRST]));
    }
    assert_eq!(
        resolver.asked(),
        2,
        "a failure is not asked about again at once"
    );
    pass(STALE).await;
    assert_eq!(names.lookup("host").await, Err(failure()));
    resolver.says(Ok(vec![SECOND]));
    pass(REFUSED).await;
    assert_eq!(names.lookup("host").await, Ok(vec![SECOND]));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_is_said_not_to_exist_is_forgotten() {
    let (resolver, names) = Resolver::new();
    assert_eq!(names.lookup("host").await, Ok(vec![FIRST]));
    for answer in [Err(NameError::Unknown), Ok(Vec::new())] {
        resolver.says(answer);
        pass(FRESH).await;
        assert_eq!(names.lookup("host").await, Err(NameError::Unknown));
        let asked = resolver.asked();
        assert_eq!(names.lookup("host").await, Err(NameError::Unknown));
        assert_eq!(resolver.asked(), asked, "«no» is remembered too");
    }
    resolver.says(Err(failure()));
    pass(REFUSED).await;
    assert_eq!(names.lookup("host").await, Err(failure()));
}

#[tokio::test]
async fn of_many_who_ask_at_once_one_asks_the_resolver() {
    let (let_go, asked, names) = held();
    let lookups = (0..100).map(|_| names.lookup("host"));
    let all = futures_util::future::join_all(lookups);
    let (answers, ()) = tokio::join!(all, async {
        let_go.send(Ok(vec![FIRST])).expect("it waits");
    });
    assert!(answers.iter().all(|answer| *answer == Ok(vec![FIRST])));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

/// Real time: the clock of a test stands still while a thread of the system works.
#[tokio::test]
async fn a_resolver_that_says_nothing_is_not_waited_for_where_something_is_known() {
    let (let_go, asked, names) = held();
    let_go.send(Ok(vec![FIRST])).expect("it will ask");
    assert_eq!(names.lookup("host").await, Ok(vec![FIRST]));
    pass(FRESH).await;
    let begun = Instant::now();
    assert_eq!(names.lookup("host").await, Ok(vec![FIRST]));
    assert!(begun.elapsed() >= STALE_AFTER && begun.elapsed() < PATIENCE);
    // The same question is still open: whoever comes now asks no second one.
    let given_up = tokio::time::timeout(Duration::from_millis(20), names.lookup("host"));
    assert!(given_up.await.is_err());
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    let_go.send(Ok(vec![SECOND])).expect("it waits");
    let late = async {
        while names.lookup("host").await != Ok(vec![SECOND]) {
            tokio::task::yield_now().await;
        }
    };
    let late = tokio::time::timeout(PATIENCE, late).await;
    assert!(
        late.is_ok(),
        "an answer that comes late counts all the same"
    );
}

#[tokio::test]
async fn questions_and_names_are_bounded() {
    let (let_go, asked, names) = held();
    let hosts: Vec<String> = (0..=ASKING_LIMIT).map(|it| format!("host-{it}")).collect();
    let lookups = hosts.iter().map(|host| names.lookup(host));
    let all = futures_util::future::join_all(lookups);
    let (answers, ()) = tokio::join!(all, async {
        for _ in 0..ASKING_LIMIT {
            let_go.send(Ok(vec![FIRST; 1_000])).expect("it waits");
        }
    });
    let busy = answers.iter().filter(|it| **it == Err(NameError::Busy));
    assert_eq!(busy.count(), 1);
    assert_eq!(asked.load(Ordering::SeqCst), ASKING_LIMIT);
    let kept = answers.iter().flatten().map(Vec::len).max();
    assert_eq!(kept, Some(ADDRESSES_LIMIT));
    for number in 0..2 * NAMES_LIMIT {
        let _known = names.name(&format!("other-{number}"));
    }
    assert_eq!(names.known.lock().len(), NAMES_LIMIT);
}

// What stands in the hosts file needs no server.
#[tokio::test]
async fn the_system_knows_this_host_and_not_one_that_cannot_be() {
    let found = lookup(&"localhost:80".parse().expect("an address")).await;
    let found = found.expect("this host");
    assert!(
        found
            .iter()
            .all(|it| it.ip().is_loopback() && it.port() == 80)
    );
    let once: std::collections::BTreeSet<_> = found.iter().collect();
    assert_eq!(once.len(), found.len(), "each once");
}
