//! A tiny server of protocols v1 and v2 in threads: correct, or wrong in one
//! chosen way. It is the load generator's own test, not a server.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use wire::id::{Class, MessageId};
use wire::refuse::Code;
use wire::v1;
use wire::v2::{self, Deliver, Reply, Request, Welcome, flag};

/// What is wrong with the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Confirms a message and never delivers it.
    Lose,
    /// Delivers a message twice.
    Duplicate,
    /// Delivers a message after the next one of its sender.
    Reorder,
    /// Changes a byte.
    Corrupt,
    /// Delivers to the wrong user.
    Misdeliver,
    /// Never confirms a message.
    Swallow,
    /// Refuses a message for good.
    Refuse,
    /// Is busy now and then, which is allowed.
    Busy,
    /// Closes every connection once, which is allowed with `--reconnect`.
    Cut,
    /// Closes every connection once, and has forgotten the latest message of
    /// each sender.
    Forget,
    /// Refuses every login.
    Closed,
    /// Stands still from the faulty message on until it is told to go on.
    Pause,
}

/// Which message the fault hits.
const FAULTY: u64 = 100;

#[derive(Default)]
struct State {
    users: HashMap<Vec<u8>, User>,
    /// Messages accepted so far.
    accepted: u64,
    tried: u64,
    held: Option<(Vec<u8>, Entry)>,
    /// Sender and recipient of messages that get no answer any more: the
    /// answers are cumulative.
    muted: Option<(Vec<u8>, Vec<u8>)>,
    fault_done: bool,
    /// What ends the pause.
    resume: Option<Receiver<()>>,
}

#[derive(Default)]
struct User {
    inbox: Vec<Entry>,
    /// Deliveries on the present connection.
    delivered: usize,
    acked: usize,
    /// Highest number by sender.
    last: HashMap<Vec<u8>, u64>,
    line: Option<Line>,
}

struct Line {
    stream: TcpStream,
    v1: bool,
}

#[derive(Clone)]
struct Entry {
    from: Vec<u8>,
    seq: u64,
    body: Vec<u8>,
}

/// Starts a server on a free port; it lives as long as the test.
pub(crate) fn start(fault: Fault) -> SocketAddr {
    serve_all(fault, State::default())
}

/// Starts a server that pauses once, until something is sent to it.
pub(crate) fn start_pausing() -> (SocketAddr, Sender<()>) {
    let (sender, resume) = channel();
    (serve_all(Fault::Pause, State { resume: Some(resume), ..State::default() }), sender)
}

fn serve_all(fault: Fault, state: State) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    let state = Arc::new(Mutex::new(state));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = Arc::clone(&state);
            std::thread::spawn(move || serve(stream, &state, fault));
        }
    });
    addr
}

/// What a relay does with what it reads.
type Forward = fn(TcpStream, TcpStream) -> std::io::Result<()>;

/// Starts a relay: connections that name the same pair are joined.
pub(crate) fn start_relay() -> SocketAddr {
    relay(|mut from, mut to| std::io::copy(&mut from, &mut to).map(|_| ()))
}

/// Starts one that sends messages of 64 bytes back to their sender, too, and
/// keeps what tells of an arrival.
pub(crate) fn start_answering_relay() -> SocketAddr {
    relay(|mut from, mut to| {
        let mut message = [0; 64];
        loop {
            from.read_exact(&mut message)?;
            if message[0] != 0 {
                to.write_all(&message)?;
                from.write_all(&message)?;
            }
        }
    })
}

fn relay(forward: Forward) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let mut waiting: HashMap<[u8; 8], TcpStream> = HashMap::new();
        for mut stream in listener.incoming().flatten() {
            let mut pair = [0; 8];
            if stream.read_exact(&mut pair).is_err() {
                continue;
            }
            let Some(partner) = waiting.remove(&pair) else {
                waiting.insert(pair, stream);
                continue;
            };
            for (from, to) in [(&stream, &partner), (&partner, &stream)] {
                let from = from.try_clone().expect("a descriptor");
                let to = to.try_clone().expect("a descriptor");
                std::thread::spawn(move || forward(from, to));
            }
        }
    });
    addr
}

fn serve(mut stream: TcpStream, state: &Mutex<State>, fault: Fault) {
    let mut buffer = Vec::new();
    let mut chunk = [0; 16 * 1024];
    let mut user = Vec::new();
    let mut preface = false;
    stream.set_nodelay(true).expect("a socket");
    loop {
        let n = match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        buffer.extend_from_slice(&chunk[..n]);
        let mut used = 0;
        if !preface && buffer[0] == b'I' {
            if buffer.len() < 4 {
                continue;
            }
            preface = true;
            used = 4;
        }
        let v2 = preface;
        let mut state = state.lock().expect("no server thread panics");
        loop {
            let bytes = &buffer[used..];
            used += if v2 {
                let Ok(Some((request, len))) = v2::decode_request(bytes) else { break };
                state.request(&stream, &mut user, request, fault);
                len
            } else {
                if bytes.is_empty() {
                    break;
                }
                let v1::Decoded::Packet(packet, len) = v1::decode(bytes) else { break };
                state.packet(&stream, &mut user, packet, fault);
                len
            };
        }
        buffer.drain(..used);
        state.deliver();
        let cuts = matches!(fault, Fault::Cut | Fault::Forget);
        if cuts && !state.fault_done && state.accepted >= FAULTY {
            state.fault_done = true;
            state.cut(fault);
        }
        // The lock is held meanwhile: every connection stands still.
        if state.accepted >= FAULTY
            && let Some(resume) = state.resume.take()
        {
            resume.recv().expect("the test lets it go on");
        }
    }
}

impl State {
    fn request(
        &mut self,
        stream: &TcpStream,
        user: &mut Vec<u8>,
        request: Request<'_>,
        fault: Fault,
    ) {
        match request {
            Request::Hello(hello) => {
                if fault == Fault::Closed {
                    let mut out = Vec::new();
                    v2::put_goaway(&mut out, Code::AuthFailed, 0);
                    write(stream, &out);
                    stream.shutdown(Shutdown::Both).expect("a socket");
                    return;
                }
                *user = hello.user.to_vec();
                self.login(stream, user, hello.last_seq as usize, false);
                let mut out = Vec::new();
                v2::put_reply(&mut out, &welcome());
                write(stream, &out);
            }
            Request::Send(send) => {
                let reply = self.send(user, &send, fault);
                if let Some(reply) = reply {
                    let mut out = Vec::new();
                    v2::put_reply(&mut out, &reply);
                    write(stream, &out);
                }
            }
            Request::Ack { seq } => {
                self.users.get_mut(user).expect("logged in").acked = seq as usize;
            }
            Request::Credit { .. } | Request::Ping { .. } => {}
        }
    }

    fn packet(
        &mut self,
        stream: &TcpStream,
        user: &mut Vec<u8>,
        packet: v1::Packet<'_>,
        fault: Fault,
    ) {
        match packet {
            v1::Packet::Login { user: name, .. } => {
                *user = name.to_vec();
                let acked = self.users.get(name).map_or(0, |user| user.acked);
                self.login(stream, user, acked, true);
                write(stream, v1::LOGIN_OK);
            }
            v1::Packet::SendSeq { target, seq, body } => {
                let send = v2::Send {
                    seq,
                    class: Class::Guaranteed,
                    flags: 0,
                    expiry_s: 0,
                    to: target,
                    body,
                };
                self.send(user, &send, fault);
            }
            // In order, because this server delivers in order.
            v1::Packet::Ack { .. } => {
                self.users.get_mut(user).expect("logged in").acked += 1;
            }
            _ => {}
        }
    }

    fn login(&mut self, stream: &TcpStream, user: &[u8], delivered: usize, v1: bool) {
        let user = self.users.entry(user.to_vec()).or_default();
        assert!(delivered <= user.inbox.len(), "nobody has more than there is");
        user.delivered = delivered;
        user.acked = delivered;
        user.line = Some(Line { stream: stream.try_clone().expect("a descriptor"), v1 });
    }

    fn send<'a>(&mut self, from: &[u8], send: &v2::Send<'a>, fault: Fault) -> Option<Reply<'a>> {
        let v2::Send { seq, to, body, .. } = *send;
        let last =
            self.users.entry(to.to_vec()).or_default().last.entry(from.to_vec()).or_default();
        let sent = Reply::Sent { seq, id: MessageId([0; 16]), class: Class::Guaranteed, to };
        if send.flags & flag::SKIP != 0 {
            *last = (*last).max(seq - 1);
        }
        if seq > *last + 1 {
            return Some(Reply::Gap { expected: *last + 1, to });
        }
        if seq <= *last {
            return Some(sent);
        }
        self.tried += 1;
        let refusal = |code: Code| Reply::Refused { seq, code: code as u16, retry_after_ms: 5, to };
        if fault == Fault::Busy && self.tried.is_multiple_of(7) {
            return Some(refusal(Code::Busy));
        }
        *last = seq;
        self.accepted += 1;
        if self.muted.as_ref().is_some_and(|(f, t)| f == from && t == to) {
            return None;
        }
        let entry = Entry { from: from.to_vec(), seq, body: body.to_vec() };
        if self.accepted != FAULTY {
            self.put(to, entry);
            return Some(sent);
        }
        match fault {
            Fault::Lose => {}
            Fault::Duplicate => {
                self.put(to, entry.clone());
                self.put(to, entry);
            }
            Fault::Reorder => self.held = Some((to.to_vec(), entry)),
            Fault::Corrupt => {
                let mut entry = entry;
                *entry.body.last_mut().expect("a body") ^= 1;
                self.put(to, entry);
            }
            Fault::Misdeliver => {
                let sender = from.to_vec();
                self.put(&sender, entry);
            }
            Fault::Swallow => {
                self.put(to, entry);
                self.muted = Some((from.to_vec(), to.to_vec()));
                return None;
            }
            Fault::Refuse => return Some(refusal(Code::TooLarge)),
            _ => self.put(to, entry),
        }
        Some(sent)
    }

    fn put(&mut self, to: &[u8], entry: Entry) {
        let held = self.held.take_if(|(held_to, held)| held_to == to && held.from == entry.from);
        let inbox = &mut self.users.entry(to.to_vec()).or_default().inbox;
        inbox.push(entry);
        inbox.extend(held.map(|(_, entry)| entry));
    }

    fn deliver(&mut self) {
        for user in self.users.values_mut() {
            let Some(line) = &user.line else { continue };
            let mut out = Vec::new();
            for (at, entry) in user.inbox.iter().enumerate().skip(user.delivered) {
                let inbox_seq = at as u64 + 1;
                let mut id = [0; 16];
                id[..8].copy_from_slice(&inbox_seq.to_be_bytes());
                let id = MessageId(id);
                if line.v1 {
                    v1::put_deliver(&mut out, id, &entry.body);
                } else {
                    let deliver = Deliver {
                        inbox_seq,
                        id,
                        flags: 0,
                        from_device: 1,
                        send_seq: entry.seq,
                        time_ms: 0,
                        from: &entry.from,
                        body: &entry.body,
                    };
                    v2::put_reply(&mut out, &Reply::Deliver(deliver));
                }
            }
            user.delivered = user.inbox.len();
            if !out.is_empty() {
                write(&line.stream, &out);
            }
        }
    }

    fn cut(&mut self, fault: Fault) {
        for user in self.users.values_mut() {
            if let Some(line) = user.line.take() {
                // It may be closed on the other side already.
                let _closed = line.stream.shutdown(Shutdown::Both);
            }
            if fault == Fault::Forget {
                user.last.values_mut().for_each(|last| *last -= 1);
            }
        }
    }
}

/// A client that is gone needs no answer.
fn write(mut stream: &TcpStream, bytes: &[u8]) {
    let _gone = stream.write_all(bytes);
}

fn welcome() -> Reply<'static> {
    Reply::Welcome(Welcome {
        version: v2::VERSION,
        capabilities: 0,
        server_time_ms: 0,
        first_seq: 1,
        last_seq: 0,
        frame_bytes_max: 0,
        body_bytes_max: 0,
        credit_max: 0,
    })
}
