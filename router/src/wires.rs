//! The BGP connections of a driver: connects under way, open streams, and streams that say their last words.
//!
//! One future ([`Wires::next`]) polls them all, in turn, so that a loud neighbour cannot silence another. What is to be
//! sent is pulled from the core when the stream has taken what it was given: no queue grows. It knows bytes, not messages.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::ops::Bound;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use martlet_bgp::{CloseReason, ConnectionId};
use martlet_clock::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::driver::{Accepted, Clock, Connecting, Net};

/// The most that is read, or written, of one neighbour in a turn, octets.
const TURN: usize = 64 * 1024;
/// How long a connection may take for its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A core that has something to send.
pub trait Sender {
    /// Appends what waits for `connection`, about `room` octets of it. True while more waits.
    fn pull(&mut self, now: Instant, connection: ConnectionId, buffer: &mut BytesMut, room: usize) -> bool;
}

impl Sender for crate::core::Router {
    fn pull(&mut self, now: Instant, connection: ConnectionId, buffer: &mut BytesMut, room: usize) -> bool {
        self.transmit(now, connection, buffer, room)
    }
}

impl Sender for martlet_bgp::Speaker {
    fn pull(&mut self, now: Instant, connection: ConnectionId, buffer: &mut BytesMut, room: usize) -> bool {
        self.transmit(now, connection, buffer, room)
    }
}

/// What happened on a wire.
#[derive(Debug)]
pub enum Happened<S> {
    /// Something was sent, and the core may have more to say; or a connection has said its last words.
    Sent,
    /// A connect succeeded.
    Connected(ConnectionId, SocketAddr, SocketAddr),
    /// Bytes came: [`Wires::received`].
    Received(ConnectionId),
    /// A connection is gone, or never came to be.
    Closed(ConnectionId, CloseReason),
    /// A listener took a connection.
    Accepted(Accepted<S>),
}

#[derive(Debug)]
struct Wire<S> {
    stream: S,
    out: BytesMut,
    /// The core has more for it.
    ready: bool,
}

/// A stream that is written out, then closed once the other end has read it.
struct Closing<S> {
    wire: Wire<S>,
    shut: bool,
    until: Pin<Box<tokio::time::Sleep>>,
}

/// All of them.
pub struct Wires<S> {
    connecting: BTreeMap<ConnectionId, Connecting<S>>,
    open: BTreeMap<ConnectionId, Wire<S>>,
    closing: Vec<Closing<S>>,
    last: ConnectionId,
    buffer: Vec<u8>,
    filled: usize,
    /// Something was sent or received since the runtime last looked at its sockets and timers.
    moved: bool,
}

impl<S> Default for Wires<S> {
    /// None.
    fn default() -> Self {
        Self {
            connecting: BTreeMap::new(),
            open: BTreeMap::new(),
            closing: Vec::new(),
            last: ConnectionId(0),
            buffer: vec![0; TURN],
            filled: 0,
            moved: false,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + 'static> Wires<S> {
    /// Whether nothing is open or closing.
    pub fn is_empty(&self) -> bool {
        self.connecting.is_empty() && self.open.is_empty() && self.closing.is_empty()
    }

    /// A connect is under way.
    pub fn connect(&mut self, id: ConnectionId, connecting: Connecting<S>) {
        self.connecting.insert(id, connecting);
    }

    /// A stream is open.
    pub fn open(&mut self, id: ConnectionId, stream: S) {
        self.open.insert(id, Wire { stream, out: BytesMut::new(), ready: false });
    }

    /// An open stream.
    pub fn stream(&self, id: ConnectionId) -> Option<&S> {
        self.open.get(&id).map(|wire| &wire.stream)
    }

    /// The core has something for it.
    pub fn ready(&mut self, id: ConnectionId) {
        if let Some(wire) = self.open.get_mut(&id) {
            wire.ready = true;
        }
    }

    /// Close it once everything is written, the core's last words included.
    pub fn close(&mut self, id: ConnectionId, mut pull: impl FnMut(&mut BytesMut) -> bool) {
        self.connecting.remove(&id);
        if let Some(mut wire) = self.open.remove(&id) {
            let _ = pull(&mut wire.out);
            let until = Box::pin(tokio::time::sleep(LAST_WORDS));
            self.closing.push(Closing { wire, shut: false, until });
        }
    }

    /// What [`Happened::Received`] spoke of.
    pub fn received(&self) -> &[u8] {
        self.buffer.get(..self.filled).unwrap_or_default()
    }

    /// Waits until something happens. Safe to drop at any time.
    pub async fn next<N: Net<Stream = S>>(&mut self, net: &mut N, core: &mut impl Sender, clock: Clock) -> Happened<S> {
        if std::mem::take(&mut self.moved) {
            // The runtime looks at sockets and timers only when the task waits: beside a neighbour that always has more to
            // say, another one, a timer and the load balancer would be seen a hundred turns later.
            tokio::task::yield_now().await;
        }
        let happened = poll_fn(|cx| self.poll_next(cx, net, core, clock)).await;
        self.moved = matches!(happened, Happened::Sent | Happened::Received(_));
        happened
    }

    fn poll_next<N: Net<Stream = S>>(
        &mut self,
        cx: &mut Context<'_>,
        net: &mut N,
        core: &mut impl Sender,
        clock: Clock,
    ) -> Poll<Happened<S>> {
        let closing = self.closing.len();
        self.closing.retain_mut(|closing| closing.poll(cx).is_pending());
        if self.closing.len() < closing {
            // Who waits for the last one must hear of it.
            return Poll::Ready(Happened::Sent);
        }
        // Sending comes first, on every wire: a withdrawal does not wait for anybody's reading.
        let mut sent = false;
        let mut broken = None;
        for (id, wire) in &mut self.open {
            match wire.poll_send(cx, |out| core.pull(clock.now(), *id, out, TURN)) {
                Ok(some) => sent |= some,
                Err(error) => broken = Some((*id, close_reason(&error))),
            }
        }
        if let Some((id, reason)) = broken {
            self.open.remove(&id);
            return Poll::Ready(Happened::Closed(id, reason));
        }
        if sent {
            return Poll::Ready(Happened::Sent);
        }
        if let Poll::Ready(happened) = self.poll_connecting(cx) {
            return Poll::Ready(happened);
        }
        if let Poll::Ready(accepted) = net.poll_accept(cx) {
            return Poll::Ready(Happened::Accepted(accepted));
        }
        self.poll_receive(cx)
    }

    fn poll_connecting(&mut self, cx: &mut Context<'_>) -> Poll<Happened<S>> {
        let done = self.connecting.iter_mut().find_map(|(id, connecting)| match connecting.as_mut().poll(cx) {
            Poll::Ready(result) => Some((*id, result)),
            Poll::Pending => None,
        });
        let Some((id, result)) = done else { return Poll::Pending };
        self.connecting.remove(&id);
        Poll::Ready(match result {
            Ok((stream, local, remote)) => {
                self.open(id, stream);
                Happened::Connected(id, local, remote)
            }
            Err(reason) => Happened::Closed(id, reason),
        })
    }

    /// Reads one wire: the first that has something, after the one that was read last.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Happened<S>> {
        let last = self.last;
        let after: Vec<ConnectionId> = self
            .open
            .range((Bound::Excluded(last), Bound::Unbounded))
            .chain(self.open.range(..=last))
            .map(|(id, _)| *id)
            .collect();
        for id in after {
            let Some(wire) = self.open.get_mut(&id) else { continue };
            let mut buffer = ReadBuf::new(&mut self.buffer);
            let reason = match Pin::new(&mut wire.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => continue,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.filled = buffer.filled().len();
                    self.last = id;
                    return Poll::Ready(Happened::Received(id));
                }
                Poll::Ready(Ok(())) => CloseReason::EndOfFile,
                Poll::Ready(Err(error)) => close_reason(&error),
            };
            self.open.remove(&id);
            return Poll::Ready(Happened::Closed(id, reason));
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Writes what waits, and pulls more when all is written, at most one turn's worth. True if anything was pulled.
    fn poll_send(&mut self, cx: &mut Context<'_>, mut pull: impl FnMut(&mut BytesMut) -> bool) -> io::Result<bool> {
        let (mut written, mut pulled) = (0, false);
        loop {
            if self.out.is_empty() {
                if !self.ready || written >= TURN {
                    return Ok(pulled);
                }
                self.ready = pull(&mut self.out);
                pulled = true;
                if self.out.is_empty() {
                    // The core may have looked at many routes and found nothing to say yet: then it is asked again, next turn.
                    return Ok(pulled);
                }
            }
            match Pin::new(&mut self.stream).poll_write(cx, &self.out) {
                Poll::Pending => return Ok(pulled),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    self.out.advance(count);
                    written += count;
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Closing<S> {
    /// Ready when it may be dropped. Closing with unread bytes would be a reset, and a reset eats the last words.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match self.wire.poll_send(cx, |_| false) {
            Err(_) => return Poll::Ready(()),
            Ok(_) if !self.wire.out.is_empty() => return Poll::Pending,
            Ok(_) => {}
        }
        if !self.shut {
            match Pin::new(&mut self.wire.stream).poll_shutdown(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => self.shut = true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
            }
        }
        let mut scratch = [0; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.wire.stream).poll_read(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
    }
}

/// An error of the operating system in the words of the speaker.
pub fn close_reason(error: &io::Error) -> CloseReason {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
            CloseReason::Reset
        }
        io::ErrorKind::ConnectionRefused => CloseReason::Refused,
        io::ErrorKind::TimedOut => CloseReason::NoAnswer,
        _ => CloseReason::Other(error.to_string().into()),
    }
}

impl<S> std::fmt::Debug for Wires<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<_> = self.open.keys().collect();
        f.debug_struct("Wires").field("open", &ids).field("closing", &self.closing.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_core_that_has_nothing_to_say_yet_is_asked_again() {
        let (stream, _other) = tokio::io::duplex(64);
        let mut wire = Wire { stream, out: BytesMut::new(), ready: true };
        let mut asked = 0;
        for _ in 0..3 {
            let mut pull = |out: &mut BytesMut| {
                asked += 1;
                if asked == 3 {
                    out.extend_from_slice(b"update");
                }
                asked < 3
            };
            let sent = poll_fn(|cx| Poll::Ready(wire.poll_send(cx, &mut pull))).await;
            assert!(sent.unwrap());
        }
        assert_eq!((asked, wire.ready, wire.out.len()), (3, false, 0));
    }
}
