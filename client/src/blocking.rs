//! The sessions on a blocking `std::net::TcpStream`, every wait with a limit.
//!
//! For tests and simple programs: one thread, one connection, nothing runs in
//! the background. Deliveries and answers that come while something else is
//! waited for are kept, in order, until they are asked for. The stream itself
//! is reachable, so that a test can misbehave on it.

mod v1;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use wire::id::{Class, MessageId};
use wire::refuse::Code;
use wire::v2::Welcome;

use crate::backoff::{Backoff, is_final};
use crate::session::{Event, SendError, Session};

pub use v1::{ClientV1, RefusalV1, Status};

/// How long connecting and logging in may take: longer than a server waits for room
/// for a login, so that what it says then is heard.
pub const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long one write may take before the peer counts as stuck.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// One message as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Place in the inbox; 0 in protocol v1.
    pub inbox_seq: u64,
    /// The message's id.
    pub id: MessageId,
    /// The sender's name; empty in protocol v1.
    pub from: Vec<u8>,
    /// The sender's device; 0 in protocol v1.
    pub from_device: u64,
    /// The sender's number; 0 in protocol v1.
    pub send_seq: u64,
    /// When the server stored it, unix milliseconds; 0 in protocol v1.
    pub time_ms: u64,
    /// It was handed out before, see [`Event::Deliver`].
    pub again: bool,
    /// The body.
    pub body: Vec<u8>,
}

/// What came from the server beside deliveries, SENTs and WELCOME.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of `Event`")]
pub enum Notice {
    /// See [`Event::Gap`].
    Gap { to: Vec<u8>, expected: u64 },
    /// See [`Event::Lost`].
    Lost { to: Vec<u8>, first: u64, last: u64 },
    /// See [`Event::Forgotten`].
    Forgotten { to: Vec<u8>, first: u64, last: u64 },
    /// See [`Event::Held`].
    Held { to: Vec<u8>, seq: u64, code: u16, retry_after_ms: u32 },
    /// See [`Event::Refused`].
    Refused { to: Vec<u8>, seq: u64, code: u16 },
    /// See [`Event::Delivered`].
    Delivered { to: Vec<u8>, seq: u64 },
    /// See [`Event::Pong`].
    Pong { nonce: u64 },
    /// See [`Event::StartsOver`].
    StartsOver { cursor: u64 },
    /// See [`Event::Goaway`].
    Goaway { code: u16, reconnect_after_ms: u32 },
    /// See [`Event::Error`].
    Error { code: u16 },
}

/// A confirmed message: the highest number that is stored for a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The number.
    pub seq: u64,
    /// The message's id, where the server named this number itself.
    pub id: Option<MessageId>,
    /// The class it achieved.
    pub class: Class,
}

/// The server's word for a login it did not take. It is inside the error of
/// [`Client::connect`]: `error.get_ref()`, then `downcast_ref`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginRefused {
    /// Why, see [`Code`].
    pub code: u16,
    /// When to come back, milliseconds; 0 where the server gave no advice.
    pub retry_after_ms: u32,
}

impl fmt::Display for LoginRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LoginRefused { code, retry_after_ms } = self;
        write!(f, "the server refused the login: ")?;
        match Code::from_u16(*code) {
            Some(known) => write!(f, "{}", known.text())?,
            None => write!(f, "code {code}")?,
        }
        if *retry_after_ms > 0 { write!(f, " (in {retry_after_ms} ms)") } else { Ok(()) }
    }
}

impl std::error::Error for LoginRefused {}

/// A protocol v2 device on a blocking stream.
#[derive(Debug)]
pub struct Client {
    session: Session,
    stream: TcpStream,
    addr: SocketAddr,
    began: Instant,
    inbound: Inbound,
    put_off: u32,
}

#[derive(Debug, Default)]
struct Inbound {
    welcome: Option<Welcome>,
    deliveries: VecDeque<Delivery>,
    notices: VecDeque<Notice>,
    sent: BTreeMap<Vec<u8>, Sent>,
}

impl Client {
    /// Connects and logs in without a token.
    ///
    /// # Errors
    /// What the socket says; `PermissionDenied` with a [`LoginRefused`] inside
    /// when the server refuses the login, `TimedOut` when it takes longer than
    /// [`LOGIN_TIMEOUT`].
    pub fn connect(addr: impl ToSocketAddrs, user: &[u8], device: u64) -> io::Result<Client> {
        Client::connect_session(addr, Session::new(user, device, b""))
    }

    /// Connects with a session made (or kept from an earlier connection) by the
    /// caller. A server whose data is older than what the session has is asked
    /// again from the beginning, see [`Event::StartsOver`].
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_session(addr: impl ToSocketAddrs, session: Session) -> io::Result<Client> {
        let addr = first(addr)?;
        let stream = open(addr)?;
        let inbound = Inbound::default();
        let began = Instant::now();
        let mut client = Client { session, stream, addr, began, inbound, put_off: 0 };
        client.login()?;
        Ok(client)
    }

    /// As [`Client::connect`], and as often as it takes when the server cannot
    /// be reached or has too much to do: it comes back when the server says, or
    /// with growing pauses where it says nothing, see [`Backoff`]. What is
    /// refused for good comes back at once.
    ///
    /// # Errors
    /// What the last attempt met, when another one would end after `patience`.
    #[allow(clippy::disallowed_methods, reason = "the time is what was asked for")]
    pub fn connect_within(
        addr: impl ToSocketAddrs,
        user: &[u8],
        device: u64,
        patience: Duration,
    ) -> io::Result<Client> {
        let addr = first(addr)?;
        let end = Instant::now() + patience;
        let mut backoff = Backoff::new(user, device);
        loop {
            let error = match Client::connect(addr, user, device) {
                Ok(mut client) => {
                    client.put_off = backoff.attempts();
                    return Ok(client);
                }
                Err(error) => error,
            };
            let refused = refusal_in(&error);
            if refused.is_some_and(|refused| is_final(refused.code)) {
                return Err(error);
            }
            let advice_ms = refused.map_or(0, |refused| refused.retry_after_ms);
            let wait = Duration::from_millis(backoff.wait_ms(advice_ms));
            if Instant::now() + wait >= end {
                return Err(error);
            }
            thread::sleep(wait);
        }
    }

    /// How often [`Client::connect_within`] was put off or failed before this
    /// connection.
    pub fn put_off(&self) -> u32 {
        self.put_off
    }

    /// Drops the connection without a word and logs in again on a new one,
    /// to `addr` if given: the session repeats what was not confirmed.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn reconnect(&mut self, addr: Option<SocketAddr>) -> io::Result<()> {
        self.addr = addr.unwrap_or(self.addr);
        self.session.disconnected();
        self.stream = open(self.addr)?;
        self.login()
    }

    /// A server that has older data than this device is asked once more, from
    /// the beginning ([`Notice::StartsOver`]).
    fn login(&mut self) -> io::Result<()> {
        let refused = match self.try_login() {
            Err(error) if is_refused_for(&error, Code::BadCursor) => error,
            other => return other,
        };
        self.stream = open(self.addr).map_err(|_| refused)?;
        self.try_login()
    }

    fn try_login(&mut self) -> io::Result<()> {
        let hello = self.session.connect();
        let earlier = self.inbound.notices.len();
        self.stream.write_all(&hello)?;
        let welcomed = self.pump_until(LOGIN_TIMEOUT, |client| {
            client.session.is_online() || client.refusal(earlier).is_some()
        });
        if self.session.is_online() {
            return Ok(());
        }
        match self.refusal(earlier) {
            Some(refused) => Err(io::Error::new(ErrorKind::PermissionDenied, refused)),
            None => welcomed.and(Err(io::Error::new(ErrorKind::TimedOut, "no WELCOME in time"))),
        }
    }

    /// A refusal after the first `earlier` notices.
    fn refusal(&self, earlier: usize) -> Option<LoginRefused> {
        self.inbound.notices.iter().skip(earlier).find_map(|notice| match notice {
            Notice::Goaway { code, reconnect_after_ms } => {
                Some(LoginRefused { code: *code, retry_after_ms: *reconnect_after_ms })
            }
            _ => None,
        })
    }

    /// The WELCOME of the present connection.
    ///
    /// # Panics
    /// Never: a client exists only after its WELCOME.
    pub fn welcome(&self) -> Welcome {
        self.inbound.welcome.expect("a client is logged in")
    }

    /// Sends a message; gives its number.
    ///
    /// # Errors
    /// `InvalidInput` for a bad name or body, `WouldBlock` when the outbox is
    /// full, otherwise what the socket says.
    pub fn send(&mut self, to: &[u8], body: &[u8], class: Class) -> io::Result<u64> {
        let seq = self.session.send(to, body, class).map_err(|error| match error {
            SendError::Full => io::Error::new(ErrorKind::WouldBlock, "the outbox is full"),
            SendError::TooLarge => io::Error::new(ErrorKind::InvalidInput, "the body is too large"),
            SendError::BadName => io::Error::new(ErrorKind::InvalidInput, "not a name"),
        })?;
        self.flush()?;
        Ok(seq)
    }

    /// Waits until the server has confirmed `seq` to that recipient.
    ///
    /// # Errors
    /// `TimedOut`, `UnexpectedEof` when the server closed, or what the socket
    /// says.
    pub fn wait_sent(&mut self, to: &[u8], seq: u64, timeout: Duration) -> io::Result<Sent> {
        let sent = |client: &Client| client.inbound.sent.get(to).copied().filter(|s| s.seq >= seq);
        self.pump_until(timeout, |client| sent(client).is_some())?;
        sent(self).ok_or_else(|| timed_out("SENT"))
    }

    /// Sends a message of class guaranteed and waits until it is stored.
    ///
    /// # Errors
    /// As [`Client::send`] and [`Client::wait_sent`].
    pub fn send_and_wait(&mut self, to: &[u8], body: &[u8], timeout: Duration) -> io::Result<Sent> {
        let seq = self.send(to, body, Class::Guaranteed)?;
        self.wait_sent(to, seq, timeout)
    }

    /// The next message, or `None` when none comes in time. It is not
    /// acknowledged by this.
    ///
    /// # Errors
    /// `UnexpectedEof` when the server closed, or what the socket says.
    pub fn next_delivery(&mut self, timeout: Duration) -> io::Result<Option<Delivery>> {
        self.pump_until(timeout, |client| !client.inbound.deliveries.is_empty())?;
        Ok(self.inbound.deliveries.pop_front())
    }

    /// The next answer that is neither a delivery nor a SENT, or `None` when
    /// none comes in time.
    ///
    /// # Errors
    /// As [`Client::next_delivery`].
    pub fn next_notice(&mut self, timeout: Duration) -> io::Result<Option<Notice>> {
        self.pump_until(timeout, |client| !client.inbound.notices.is_empty())?;
        Ok(self.inbound.notices.pop_front())
    }

    /// Acknowledges everything up to and including `inbox_seq`.
    ///
    /// # Errors
    /// What the socket says.
    pub fn ack(&mut self, inbox_seq: u64) -> io::Result<()> {
        self.session.ack(inbox_seq);
        self.flush()
    }

    /// Changes the delivery window.
    ///
    /// # Errors
    /// What the socket says.
    pub fn credit(&mut self, window: u32) -> io::Result<()> {
        self.session.credit(window);
        self.flush()
    }

    /// Asks for a PONG and waits for it: everything sent before has then been
    /// read by the server.
    ///
    /// # Errors
    /// `TimedOut`, or as [`Client::next_delivery`].
    pub fn ping(&mut self, nonce: u64, timeout: Duration) -> io::Result<()> {
        self.session.ping(nonce);
        self.flush()?;
        let pong = Notice::Pong { nonce };
        self.pump_until(timeout, |client| client.inbound.notices.contains(&pong))?;
        let Some(at) = self.inbound.notices.iter().position(|notice| *notice == pong) else {
            return Err(timed_out("PONG"));
        };
        self.inbound.notices.remove(at);
        Ok(())
    }

    /// The stream, to misbehave on or to set options.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// The session behind the stream.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Ends the connection and keeps the session for another one.
    pub fn into_session(mut self) -> Session {
        self.session.disconnected();
        self.session
    }

    /// Reads and writes until `done` or the time is over.
    fn pump_until(&mut self, timeout: Duration, done: impl Fn(&Client) -> bool) -> io::Result<()> {
        let end = Instant::now() + timeout;
        self.flush()?;
        while !done(self) {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            let now_ms = self.now_ms();
            self.session.tick(now_ms);
            self.flush()?;
            let tick = self.session.deadline_ms().map(|deadline| deadline.saturating_sub(now_ms));
            let wait = tick.map_or(end - now, |ms| Duration::from_millis(ms.max(1)).min(end - now));
            self.read_once(wait)?;
            self.flush()?;
        }
        Ok(())
    }

    fn read_once(&mut self, wait: Duration) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        let Some(n) = read_some(&mut self.stream, &mut chunk, wait)? else { return Ok(()) };
        let now_ms = self.now_ms();
        let inbound = &mut self.inbound;
        self.session
            .receive(now_ms, &chunk[..n], |event| inbound.take(event))
            .map_err(|_| io::Error::new(ErrorKind::InvalidData, "not the bytes of a server"))
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.session.has_output() {
            return Ok(());
        }
        let mut out = Vec::new();
        self.session.take_output(&mut out);
        self.stream.write_all(&out)
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }
}

impl Inbound {
    fn take(&mut self, event: Event<'_>) {
        let notice = match event {
            Event::Welcome(welcome) => return self.welcome = Some(welcome),
            Event::Sent { to, seq, id, class, body: _ } => {
                self.sent.insert(to.to_vec(), Sent { seq, id, class });
                return;
            }
            Event::Deliver { deliver, again } => {
                return self.deliveries.push_back(Delivery {
                    inbox_seq: deliver.inbox_seq,
                    id: deliver.id,
                    from: deliver.from.to_vec(),
                    from_device: deliver.from_device,
                    send_seq: deliver.send_seq,
                    time_ms: deliver.time_ms,
                    again,
                    body: deliver.body.to_vec(),
                });
            }
            Event::Gap { to, expected } => Notice::Gap { to: to.to_vec(), expected },
            Event::Lost { to, first, last } => Notice::Lost { to: to.to_vec(), first, last },
            Event::Forgotten { to, first, last } => {
                Notice::Forgotten { to: to.to_vec(), first, last }
            }
            Event::Held { to, seq, code, retry_after_ms } => {
                Notice::Held { to: to.to_vec(), seq, code, retry_after_ms }
            }
            Event::Refused { to, seq, code, body: _ } => {
                Notice::Refused { to: to.to_vec(), seq, code }
            }
            Event::Delivered { to, seq, id: _ } => Notice::Delivered { to: to.to_vec(), seq },
            Event::Pong { nonce } => Notice::Pong { nonce },
            Event::StartsOver { cursor } => {
                // They come again, under other numbers.
                self.deliveries.clear();
                Notice::StartsOver { cursor }
            }
            Event::Goaway { code, reconnect_after_ms, text: _ } => {
                Notice::Goaway { code, reconnect_after_ms }
            }
            Event::Error { code, text: _ } => Notice::Error { code },
        };
        self.notices.push_back(notice);
    }
}

/// The server's word inside an error of a login.
fn refusal_in(error: &io::Error) -> Option<&LoginRefused> {
    error.get_ref()?.downcast_ref()
}

fn is_refused_for(error: &io::Error, code: Code) -> bool {
    refusal_in(error).is_some_and(|refused| refused.code == code as u16)
}

fn first(addr: impl ToSocketAddrs) -> io::Result<SocketAddr> {
    addr.to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "the address names no host"))
}

fn open(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, LOGIN_TIMEOUT)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    Ok(stream)
}

/// Some bytes, or `None` when none came in time; a closed stream is an error.
fn read_some(
    stream: &mut TcpStream,
    chunk: &mut [u8],
    wait: Duration,
) -> io::Result<Option<usize>> {
    // Zero would mean "for ever".
    stream.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
    match stream.read(chunk) {
        Ok(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "the server closed the connection")),
        Ok(n) => Ok(Some(n)),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn timed_out(what: &str) -> io::Error {
    io::Error::new(ErrorKind::TimedOut, format!("no {what} in time"))
}
