//! One stream of a mux: the bytes that the mux carries, and what the control stream says about them.
//!
//! The mux's own ends decide nothing: a direction ends cleanly when the other side has named its length and that much
//! was read, and abnormally with the reason that it gave, or with the connection. Until then a reader waits.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use futures_util::io::AsyncWrite;
use futures_util::stream::Stream;
use parking_lot::Mutex;
use sealock_core::reason::Reason;
use tokio::io::ReadBuf;
use tokio::sync::Notify;

use super::word::Word;
use super::{Handle, Shared};
use crate::transport::{Lost, ReadError, WriteError};

/// The first byte of each direction, so that a stream exists for the other side from its opening on.
pub(super) const GREETING: &[u8] = &[0];

/// A stream, as its two halves and the driver share it.
#[derive(Debug)]
pub(super) struct Lane {
    id: u32,
    /// Whether the other side opened it.
    pub(super) inbound: bool,
    state: Mutex<State>,
    /// Frames that came and were not read.
    kept: AtomicUsize,
    /// Told of each word, for those who wait for nothing but that.
    news: Notify,
}

#[derive(Debug)]
struct State {
    /// Taken out when both halves are gone.
    stream: Option<yamux::Stream>,
    greeted: bool,
    surplus: Bytes,
    /// Bytes that came out of the mux, without the greeting.
    read: u64,
    /// Bytes that went into the mux, without the greeting.
    written: u64,
    length: Option<u64>,
    reset: Option<Reason>,
    stopped: Option<Reason>,
    all_read: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Lane {
    pub(super) fn new(stream: yamux::Stream, inbound: bool) -> Arc<Self> {
        let id = stream.id().val();
        let state = State {
            stream: Some(stream),
            greeted: false,
            surplus: Bytes::new(),
            read: 0,
            written: 0,
            length: None,
            reset: None,
            stopped: None,
            all_read: false,
            reader: None,
            writer: None,
        };
        Arc::new(Self {
            id,
            inbound,
            state: Mutex::new(state),
            kept: AtomicUsize::new(0),
            news: Notify::new(),
        })
    }

    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Notes a frame that came; says how many waited before it.
    pub(super) fn keep(&self) -> usize {
        self.kept.fetch_add(1, Ordering::Relaxed)
    }

    /// Ends the stream for both sides, and what waits in it with it.
    pub(super) fn give_up(&self, shared: &Shared) {
        let reason = Reason::ProtocolViolation;
        let mut state = self.state.lock();
        state.reset = Some(reason);
        state.stopped = Some(reason);
        let stream = state.stream.take();
        drop(state);
        if stream.is_some() {
            shared.retired.lock().extend(stream);
            let lane = self.id;
            shared.say(Word::Reset { lane, reason });
            shared.say(Word::Stop { lane, reason });
            self.wake();
        }
    }

    /// How many frames were never read, of a stream that nobody reads any more.
    pub(super) fn forget_kept(&self) -> usize {
        self.kept.swap(0, Ordering::Relaxed)
    }

    /// A frame was read. The first one of a stream was not noted.
    fn unkeep(&self, shared: &Shared) {
        let fewer = |kept: usize| kept.checked_sub(1);
        let noted = self
            .kept
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        if noted.is_ok() {
            shared.kept.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes what the other side says about the stream.
    pub(super) fn hear(&self, word: Word) {
        let mut state = self.state.lock();
        match word {
            Word::Finished { length, .. } => state.length = Some(length),
            Word::Reset { reason, .. } => state.reset = Some(reason),
            Word::Stop { reason, .. } => state.stopped = Some(reason),
            Word::Read { .. } => state.all_read = true,
            Word::Streams { .. } | Word::Ping { .. } | Word::Pong { .. } | Word::Close { .. } => {}
        }
        drop(state);
        self.wake();
    }

    /// Lets whoever waits look again.
    pub(super) fn wake(&self) {
        let mut state = self.state.lock();
        let wakers = [state.reader.take(), state.writer.take()];
        drop(state);
        for waker in wakers.into_iter().flatten() {
            waker.wake();
        }
        self.news.notify_waiters();
    }

    fn poll_write(
        &self,
        shared: &Shared,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, WriteError>> {
        let mut state = self.state.lock();
        if let Some(reason) = state.stopped {
            return Poll::Ready(Err(WriteError::Stopped(reason)));
        }
        if let Some(lost) = shared.lost() {
            return Poll::Ready(Err(WriteError::Lost(lost)));
        }
        let stream = state.stream.as_mut().map(Pin::new);
        // The mux's own error comes with a word that says more, or with the end of the connection.
        if let Some(Poll::Ready(Ok(count))) = stream.map(|stream| stream.poll_write(cx, bytes)) {
            state.written += count as u64;
            return Poll::Ready(Ok(count));
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_read(
        &self,
        shared: &Shared,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, ReadError>> {
        let mut state = self.state.lock();
        loop {
            if let Some(reason) = state.reset {
                return Poll::Ready(Err(ReadError::Reset(reason)));
            }
            if !state.surplus.is_empty() {
                let length = max.min(state.surplus.len());
                return Poll::Ready(Ok(Some(state.surplus.split_to(length))));
            }
            match state.length {
                Some(length) if length == state.read => return Poll::Ready(Ok(None)),
                Some(length) if length < state.read => {
                    return Poll::Ready(Err(ReadError::Reset(Reason::ProtocolViolation)));
                }
                Some(_) | None => {}
            }
            let stream = state.stream.as_mut().map(Pin::new);
            if let Some(Poll::Ready(Some(Ok(packet)))) = stream.map(|stream| stream.poll_next(cx)) {
                state.take(Bytes::from_owner(packet));
                self.unkeep(shared);
                continue;
            }
            if let Some(lost) = shared.lost() {
                return Poll::Ready(Err(ReadError::Lost(lost)));
            }
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
    }
}

impl State {
    fn take(&mut self, mut bytes: Bytes) {
        if !self.greeted && !bytes.is_empty() {
            bytes.advance(GREETING.len());
            self.greeted = true;
        }
        self.read += bytes.len() as u64;
        self.surplus = bytes;
    }
}

/// What both halves of a stream hold; when the last one goes, so does the stream.
#[derive(Debug)]
struct End {
    lane: Arc<Lane>,
    handle: Arc<Handle>,
    /// Whether it carries somebody's bytes, for which the peer is asked often whether it is there.
    attends: AtomicBool,
}

impl End {
    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    fn say(&self, word: Word) {
        self.shared().say(word);
    }

    fn stand_by(&self) {
        if self.attends.swap(false, Ordering::Relaxed) {
            self.shared().attending.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.stand_by();
        let stream = self.lane.state.lock().stream.take();
        self.shared().retire(&self.lane, stream);
    }
}

pub(super) fn halves(lane: Arc<Lane>, handle: Arc<Handle>) -> (SendHalf, RecvHalf) {
    handle.shared.attending.fetch_add(1, Ordering::Relaxed);
    handle.shared.driver.wake();
    let end = Arc::new(End {
        lane,
        handle,
        attends: AtomicBool::new(true),
    });
    let send = SendHalf {
        end: Arc::clone(&end),
        finished: false,
        reset: false,
    };
    let recv = RecvHalf {
        end,
        ended: false,
        stopped: false,
    };
    (send, recv)
}

/// The half towards the other side.
#[derive(Debug)]
pub(crate) struct SendHalf {
    end: Arc<End>,
    finished: bool,
    reset: bool,
}

impl SendHalf {
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), WriteError> {
        self.write_all_chunks(&mut [bytes]).await
    }

    pub(crate) async fn write_all_chunks(
        &mut self,
        chunks: &mut [Bytes],
    ) -> Result<(), WriteError> {
        for chunk in chunks {
            while !chunk.is_empty() {
                let written = std::future::poll_fn(|cx| self.poll_write(cx, chunk)).await?;
                chunk.advance(written);
            }
        }
        Ok(())
    }

    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, WriteError>> {
        if self.finished || self.reset {
            return Poll::Ready(Err(WriteError::Finished));
        }
        self.end.lane.poll_write(self.end.shared(), cx, bytes)
    }

    pub(crate) fn finish(&mut self) -> Result<(), WriteError> {
        let state = self.end.lane.state.lock();
        let (length, stopped) = (state.written, state.stopped.is_some());
        drop(state);
        if self.reset || std::mem::replace(&mut self.finished, true) || stopped {
            return Err(WriteError::Finished);
        }
        let lane = self.end.lane.id();
        self.end.say(Word::Finished { lane, length });
        Ok(())
    }

    pub(crate) fn reset(&mut self, reason: Reason) {
        if !std::mem::replace(&mut self.reset, true) {
            let lane = self.end.lane.id();
            self.end.say(Word::Reset { lane, reason });
        }
    }

    pub(crate) fn stand_by(&self) {
        self.end.stand_by();
    }

    pub(crate) async fn stopped(&self) -> Result<Option<Reason>, Lost> {
        let lane = &self.end.lane;
        loop {
            let mut news = std::pin::pin!(lane.news.notified());
            news.as_mut().enable();
            {
                let state = lane.state.lock();
                if state.stopped.is_some() {
                    return Ok(state.stopped);
                }
                if state.all_read {
                    return Ok(None);
                }
            }
            if let Some(lost) = self.end.shared().lost() {
                return Err(lost);
            }
            news.await;
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.end.lane.id().into()
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if !self.finished {
            self.reset(Reason::Cancelled);
        }
    }
}

/// The half from the other side.
#[derive(Debug)]
pub(crate) struct RecvHalf {
    end: Arc<End>,
    ended: bool,
    stopped: bool,
}

impl RecvHalf {
    pub(crate) async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, ReadError> {
        std::future::poll_fn(|cx| self.poll_chunk(cx, max)).await
    }

    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Option<Bytes>, ReadError>> {
        if self.stopped {
            return Poll::Ready(Err(ReadError::Stopped));
        }
        let read = self.end.lane.poll_read(self.end.shared(), cx, max);
        match &read {
            Poll::Ready(Ok(None)) if !self.ended => {
                self.ended = true;
                let lane = self.end.lane.id();
                self.end.say(Word::Read { lane });
            }
            Poll::Ready(Err(_)) => self.ended = true,
            Poll::Ready(Ok(_)) | Poll::Pending => {}
        }
        read
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), ReadError>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.poll_chunk(cx, buffer.remaining()).map_ok(|chunk| {
            if let Some(chunk) = chunk {
                buffer.put_slice(&chunk);
            }
        })
    }

    pub(crate) fn stop(&mut self, reason: Reason) {
        self.stopped = true;
        if !std::mem::replace(&mut self.ended, true) {
            let lane = self.end.lane.id();
            self.end.say(Word::Stop { lane, reason });
        }
    }

    pub(crate) async fn reset_received(&mut self) -> Result<Option<Reason>, Lost> {
        let lane = &self.end.lane;
        loop {
            let mut news = std::pin::pin!(lane.news.notified());
            news.as_mut().enable();
            {
                let state = lane.state.lock();
                if state.reset.is_some() {
                    return Ok(state.reset);
                }
                if state.length.is_some() {
                    return Ok(None);
                }
            }
            if let Some(lost) = self.end.shared().lost() {
                return Err(lost);
            }
            news.await;
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.end.lane.id().into()
    }
}

impl Drop for RecvHalf {
    fn drop(&mut self) {
        self.stop(Reason::Cancelled); // nothing is said after an end
    }
}
