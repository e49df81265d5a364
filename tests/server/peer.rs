//! A raw socket that says exactly the bytes it is given and reads what comes
//! back packet by packet, for clients that are not ours and for bad ones.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Instant;

use wire::id::{Class, MessageId};
use wire::v1::{self, Answer, Packet};
use wire::v2::{self, Hello, Reply, Request};

use super::PATIENCE;

/// A connection without a protocol.
pub struct Peer {
    stream: TcpStream,
    /// Read and not yet looked at.
    unread: Vec<u8>,
}

/// One packet of a v1 server, whole.
#[derive(Clone, PartialEq, Eq)]
pub struct AnswerBytes(Vec<u8>);

impl AnswerBytes {
    /// What it says.
    pub fn get(&self) -> Answer<'_> {
        v1::decode_answer(&self.0).expect("it was decoded before").expect("whole").0
    }
}

impl std::fmt::Debug for AnswerBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.get().fmt(f)
    }
}

/// One frame of a v2 server, whole.
#[derive(Clone, PartialEq, Eq)]
pub struct ReplyBytes(Vec<u8>);

impl ReplyBytes {
    /// What it says.
    pub fn get(&self) -> Reply<'_> {
        v2::decode_reply(&self.0).expect("it was decoded before").expect("whole").0
    }
}

impl std::fmt::Debug for ReplyBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.get().fmt(f)
    }
}

impl Peer {
    /// Connects and says nothing.
    #[track_caller]
    pub fn connect(addr: SocketAddr) -> Peer {
        let stream = TcpStream::connect_timeout(&addr, PATIENCE).expect("the server listens");
        stream.set_nodelay(true).expect("a socket option");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket option");
        Peer { stream, unread: Vec::new() }
    }

    /// Connects and logs in with v1.
    #[track_caller]
    pub fn v1(addr: SocketAddr, user: &str) -> Peer {
        let mut peer = Peer::connect(addr);
        peer.write(&[b"\x01", user.as_bytes()].concat());
        peer.expect(v1::LOGIN_OK);
        peer
    }

    /// Connects and logs in with v2; WELCOME is read and given back.
    #[track_caller]
    pub fn v2(addr: SocketAddr, hello: &Hello<'_>) -> (Peer, v2::Welcome) {
        let mut peer = Peer::connect(addr);
        peer.write(v2::PREFACE);
        peer.request(&Request::Hello(*hello));
        let reply = peer.reply();
        let Reply::Welcome(welcome) = reply.get() else { panic!("{reply:?} is no WELCOME") };
        (peer, welcome)
    }

    /// Writes these bytes at once.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    /// Writes until the server takes no more or has closed; whether all went.
    pub fn try_write(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Writes one byte after the other, each as a segment of its own.
    #[track_caller]
    pub fn drip(&mut self, bytes: &[u8]) {
        bytes.chunks(1).for_each(|byte| self.write(byte));
    }

    /// Writes a v1 packet.
    #[track_caller]
    pub fn packet(&mut self, packet: &Packet<'_>) {
        let mut bytes = Vec::new();
        v1::put_packet(&mut bytes, packet);
        self.write(&bytes);
    }

    /// Writes a v2 frame.
    #[track_caller]
    pub fn request(&mut self, request: &Request<'_>) {
        let mut bytes = Vec::new();
        v2::put_request(&mut bytes, request);
        self.write(&bytes);
    }

    /// v2: a guaranteed SEND without flags.
    #[track_caller]
    pub fn send_v2(&mut self, to: &str, seq: u64, body: &[u8]) {
        self.request(&Request::Send(send(to, seq, body)));
    }

    /// Expects exactly these bytes next.
    #[track_caller]
    pub fn expect(&mut self, bytes: &[u8]) {
        while self.unread.len() < bytes.len() {
            assert!(
                bytes.starts_with(&self.unread) && self.read_more(),
                "instead of {} came {}",
                text(bytes),
                text(&self.unread)
            );
        }
        assert!(self.unread.starts_with(bytes), "not {} but {}", text(bytes), text(&self.unread));
        self.unread.drain(..bytes.len());
    }

    /// The next bytes, whatever they are.
    #[track_caller]
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        while self.unread.len() < count {
            assert!(self.read_more(), "closed before {count} bytes; left {}", text(&self.unread));
        }
        self.unread.drain(..count).collect()
    }

    /// The next packet of a v1 server.
    #[track_caller]
    pub fn answer(&mut self) -> AnswerBytes {
        loop {
            let decoded = v1::decode_answer(&self.unread);
            let decoded = decoded.unwrap_or_else(|()| panic!("not v1: {}", text(&self.unread)));
            if let Some((_, len)) = decoded {
                return AnswerBytes(self.unread.drain(..len).collect());
            }
            assert!(self.read_more(), "closed in place of an answer; left {}", text(&self.unread));
        }
    }

    /// The next packet, which is a message.
    #[track_caller]
    pub fn delivery(&mut self) -> (MessageId, Vec<u8>) {
        let answer = self.answer();
        match answer.get() {
            Answer::Deliver { id, body } => (id, body.to_vec()),
            other => panic!("{other:?} is no message"),
        }
    }

    /// Expects that the next packet is this message; gives its id.
    #[track_caller]
    pub fn expect_message(&mut self, body: &[u8]) -> MessageId {
        let (id, found) = self.delivery();
        assert_eq!(text(&found), text(body));
        id
    }

    /// v1: expects that nothing has come and nothing is on its way, by asking
    /// for something that is answered at once.
    #[track_caller]
    pub fn expect_quiet_v1(&mut self) {
        self.packet(&Packet::GetStatus { user: b"nobody at all" });
        let answer = self.answer();
        assert!(matches!(answer.get(), Answer::Status { .. }), "{answer:?} came unasked");
    }

    /// v1: the status of a user: online, last seen.
    #[track_caller]
    pub fn status(&mut self, user: &str) -> (bool, u64) {
        self.packet(&Packet::GetStatus { user: user.as_bytes() });
        let answer = self.answer();
        match answer.get() {
            Answer::Status { user: told, online, last_seen_s } => {
                assert_eq!(told, user.as_bytes());
                (online, last_seen_s)
            }
            other => panic!("{other:?} is no status"),
        }
    }

    /// The next frame of a v2 server.
    #[track_caller]
    pub fn reply(&mut self) -> ReplyBytes {
        loop {
            match v2::decode_reply(&self.unread) {
                Ok(Some((_, len))) => return ReplyBytes(self.unread.drain(..len).collect()),
                Ok(None) => {}
                Err(wrong) => panic!("{wrong:?}: {}", text(&self.unread)),
            }
            assert!(self.read_more(), "closed in place of a reply; left {}", text(&self.unread));
        }
    }

    /// v2: expects SENT for this number.
    #[track_caller]
    pub fn expect_sent(&mut self, seq: u64) -> MessageId {
        let reply = self.reply();
        match reply.get() {
            Reply::Sent { seq: told, id, .. } if told == seq => id,
            other => panic!("{other:?} is not SENT {seq}"),
        }
    }

    /// v2: expects this message next; gives its inbox seq.
    #[track_caller]
    pub fn expect_deliver(&mut self, body: &[u8]) -> u64 {
        let reply = self.reply();
        match reply.get() {
            Reply::Deliver(deliver) => {
                assert_eq!(text(deliver.body), text(body));
                deliver.inbox_seq
            }
            other => panic!("{other:?} is not DELIVER {}", text(body)),
        }
    }

    /// v2: expects that nothing has come and nothing is on its way.
    #[track_caller]
    pub fn expect_quiet_v2(&mut self, nonce: u64) {
        self.request(&Request::Ping { nonce });
        let reply = self.reply();
        assert_eq!(reply.get(), Reply::Pong { nonce }, "came unasked");
    }

    /// v2: expects GOAWAY with this code and then the end.
    #[track_caller]
    pub fn expect_goaway(&mut self, code: wire::refuse::Code) {
        let reply = self.reply();
        match reply.get() {
            Reply::Goaway { code: told, .. } if told == code as u16 => {}
            other => panic!("{other:?} is not GOAWAY {code:?}"),
        }
        self.expect_closed();
    }

    /// Expects the end of the connection and nothing before it.
    #[track_caller]
    pub fn expect_closed(&mut self) {
        let rest = self.read_to_end();
        assert!(rest.is_empty(), "before the end came {}", text(&rest));
    }

    /// Whether the server has closed, without waiting for it.
    #[track_caller]
    pub fn has_ended(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("a socket option");
        let mut chunk = [0; 16 * 1024];
        let read = self.stream.read(&mut chunk);
        self.stream.set_nonblocking(false).expect("a socket option");
        match read {
            Ok(0) => true,
            Ok(n) => {
                self.unread.extend_from_slice(&chunk[..n]);
                false
            }
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        }
    }

    /// Everything until the server closes.
    #[track_caller]
    pub fn read_to_end(&mut self) -> Vec<u8> {
        while self.read_more() {}
        std::mem::take(&mut self.unread)
    }

    /// Says that nothing more comes from here.
    pub fn finish_writing(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The socket.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Reads once; `false` at the end.
    #[track_caller]
    fn read_more(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        let began = Instant::now();
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(n) => {
                self.unread.extend_from_slice(&chunk[..n]);
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset) => false,
            Err(error) => {
                panic!("nothing in {:?} ({error}); unread {}", began.elapsed(), text(&self.unread))
            }
        }
    }
}

/// A HELLO as most tests want it.
pub fn hello(user: &str, device: u64) -> Hello<'_> {
    Hello {
        version_min: 1,
        version_max: 1,
        capabilities: 0,
        device,
        last_seq: 0,
        credit: 256,
        user: user.as_bytes(),
        token: b"",
    }
}

/// A SEND as most tests want it: guaranteed, no flags, no expiry.
pub fn send<'a>(to: &'a str, seq: u64, body: &'a [u8]) -> v2::Send<'a> {
    v2::Send { seq, class: Class::Guaranteed, flags: 0, expiry_s: 0, to: to.as_bytes(), body }
}

/// Bytes for a message about them: long ones are cut.
pub fn text(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(80)];
    format!("{} ({} bytes)", cut.escape_ascii(), bytes.len())
}
