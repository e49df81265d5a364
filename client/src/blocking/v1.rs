//! A protocol v1 user on a blocking stream.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use wire::id::MessageId;
use wire::v1::Answer;

use super::{Delivery, LOGIN_TIMEOUT, first, open, read_some, timed_out};
use crate::v1;

/// A protocol v1 user on a blocking stream.
#[derive(Debug)]
pub struct ClientV1 {
    session: v1::Session,
    stream: TcpStream,
    deliveries: VecDeque<Delivery>,
    statuses: VecDeque<Status>,
    refusals: VecDeque<RefusalV1>,
}

/// The answer to a status question of protocol v1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Who was asked for.
    pub user: Vec<u8>,
    /// Whether that user is logged in.
    pub online: bool,
    /// Unix seconds; 0 while online or never seen.
    pub last_seen_s: u64,
}

/// What a v1 server says instead of taking something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefusalV1 {
    /// ASCII `AUTH_FAILED`.
    AuthFailed,
    /// ASCII `RATE_LIMITED`, in place of LOGIN_OK.
    LoginRateLimited,
    /// `FF`: wait that many milliseconds.
    RateLimited(u32),
    /// `FE` with its text.
    Error(Vec<u8>),
}

impl ClientV1 {
    /// Connects and logs in.
    ///
    /// # Errors
    /// As [`super::Client::connect`].
    pub fn connect(addr: impl ToSocketAddrs, user: &[u8]) -> io::Result<ClientV1> {
        let mut client = ClientV1::open(addr, user, None)?;
        let login = client.session.connect();
        client.stream.write_all(&login)?;
        client.pump_until(LOGIN_TIMEOUT, |client| {
            client.session.is_online() || !client.refusals.is_empty()
        })?;
        if client.session.is_online() {
            return Ok(client);
        }
        Err(match client.refusals.front() {
            Some(refusal) => {
                let text = format!("the server refused the login: {refusal:?}");
                io::Error::new(ErrorKind::PermissionDenied, text)
            }
            None => timed_out("LOGIN_OK"),
        })
    }

    /// Connects without logging in.
    ///
    /// # Errors
    /// What the socket says.
    pub fn open(
        addr: impl ToSocketAddrs,
        user: &[u8],
        token: Option<&[u8]>,
    ) -> io::Result<ClientV1> {
        Ok(ClientV1 {
            session: v1::Session::new(user, token),
            stream: open(first(addr)?)?,
            deliveries: VecDeque::new(),
            statuses: VecDeque::new(),
            refusals: VecDeque::new(),
        })
    }

    /// Sends a message; v1 servers do not answer.
    ///
    /// # Errors
    /// What the socket says.
    pub fn send(&mut self, target: &[u8], body: &[u8]) -> io::Result<()> {
        self.session.send(target, body);
        self.flush()
    }

    /// Sends a numbered message.
    ///
    /// # Errors
    /// What the socket says.
    pub fn send_seq(&mut self, target: &[u8], seq: u64, body: &[u8]) -> io::Result<()> {
        self.session.send_seq(target, seq, body);
        self.flush()
    }

    /// Acknowledges one delivery.
    ///
    /// # Errors
    /// What the socket says.
    pub fn ack(&mut self, id: MessageId) -> io::Result<()> {
        self.session.ack(id);
        self.flush()
    }

    /// The next message, or `None` when none comes in time.
    ///
    /// # Errors
    /// `UnexpectedEof` when the server closed, or what the socket says.
    pub fn next_delivery(&mut self, timeout: Duration) -> io::Result<Option<Delivery>> {
        self.pump_until(timeout, |client| !client.deliveries.is_empty())?;
        Ok(self.deliveries.pop_front())
    }

    /// Asks for a user's status and waits for the answer: everything sent
    /// before has then been read by the server.
    ///
    /// # Errors
    /// `TimedOut`, or as [`ClientV1::next_delivery`].
    pub fn status(&mut self, user: &[u8], timeout: Duration) -> io::Result<Status> {
        self.session.status(user);
        self.flush()?;
        self.pump_until(timeout, |client| !client.statuses.is_empty())?;
        self.statuses.pop_front().ok_or_else(|| timed_out("status"))
    }

    /// The next refusal, or `None` when none comes in time.
    ///
    /// # Errors
    /// As [`ClientV1::next_delivery`].
    pub fn next_refusal(&mut self, timeout: Duration) -> io::Result<Option<RefusalV1>> {
        self.pump_until(timeout, |client| !client.refusals.is_empty())?;
        Ok(self.refusals.pop_front())
    }

    /// The stream, to misbehave on or to set options.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// The session behind the stream.
    pub fn session(&mut self) -> &mut v1::Session {
        &mut self.session
    }

    fn pump_until(
        &mut self,
        timeout: Duration,
        done: impl Fn(&ClientV1) -> bool,
    ) -> io::Result<()> {
        let end = Instant::now() + timeout;
        self.flush()?;
        while !done(self) {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            self.read_once(end - now)?;
            self.flush()?;
        }
        Ok(())
    }

    fn read_once(&mut self, wait: Duration) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        let Some(n) = read_some(&mut self.stream, &mut chunk, wait)? else { return Ok(()) };
        let (deliveries, statuses, refusals) =
            (&mut self.deliveries, &mut self.statuses, &mut self.refusals);
        self.session
            .receive(&chunk[..n], |event| match event {
                Answer::Deliver { id, body } => deliveries.push_back(Delivery {
                    inbox_seq: 0,
                    id,
                    from: Vec::new(),
                    from_device: 0,
                    send_seq: 0,
                    time_ms: 0,
                    again: false,
                    body: body.to_vec(),
                }),
                Answer::Status { user, online, last_seen_s } => {
                    statuses.push_back(Status { user: user.to_vec(), online, last_seen_s });
                }
                Answer::AuthFailed => refusals.push_back(RefusalV1::AuthFailed),
                Answer::LoginRateLimited => refusals.push_back(RefusalV1::LoginRateLimited),
                Answer::RateLimited { wait_ms } => {
                    refusals.push_back(RefusalV1::RateLimited(wait_ms));
                }
                Answer::Error { text } => refusals.push_back(RefusalV1::Error(text.to_vec())),
                Answer::LoginOk | Answer::Prekeys { .. } => {}
            })
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
}
