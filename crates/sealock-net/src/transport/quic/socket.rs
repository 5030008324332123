//! The UDP socket under an endpoint: no error of a single packet ends it, and what machines say of their ports is kept.
//!
//! ICMP is not authentic, so it decides nothing: [`Refusals`] only remembers that, and when, a machine said that nobody
//! listens at a port that we sent to. Whoever asks knows besides how long that peer has been silent.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use noq::udp::{RecvMeta, Transmit, UdpSocketState};
use noq::{AsyncUdpSocket, UdpSender};
use parking_lot::Mutex;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::sys;

/// A socket as the QUIC library uses it.
#[derive(Debug, Clone)]
pub(super) struct Port {
    io: Arc<UdpSocket>,
    state: Arc<UdpSocketState>,
    refusals: Refusals,
    /// It speaks with one peer from one address, which need not be named with each packet.
    connected: bool,
}

impl Port {
    /// Must be called within the runtime.
    pub(super) fn new(socket: std::net::UdpSocket, connected: bool) -> io::Result<Self> {
        let state = Arc::new(UdpSocketState::new((&socket).into())?); // also makes it non-blocking
        sys::keep_errors(&socket, socket.local_addr()?.is_ipv6())?;
        let io = Arc::new(UdpSocket::from_std(socket)?);
        Ok(Self {
            refusals: Refusals::of(Arc::clone(&io)),
            io,
            state,
            connected,
        })
    }

    /// What machines said of the ports that were sent to.
    pub(super) fn refusals(&self) -> Refusals {
        self.refusals.clone()
    }

    /// Sends, or waits for nobody: only a full buffer is an error that the caller hears of.
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // The source of a connected socket is its own; naming one that has just been taken from the machine would be
        // an error of the call, upon which the library gives its faster ways up.
        let src_ip = transmit.src_ip.filter(|_| !self.connected);
        let transmit = Transmit {
            src_ip,
            ..transmit.clone()
        };
        let send = || {
            let io = &*self.io;
            io.try_io(Interest::WRITABLE, || {
                self.state.try_send(io.into(), &transmit)
            })
        };
        let sent = match send() {
            // It may be an error of an earlier packet, which took this one's place.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                self.refusals.take_in();
                send()
            }
            sent => sent,
        };
        match sent {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                tracing::trace!(err = %error, "a packet could not be sent");
                Ok(()) // as if it was lost on its way
            }
            sent => sent,
        }
    }
}

impl AsyncUdpSocket for Port {
    fn create_sender(&self) -> Pin<Box<dyn UdpSender>> {
        Box::pin(Sender {
            port: self.clone(),
            room: None,
        })
    }

    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        for _ in 0..ERRORS_AT_ONCE {
            ready!(self.io.poll_recv_ready(cx))?;
            let io = &*self.io;
            let received = io.try_io(Interest::READABLE, || {
                self.state.recv(io.into(), bufs, meta)
            });
            match received {
                Ok(count) => {
                    self.refusals.heard.store(true, Ordering::Relaxed);
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if is_of_the_socket(&error) => return Poll::Ready(Err(error)),
                // Of a packet that we sent.
                Err(_) => self.refusals.take_in(),
            }
        }
        // Others have their turn before more errors, of which a stranger may send any number.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn max_receive_segments(&self) -> NonZeroUsize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

const ERRORS_AT_ONCE: usize = 16;

/// Whether an error is one of our own handling of the socket, which no waiting mends.
fn is_of_the_socket(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    [libc::EBADF, libc::ENOTSOCK, libc::EFAULT, libc::EINVAL]
        .iter()
        .any(|fatal| number == Some(*fatal))
}

/// One of the library's tasks that send.
struct Sender {
    port: Port,
    room: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl UdpSender for Sender {
    fn poll_send(
        mut self: Pin<&mut Self>,
        transmit: &Transmit<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some(room) = &mut self.room {
                ready!(room.as_mut().poll(cx));
                self.room = None;
            }
            match self.port.try_send(transmit) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.room = Some(Box::pin(room(Arc::clone(&self.port.io))));
                }
                sent => return Poll::Ready(sent),
            }
        }
    }

    fn max_transmit_segments(&self) -> NonZeroUsize {
        self.port.state.max_gso_segments()
    }
}

/// Once the runtime has seen an error of the socket, it takes it for writable for ever; then only the time can tell.
const FULL_BUFFER_PAUSE: Duration = Duration::from_millis(1);

/// Waits until the socket's buffer may have room.
async fn room(socket: Arc<UdpSocket>) {
    match socket.ready(Interest::WRITABLE).await {
        Ok(ready) if !ready.is_write_closed() => {}
        Ok(_) | Err(_) => tokio::time::sleep(FULL_BUFFER_PAUSE).await,
    }
}

/// How many ports of others are remembered of which their machine said that nobody listens.
const REMEMBERED: usize = 1_024;

/// What machines said of ports that were sent to; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Refusals {
    socket: Arc<UdpSocket>,
    /// The newest last, one for each port.
    told: Arc<Mutex<VecDeque<(SocketAddr, Instant)>>>,
    news: Arc<Notify>,
    heard: Arc<AtomicBool>,
}

impl Refusals {
    fn of(socket: Arc<UdpSocket>) -> Self {
        Self {
            socket,
            told: Arc::default(),
            news: Arc::default(),
            heard: Arc::default(),
        }
    }

    /// Whether since `begin` the machine of `remote` said that nobody listens there.
    pub(super) fn since(&self, remote: SocketAddr, begin: Instant) -> bool {
        self.take_in();
        let remote = canonical(remote);
        let told = self.told.lock();
        told.iter()
            .any(|&(port, when)| port == remote && when >= begin)
    }

    /// Resolves when a machine has said that nobody listens at one of its ports, as far as the library looked meanwhile.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn more(&self) {
        self.news.notified().await;
    }

    /// Whether a packet of anybody has come in.
    pub(super) fn heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// Empties the socket's queue of errors, which shares its room with what it receives.
    fn take_in(&self) {
        let now = Instant::now();
        while let Ok(Some(error)) = sys::next_error(&*self.socket) {
            if error.nobody_listens {
                self.remember(canonical(error.remote), now);
            }
        }
    }

    fn remember(&self, remote: SocketAddr, now: Instant) {
        let mut told = self.told.lock();
        told.retain(|(port, _)| *port != remote);
        if told.len() == REMEMBERED {
            told.pop_front();
        }
        told.push_back((remote, now));
        drop(told);
        // Kept for who comes late: it only makes one look too many.
        self.news.notify_one();
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn port(connected_to: Option<SocketAddr>) -> Port {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        if let Some(remote) = connected_to {
            socket.connect(remote).expect("a way");
        }
        Port::new(socket, connected_to.is_some()).expect("a socket")
    }

    async fn send(sender: &mut Pin<Box<dyn UdpSender>>, destination: SocketAddr) {
        let transmit = Transmit {
            destination,
            ecn: None,
            contents: b"packet",
            segment_size: None,
            src_ip: None,
        };
        let sent = std::future::poll_fn(|cx| sender.as_mut().poll_send(&transmit, cx)).await;
        sent.expect("no error");
    }

    async fn receive(port: &mut Port) -> usize {
        let mut buffer = vec![0; 65_536];
        let received = std::future::poll_fn(|cx| {
            let mut meta = [RecvMeta::default()];
            let mut bufs = [IoSliceMut::new(&mut buffer)];
            port.poll_recv(cx, &mut bufs, &mut meta)
                .map_ok(|_| meta[0].len)
        });
        let received = tokio::time::timeout(Duration::from_secs(5), received).await;
        received.expect("something came").expect("no error")
    }

    async fn listener(address: SocketAddr) -> UdpSocket {
        UdpSocket::bind(address).await.expect("a port")
    }

    /// All of a hundred packets.
    async fn hear(listener: &UdpSocket) {
        let mut buffer = [0; 16];
        for _ in 0..100 {
            let heard = tokio::time::timeout(Duration::from_secs(5), listener.recv(&mut buffer));
            assert_eq!(heard.await.expect("all of them").expect("no error"), 6);
        }
    }

    #[tokio::test]
    async fn a_closed_port_of_one_peer_loses_no_packet_of_another() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (other, closed) = (listener(any).await, listener(any).await);
        let alive = other.local_addr().expect("bound");
        let gone = closed.local_addr().expect("bound");
        drop(closed);
        let mut port = port(None);
        let begin = Instant::now();
        let mut sender = port.create_sender();
        for _ in 0..100 {
            send(&mut sender, gone).await;
            send(&mut sender, alive).await;
        }
        hear(&other).await;
        let ours = port.local_addr().expect("bound");
        send(&mut sender, gone).await;
        other.send_to(b"answer", ours).await.expect("sent");
        assert_eq!(receive(&mut port).await, 6);
        let refusals = port.refusals();
        assert!(refusals.since(gone, begin));
        assert!(!refusals.since(alive, begin));
        assert!(!refusals.since(gone, Instant::now()), "told before");
    }

    #[tokio::test]
    async fn a_peer_that_was_gone_and_is_back_is_spoken_with_over_the_same_socket() {
        let first = listener((Ipv4Addr::LOCALHOST, 0).into()).await;
        let peer = first.local_addr().expect("bound");
        let mut port = port(Some(peer));
        let begin = Instant::now();
        let mut sender = port.create_sender();
        send(&mut sender, peer).await;
        assert!(!port.refusals().since(peer, begin));
        drop(first);
        for _ in 0..3 {
            send(&mut sender, peer).await;
        }
        assert!(port.refusals().since(peer, begin));
        let second = listener(peer).await;
        for _ in 0..100 {
            send(&mut sender, peer).await;
        }
        hear(&second).await;
        let ours = port.local_addr().expect("bound");
        second.send_to(b"answer", ours).await.expect("sent");
        assert_eq!(receive(&mut port).await, 6);
    }

    #[tokio::test]
    async fn what_strangers_make_machines_say_takes_bounded_memory() {
        let port = port(None);
        let refusals = port.refusals();
        let now = Instant::now();
        for number in 0..10_000u16 {
            refusals.remember(([127, 0, 0, 1], number).into(), now);
            refusals.remember(([127, 0, 0, 1], 9_999).into(), now);
        }
        let told = refusals.told.lock();
        assert_eq!(told.len(), REMEMBERED);
        assert_eq!(told.back(), Some(&(([127, 0, 0, 1], 9_999).into(), now)));
    }
}
