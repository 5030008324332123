//! The bytes below a mux: notes when the other side was heard last, and ends the connection for what the mux itself would
//! let pass.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::frames::{Judge, Reading};
use super::{Shared, VIOLATION};

/// What a mux can run over: TLS, or WebSocket messages within TLS.
pub(crate) trait Pipe: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Pipe for T {}

/// When the other side was heard last.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    began: Instant,
    micros: Arc<AtomicU64>,
}

impl Heard {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            micros: Arc::default(),
        }
    }

    /// Microseconds since the connection began.
    pub(super) fn clock(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn now(&self) {
        self.micros.store(self.clock(), Ordering::Relaxed);
    }

    /// When something came last, as [`Self::clock`] tells.
    pub(super) fn last(&self) -> u64 {
        self.micros.load(Ordering::Relaxed)
    }

    /// How long nothing has come.
    pub(super) fn silence(&self) -> Duration {
        Duration::from_micros(self.clock().saturating_sub(self.last()))
    }
}

/// A pipe as the mux sees it. The pipe joins what is written until it is flushed.
pub(super) struct Wire {
    pipe: Box<dyn Pipe>,
    heard: Heard,
    shared: Arc<Shared>,
    incoming: Reading,
    outgoing: Reading,
    judge: Judge,
}

impl Wire {
    pub(super) fn new(pipe: Box<dyn Pipe>, heard: Heard, shared: Arc<Shared>) -> Self {
        Self {
            pipe,
            heard,
            shared,
            incoming: Reading::default(),
            outgoing: Reading::default(),
            judge: Judge::new(Instant::now()),
        }
    }
}

impl futures_util::io::AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut self.pipe).poll_read(cx, &mut buffer))?;
        let length = buffer.filled().len();
        if length > 0 {
            self.heard.now();
        }
        let now = Instant::now();
        let Self {
            incoming,
            judge,
            shared,
            ..
        } = &mut *self;
        let mut violated = false;
        incoming.pass(buffer.filled(), |header| {
            violated |= judge.is_violation(header, now);
            if header.is_kept() {
                shared.keep(header.stream);
            }
        });
        if violated {
            shared.end(VIOLATION);
        }
        Poll::Ready(Ok(length))
    }
}

impl futures_util::io::AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.pipe).poll_write(cx, bytes);
        if written.is_pending() {
            self.shared.leaving.hold();
        }
        let length = ready!(written)?;
        let Self {
            outgoing, shared, ..
        } = &mut *self;
        outgoing.pass(&bytes[..length], |header| {
            if header.is_farewell() {
                shared.end(VIOLATION); // the mux says so and goes on
            }
        });
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.pipe).poll_flush(cx);
        if flushed.is_pending() {
            self.shared.leaving.hold();
        }
        ready!(flushed)?;
        if self.shared.leaving.release() {
            self.shared.driver.wake(); // places may be told again
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(futures_util::io::AsyncWrite::poll_flush(self.as_mut(), cx))?;
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}
