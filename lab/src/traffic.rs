//! Transfers of pattern bytes over TCP, both ways at once, judged at both ends.
//!
//! A client opens with a short head that says what it will send and wants to get; after it, both directions are
//! pattern alone and each ends with its own FIN. A transfer is right when every byte is right, the end comes after
//! the last one and not before, and the stream never crawled below the stall rule. A cut is [`TransferError::Cut`]
//! and a clean end too early is [`TransferError::Short`]: the difference that applications live by.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use crate::{
    Namespace,
    pattern::{Checker, Damage, Pattern, Way},
    wait,
};

const MAGIC: [u8; 8] = *b"SLLAB\0\0\x01";
const HEAD: usize = 40;
const CHUNK: usize = 64 * 1024;
const CONNECT: Duration = Duration::from_secs(10);
// How often a reader looks at the stall rule while nothing comes.
const LOOK: Duration = Duration::from_millis(100);

/// The least that a transfer must bring in any span of time.
#[derive(Debug, Clone, Copy)]
pub struct StallRule {
    /// Bytes that must arrive …
    pub bytes: u64,
    /// … within this time.
    pub within: Duration,
}

impl Default for StallRule {
    /// 10 KiB a second, judged over half a minute.
    fn default() -> Self {
        Self {
            bytes: 30 * 10 * 1024,
            within: Duration::from_secs(30),
        }
    }
}

/// Watches one direction by a [`StallRule`].
#[derive(Debug)]
struct StallWatch {
    rule: StallRule,
    since: Instant,
    at: u64,
}

impl StallWatch {
    fn new(rule: StallRule, now: Instant) -> Self {
        Self {
            rule,
            since: now,
            at: 0,
        }
    }

    /// Whether the stream has crawled for too long.
    fn is_stalled(&mut self, now: Instant, received: u64) -> bool {
        if received - self.at >= self.rule.bytes {
            (self.since, self.at) = (now, received);
        }
        now.duration_since(self.since) >= self.rule.within
    }
}

/// What one end got.
#[derive(Debug, Clone)]
pub struct Received {
    /// How many bytes, all of them right.
    pub bytes: u64,
    /// Their SHA-256, in hexadecimal.
    pub sha256: String,
    /// From the start of the transfer to the first byte; zero when none was expected.
    pub first_byte: Duration,
    /// The longest time between two reads that brought bytes.
    pub longest_gap: Duration,
    /// From the start of the transfer to its end mark.
    pub took: Duration,
}

/// How a transfer went wrong.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum TransferError {
    /// Wrong bytes.
    #[error("{0}")]
    Damaged(Damage),
    /// A clean end before the last byte.
    #[error("a clean end after {at} of {wanted} bytes")]
    Short {
        /// The bytes that came, all right.
        at: u64,
        /// The bytes that should have come.
        wanted: u64,
    },
    /// More came than was sent.
    #[error("more than the {wanted} bytes that were sent")]
    Long {
        /// The bytes that should have come.
        wanted: u64,
    },
    /// The connection broke.
    #[error("cut after {at} bytes: {kind}")]
    Cut {
        /// The bytes that came, all right.
        at: u64,
        /// What the system said.
        kind: ErrorKind,
    },
    /// All came, but not all could be sent.
    #[error("all {got} bytes came, but sending broke: {kind}")]
    NotSent {
        /// The bytes that came, all right.
        got: u64,
        /// What the system said.
        kind: ErrorKind,
    },
    /// Too little came for too long.
    #[error("stalled after {at} bytes")]
    Stalled {
        /// The bytes that came, all right.
        at: u64,
    },
    /// No connection.
    #[error("no connection: {0}")]
    NotConnected(ErrorKind),
    /// The thread of the transfer panicked: a defect of the lab.
    #[error("the transfer's own thread panicked")]
    Broken,
    /// What came first was no head of a transfer.
    #[error("the connection did not begin with a head")]
    NoHead,
}

/// What a client wants to send and get.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    /// Names the stream; the bytes depend on it.
    pub stream: u64,
    /// Bytes from client to server.
    pub up: u64,
    /// Bytes from server to client.
    pub down: u64,
    /// The most bytes a second that each end sends; 0 for no limit.
    pub pace: u64,
    /// What counts as a stall at the client.
    pub stall: StallRule,
}

impl StallRule {
    /// For outages: only silence for longer than this is a stall.
    #[must_use]
    pub fn silence(within: Duration) -> Self {
        Self { bytes: 1, within }
    }
}

impl Transfer {
    /// The same number of bytes both ways, as fast as they go.
    #[must_use]
    pub fn both_ways(stream: u64, bytes: u64) -> Self {
        Self {
            stream,
            up: bytes,
            down: bytes,
            pace: 0,
            stall: StallRule::default(),
        }
    }

    /// Limits what each end sends in a second.
    #[must_use]
    pub fn paced(mut self, bytes_per_second: u64) -> Self {
        self.pace = bytes_per_second;
        self
    }

    /// Judges stalls at the client by another rule.
    #[must_use]
    pub fn stalls_by(mut self, rule: StallRule) -> Self {
        self.stall = rule;
        self
    }

    /// Starts the transfer from inside a namespace.
    ///
    /// # Errors
    ///
    /// Fails when the namespace cannot be entered; all else is the result of the transfer.
    pub fn start(self, namespace: &Namespace, to: SocketAddr) -> Result<Running> {
        let received = Arc::new(AtomicU64::new(0));
        let progress = Arc::clone(&received);
        let thread =
            namespace.enter(move || std::thread::spawn(move || self.client(to, &progress)))?;
        Ok(Running { received, thread })
    }

    /// Runs the transfer from inside a namespace to its end.
    ///
    /// # Errors
    ///
    /// Fails as the transfer does.
    pub fn run(self, namespace: &Namespace, to: SocketAddr) -> Result<Received> {
        Ok(self.start(namespace, to)?.finish()?)
    }

    /// Asks for the transfer and does nothing more: the caller reads as slowly as it likes, or not at all.
    ///
    /// # Errors
    ///
    /// Fails without a connection.
    pub fn open(self, namespace: &Namespace, to: SocketAddr) -> Result<TcpStream> {
        let mut stream = namespace.enter(move || TcpStream::connect_timeout(&to, CONNECT))??;
        stream.write_all(&self.head())?;
        Ok(stream)
    }

    fn client(self, to: SocketAddr, progress: &AtomicU64) -> Result<Received, TransferError> {
        let started = Instant::now();
        let refused = |error: std::io::Error| TransferError::NotConnected(error.kind());
        let mut stream = TcpStream::connect_timeout(&to, CONNECT).map_err(refused)?;
        stream.write_all(&self.head()).map_err(refused)?;
        let sender = stream.try_clone().map_err(refused)?;
        std::thread::scope(|scope| {
            let sent = scope.spawn(|| {
                send(
                    sender,
                    Pattern::new(self.stream, Way::Up),
                    self.up,
                    self.pace,
                )
            });
            let result = Reader {
                pattern: Pattern::new(self.stream, Way::Down),
                wanted: self.down,
                rule: self.stall,
                progress,
                started,
            }
            .read(&mut stream);
            if result.is_err() {
                // Ends the sender, which may wait for a peer that has stopped reading.
                drop(stream.shutdown(Shutdown::Both));
            }
            judge(result, sent.join().unwrap_or(Err(ErrorKind::Other)))
        })
    }

    fn head(self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&MAGIC);
        for (at, word) in [
            (8, self.stream),
            (16, self.up),
            (24, self.down),
            (32, self.pace),
        ] {
            head[at..at + 8].copy_from_slice(&word.to_be_bytes());
        }
        head
    }

    fn parse(head: &[u8; HEAD]) -> Option<Self> {
        let word = |at: usize| {
            head[at..at + 8]
                .iter()
                .fold(0, |word, &byte| (word << 8) | u64::from(byte))
        };
        (head[..8] == MAGIC).then(|| Self {
            stream: word(8),
            up: word(16),
            down: word(24),
            pace: word(32),
            stall: StallRule::default(),
        })
    }
}

/// A transfer under way.
#[derive(Debug)]
pub struct Running {
    received: Arc<AtomicU64>,
    thread: JoinHandle<Result<Received, TransferError>>,
}

impl Running {
    /// How many right bytes the client has got so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Waits until the client has got this many bytes: the moment for a fault.
    ///
    /// # Errors
    ///
    /// Fails when they do not come in time.
    pub fn wait_for(&self, bytes: u64, within: Duration) -> Result<()> {
        wait::until(&format!("{bytes} bytes"), within, || {
            Ok((self.received() >= bytes).then_some(()))
        })
    }

    /// Waits for the end.
    ///
    /// # Errors
    ///
    /// Fails as the transfer did.
    pub fn finish(self) -> Result<Received, TransferError> {
        self.thread.join().unwrap_or(Err(TransferError::Broken))
    }
}

type Reports = Arc<Mutex<HashMap<u64, Result<Received, TransferError>>>>;

/// The other end of transfers: serves any number of them until it is dropped.
#[derive(Debug)]
pub struct PatternServer {
    address: SocketAddr,
    reports: Reports,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl PatternServer {
    /// Listens inside a namespace.
    ///
    /// # Errors
    ///
    /// Fails when the address cannot be had.
    pub fn start(namespace: &Namespace, listen: SocketAddr) -> Result<Self> {
        Self::start_with(namespace, listen, StallRule::default())
    }

    /// Listens inside a namespace and judges stalls by a rule of the test's, as for outages that are longer.
    ///
    /// # Errors
    ///
    /// Fails when the address cannot be had.
    pub fn start_with(namespace: &Namespace, listen: SocketAddr, rule: StallRule) -> Result<Self> {
        let listener = namespace
            .enter(move || TcpListener::bind(listen))?
            .with_context(|| format!("listening on {listen} in {}", namespace.name()))?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let (reports, stop) = (Reports::default(), Arc::new(AtomicBool::new(false)));
        let (to_reports, stopped) = (Arc::clone(&reports), Arc::clone(&stop));
        let accepting = std::thread::spawn(move || accept(&listener, rule, &to_reports, &stopped));
        Ok(Self {
            address,
            reports,
            stop,
            accepting: Some(accepting),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the server got of a stream, once it has ended.
    ///
    /// # Errors
    ///
    /// Fails as the transfer did, or when it does not end in time.
    pub fn report(&self, stream: u64, within: Duration) -> Result<Received> {
        let report = wait::until(
            &format!("the end of stream {stream} at the server"),
            within,
            || Ok(lock(&self.reports).remove(&stream)),
        )?;
        Ok(report?)
    }
}

impl Drop for PatternServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(accepting) = self.accepting.take() {
            // A panic there has shown itself as a missing report.
            drop(accepting.join());
        }
    }
}

fn lock(
    reports: &Reports,
) -> std::sync::MutexGuard<'_, HashMap<u64, Result<Received, TransferError>>> {
    reports.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, rule: StallRule, reports: &Reports, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            wait::pause(Duration::from_millis(2));
            continue;
        };
        let reports = Arc::clone(reports);
        std::thread::spawn(move || {
            if let Ok((id, report)) = serve(stream, rule) {
                lock(&reports).insert(id, report);
            }
        });
    }
}

fn serve(mut stream: TcpStream, rule: StallRule) -> Result<(u64, Result<Received, TransferError>)> {
    let started = Instant::now();
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CONNECT))?;
    let mut head = [0; HEAD];
    stream.read_exact(&mut head)?;
    let transfer = Transfer::parse(&head).ok_or_else(|| anyhow!(TransferError::NoHead))?;
    let sender = stream.try_clone()?;
    let (id, down, pace) = (transfer.stream, transfer.down, transfer.pace);
    let sending = std::thread::spawn(move || send(sender, Pattern::new(id, Way::Down), down, pace));
    let report = Reader {
        pattern: Pattern::new(id, Way::Up),
        wanted: transfer.up,
        rule,
        progress: &AtomicU64::new(0),
        started,
    }
    .read(&mut stream);
    if report.is_err() {
        drop(stream.shutdown(Shutdown::Both));
    }
    let sent = sending.join().unwrap_or(Err(ErrorKind::Other));
    Ok((id, judge(report, sent)))
}

/// Joins what an end got with what became of its sending.
///
/// The system tells of a reset once, to whoever asks first. When that is the sender, the reader sees what looks
/// like a clean end. After a real clean end a reset is told as a broken pipe, so the two are not mixed up.
fn judge(
    received: Result<Received, TransferError>,
    sent: Result<(), ErrorKind>,
) -> Result<Received, TransferError> {
    match (received, sent) {
        (Err(TransferError::Short { at, .. }), Err(kind @ ErrorKind::ConnectionReset)) => {
            Err(TransferError::Cut { at, kind })
        }
        (Ok(received), Err(kind)) => Err(TransferError::NotSent {
            got: received.bytes,
            kind,
        }),
        (received, _) => received,
    }
}

/// Sends a direction and its end mark.
fn send(mut stream: TcpStream, pattern: Pattern, bytes: u64, pace: u64) -> Result<(), ErrorKind> {
    let started = Instant::now();
    // A paced sender writes ten times a second, so that the pace holds within a tenth.
    let step = if pace == 0 {
        CHUNK as u64
    } else {
        (pace / 10).clamp(1, CHUNK as u64)
    };
    let mut chunk = vec![0; CHUNK];
    let mut sent = 0;
    while sent < bytes {
        let size = usize::try_from(step.min(bytes - sent)).map_or(CHUNK, |size| size.min(CHUNK));
        pattern.fill(sent, &mut chunk[..size]);
        stream
            .write_all(&chunk[..size])
            .map_err(|error| error.kind())?;
        sent += size as u64;
        // No pace, no division: a pace of 0 is no limit.
        if let Some(due) = sent.saturating_mul(1_000).checked_div(pace) {
            wait::pause(Duration::from_millis(due).saturating_sub(started.elapsed()));
        }
    }
    stream
        .shutdown(Shutdown::Write)
        .map_err(|error| error.kind())
}

struct Reader<'a> {
    pattern: Pattern,
    wanted: u64,
    rule: StallRule,
    progress: &'a AtomicU64,
    started: Instant,
}

impl Reader<'_> {
    fn read(self, stream: &mut TcpStream) -> Result<Received, TransferError> {
        let cut = |at: u64, kind: ErrorKind| TransferError::Cut { at, kind };
        stream
            .set_read_timeout(Some(LOOK))
            .map_err(|error| cut(0, error.kind()))?;
        let mut checker = Checker::new(self.pattern);
        let mut watch = StallWatch::new(self.rule, self.started);
        let (mut first_byte, mut longest_gap, mut last) =
            (Duration::ZERO, Duration::ZERO, self.started);
        let mut chunk = vec![0; CHUNK];
        loop {
            let at = checker.right();
            match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(size) => {
                    let now = Instant::now();
                    if at == 0 {
                        first_byte = now - self.started;
                    } else {
                        longest_gap = longest_gap.max(now - last);
                    }
                    last = now;
                    if !checker.accept(&chunk[..size]) && checker.is_sure() {
                        break;
                    }
                    self.progress.store(checker.right(), Ordering::Relaxed);
                    if checker.right() > self.wanted {
                        return Err(TransferError::Long {
                            wanted: self.wanted,
                        });
                    }
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(checker
                        .damage()
                        .map_or_else(|| cut(at, error.kind()), TransferError::Damaged));
                }
            }
            if watch.is_stalled(Instant::now(), checker.right()) {
                return Err(checker.damage().map_or_else(
                    || TransferError::Stalled {
                        at: checker.right(),
                    },
                    TransferError::Damaged,
                ));
            }
        }
        if let Some(damage) = checker.damage() {
            return Err(TransferError::Damaged(damage));
        }
        if checker.right() < self.wanted {
            return Err(TransferError::Short {
                at: checker.right(),
                wanted: self.wanted,
            });
        }
        Ok(Received {
            bytes: checker.right(),
            sha256: checker.sha256(),
            first_byte,
            longest_gap,
            took: self.started.elapsed(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_too_little_for_too_long() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let rule = StallRule {
            bytes: 100,
            within: Duration::from_secs(30),
        };
        let mut watch = StallWatch::new(rule, start);
        assert!(!watch.is_stalled(after(29), 99));
        assert!(!watch.is_stalled(after(29), 100), "enough came in time");
        assert!(!watch.is_stalled(after(58), 150));
        assert!(watch.is_stalled(after(59), 199), "99 bytes in 30 s");
    }

    #[test]
    fn heads_round_trip_and_others_are_refused() {
        let head = Transfer::both_ways(9, 8).paced(7).head();
        let back = Transfer::parse(&head).expect("a head");
        assert_eq!((back.stream, back.up, back.down, back.pace), (9, 8, 8, 7));
        assert!(Transfer::parse(&[b'G'; HEAD]).is_none());
    }
}
