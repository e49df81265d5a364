//! Admin connections, bounded: so many at a time, each for so long, one
//! request on each.
//!
//! The deadline covers all that a slow or hostile client can do: not sending,
//! sending drop by drop, not reading. Beyond the cap, clients wait in the
//! kernel's queue.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

/// Connections at a time.
pub(super) const CONNS_MAX: usize = 64;
/// From accepted to closed; no answer takes a second.
pub(super) const CONN_TIME_MAX: Duration = Duration::from_secs(10);

/// Accepts connections while there is room for them.
pub(super) struct Bounded {
    listener: TcpListener,
    room: Arc<Semaphore>,
    time_max: Duration,
}

impl Bounded {
    /// Bounds what a listener accepts; [`CONN_TIME_MAX`] for everyone but tests.
    pub(super) fn new(listener: TcpListener, time_max: Duration) -> Bounded {
        Bounded { listener, room: Arc::new(Semaphore::new(CONNS_MAX)), time_max }
    }
}

impl Listener for Bounded {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        let room = Arc::clone(&self.room).acquire_owned().await;
        let room = room.expect("the semaphore is never closed");
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        let deadline = Box::pin(sleep(self.time_max));
        (BoundedStream { stream, deadline, _room: room }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends at its deadline.
pub(super) struct BoundedStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    _room: OwnedSemaphorePermit,
}

impl BoundedStream {
    /// The stream, or the error that its time is over. Being asked, the
    /// deadline also wakes whoever waits for the stream.
    fn in_time(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        match self.deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(Pin::new(&mut self.stream)),
        }
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
