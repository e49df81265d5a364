//! One user's session in protocol v1, without I/O and without a clock.
//!
//! Protocol v1 confirms nothing: what was sent may be lost with the
//! connection, and this session does not pretend otherwise. It only frames,
//! reads, and acknowledges.

use wire::id::MessageId;
use wire::limits::V1_PACKET_BYTES_MAX;
use wire::v1::{self, Answer, Packet};

pub use crate::session::Broken;

/// What the server told. Borrows from the bytes given to [`Session::receive`].
pub type Event<'a> = Answer<'a>;

/// See the module.
#[derive(Debug)]
pub struct Session {
    user: Box<[u8]>,
    token: Option<Box<[u8]>>,
    online: bool,
    auto_ack: bool,
    out: Vec<u8>,
    partial: Vec<u8>,
}

impl Session {
    /// A session that has never been connected.
    pub fn new(user: &[u8], token: Option<&[u8]>) -> Session {
        Session {
            user: user.into(),
            token: token.map(Into::into),
            online: false,
            auto_ack: false,
            out: Vec::new(),
            partial: Vec::new(),
        }
    }

    /// The user's name.
    pub fn user(&self) -> &[u8] {
        &self.user
    }

    /// With auto-acknowledge on, [`Session::receive`] acknowledges every
    /// delivery it tells.
    pub fn set_auto_ack(&mut self, on: bool) {
        self.auto_ack = on;
    }

    /// Whether LOGIN_OK came on the present connection.
    pub fn is_online(&self) -> bool {
        self.online
    }

    /// Starts a new connection and gives its first bytes: LOGIN. Nothing else
    /// may be written before LOGIN_OK, because LOGIN has no length.
    pub fn connect(&mut self) -> Vec<u8> {
        self.disconnected();
        let mut out = Vec::new();
        v1::put_packet(&mut out, &Packet::Login { user: &self.user, token: self.token.as_deref() });
        out
    }

    /// The connection ended; what was not written is dropped.
    pub fn disconnected(&mut self) {
        self.online = false;
        self.out = Vec::new();
        self.partial = Vec::new();
    }

    /// Sends a message; the server says nothing about it.
    ///
    /// # Panics
    /// When the target or the body is longer than 65,535 bytes.
    pub fn send(&mut self, target: &[u8], body: &[u8]) {
        self.put(&Packet::Send { target, body });
    }

    /// Sends a message that the server stores at most once and in order of
    /// `seq` among this user's messages to that target.
    ///
    /// # Panics
    /// When the target or the body is longer than 65,535 bytes.
    pub fn send_seq(&mut self, target: &[u8], seq: u64, body: &[u8]) {
        self.put(&Packet::SendSeq { target, seq, body });
    }

    /// Acknowledges one delivery.
    pub fn ack(&mut self, id: MessageId) {
        self.put(&Packet::Ack { id });
    }

    /// Asks whether a user is online.
    pub fn status(&mut self, user: &[u8]) {
        self.put(&Packet::GetStatus { user });
    }

    /// Writes any packet.
    ///
    /// # Panics
    /// When a field is longer than its length can say.
    pub fn put(&mut self, packet: &Packet<'_>) {
        v1::put_packet(&mut self.out, packet);
    }

    /// Whether there are bytes for the wire.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Appends the bytes for the wire to `out`.
    pub fn take_output(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.out);
        if self.out.capacity() > 4096 {
            self.out = Vec::new();
        } else {
            self.out.clear();
        }
    }

    /// Takes bytes from the wire, split anywhere, and tells what they say.
    ///
    /// # Errors
    /// When the bytes are not those of a server; the connection must be closed.
    pub fn receive(&mut self, bytes: &[u8], mut on: impl FnMut(Event<'_>)) -> Result<(), Broken> {
        if self.partial.is_empty() {
            let used = self.packets(bytes, &mut on)?;
            self.partial.extend_from_slice(&bytes[used..]);
        } else {
            let mut joined = std::mem::take(&mut self.partial);
            joined.extend_from_slice(bytes);
            let used = self.packets(&joined, &mut on)?;
            if used < joined.len() {
                joined.drain(..used);
                self.partial = joined;
            }
        }
        // No packet of the server is longer than the longest of a client.
        if self.partial.len() > V1_PACKET_BYTES_MAX { Err(Broken) } else { Ok(()) }
    }

    fn packets(&mut self, bytes: &[u8], on: &mut impl FnMut(Event<'_>)) -> Result<usize, Broken> {
        let mut used = 0;
        while let Some((answer, len)) = v1::decode_answer(&bytes[used..]).map_err(|()| Broken)? {
            used += len;
            match answer {
                Answer::LoginOk => self.online = true,
                Answer::Deliver { id, .. } if self.auto_ack => self.ack(id),
                _ => {}
            }
            on(answer);
        }
        Ok(used)
    }
}
