//! Admin HTTP on a thread of its own: health, metrics, latency.
//!
//! It answers while every core is busy, because it shares nothing with them
//! but the [`Board`] on which shards publish once a second; it never touches a
//! shard's state, and no shard ever waits for it. It only reads: GET and HEAD.
//!
//! The modules in the order in which a number meets them.

mod published;
mod worst;

mod collected;
mod recorded;

mod health;
mod hgrm;
mod latency;
mod metrics;
mod page;
mod process;
mod top;

mod listen;
mod routes;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime;
use tokio::sync::oneshot;

#[cfg(test)]
use published::Snapshot;
pub(crate) use published::{Board, Longest, ServerInfo, histogram};
pub(crate) use worst::{ConnRow, Greatest, Order, Row, Worst, shown};

use listen::{Bounded, CONN_TIME_MAX};

/// The running admin thread. It ends when this is stopped or dropped.
pub(crate) struct Admin {
    addr: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Admin {
    /// Where it listens; tells the port when 0 was asked for.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends it, requests under way included, and waits until it has ended.
    pub(crate) fn stop(self) {
        // An error means that it has ended already.
        let _ = self.stop.send(());
        let _ = self.thread.join();
    }
}

/// Starts the thread. Until the first shard publishes,
/// `/health` says that the server is starting.
///
/// # Errors
/// What the system said.
pub(crate) fn start(listener: TcpListener, board: Arc<Board>) -> io::Result<Admin> {
    start_with(listener, board, CONN_TIME_MAX)
}

fn start_with(listener: TcpListener, board: Arc<Board>, time_max: Duration) -> io::Result<Admin> {
    listener.set_nonblocking(true)?;
    let addr = listener.local_addr()?;
    let runtime = runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let (stop, stopped) = oneshot::channel();
    let thread = thread::Builder::new()
        .name("admin".to_owned())
        .spawn(move || runtime.block_on(serve(listener, board, time_max, stopped)))?;
    Ok(Admin { addr, stop, thread })
}

async fn serve(
    listener: TcpListener,
    board: Arc<Board>,
    time_max: Duration,
    stopped: oneshot::Receiver<()>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => Bounded::new(listener, time_max),
        Err(error) => return tracing::error!("the admin HTTP cannot listen: {error}"),
    };
    let state = routes::State::new(board);
    let serving = axum::serve(listener, routes::router(Arc::clone(&state)));
    tokio::select! {
        // Whether it was sent or dropped with its owner: time to go. What is
        // under way ends with the runtime, so that no slow client holds up a stop.
        _ = stopped => {}
        () = state.collect_for_ever() => {}
        result = async { serving.await } => {
            if let Err(error) = result {
                tracing::error!("the admin HTTP ended: {error}");
            }
        }
    }
}
