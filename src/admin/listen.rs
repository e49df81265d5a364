//! Admin connections, bounded: so many at a time, each for so long, one
//! request on each.
//!
//! The deadline covers all that a slow or hostile client can do: not sending,
//! sending drop by drop, not reading. Beyond the cap the oldest connection
//! makes room: an answer takes milliseconds, so it is one that only sits there,
//! and nobody keeps a health check waiting by opening many.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

/// Connections at a time.
pub(super) const CONNS_MAX: usize = 64;
/// From accepted to closed; no answer takes a second.
pub(super) const CONN_TIME_MAX: Duration = Duration::from_secs(10);

/// Accepts connections, and lets the oldest go for them.
pub(super) struct Bounded {
    listener: TcpListener,
    /// Those that live, oldest first; dropping one ends it.
    living: VecDeque<oneshot::Sender<()>>,
    time_max: Duration,
}

impl Bounded {
    /// Bounds what a listener accepts; [`CONN_TIME_MAX`] for everyone but tests.
    pub(super) fn new(listener: TcpListener, time_max: Duration) -> Bounded {
        Bounded { listener, living: VecDeque::new(), time_max }
    }
}

impl Listener for Bounded {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        self.living.retain(|conn| !conn.is_closed());
        while self.living.len() >= CONNS_MAX {
            self.living.pop_front();
        }
        let (living, evicted) = oneshot::channel();
        self.living.push_back(living);
        let deadline = Box::pin(sleep(self.time_max));
        (BoundedStream { stream, deadline, evicted, is_over: false }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends at its deadline, or when its place is needed.
pub(super) struct BoundedStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    evicted: oneshot::Receiver<()>,
    is_over: bool,
}

impl BoundedStream {
    /// The stream, or the error that its time is over. Being asked, both ends
    /// also wake whoever waits for the stream.
    fn in_time(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        // None of them may be asked again when it has said so.
        self.is_over = self.is_over
            || self.deadline.as_mut().poll(cx).is_ready()
            || Pin::new(&mut self.evicted).poll(cx).is_ready();
        if self.is_over {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Pin::new(&mut self.stream))
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.in_time(cx)?.poll_read(cx, buf)
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.in_time(cx)?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.in_time(cx)?.poll_shutdown(cx)
    }
}
