//! A tiny MQTT, NATS or XMPP server in threads: correct, or wrong in one chosen
//! way. It knows what the load generator says and nothing else, and splits what
//! it answers at odd places.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tongue {
    Mqtt,
    Nats,
    Xmpp,
}

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Takes a message and never delivers it.
    Lose,
    /// Delivers a message twice.
    Duplicate,
    /// Delivers a message after the next one of its sender.
    Reorder,
    /// Delivers a message to its sender.
    Misdeliver,
    /// Never confirms a message, nor those after it.
    Swallow,
    /// Refuses every login.
    Closed,
}

/// Which message the fault hits.
const FAULTY: u64 = 100;

/// One thing that a client says.
enum Said {
    Login(Vec<u8>),
    /// Identifier and quality.
    Subscribe(u16, u8),
    Publish {
        to: Vec<u8>,
        id: Option<u16>,
        body: Vec<u8>,
    },
    Ping,
    Stream,
    Bind,
    /// Needs no answer.
    Nothing,
}

#[derive(Default)]
struct State {
    lines: HashMap<Vec<u8>, TcpStream>,
    taken: u64,
    /// Sender, recipient and body of the message that comes too late.
    held: Option<(Vec<u8>, Vec<u8>, Vec<u8>)>,
    muted: Option<Vec<u8>>,
}

struct Line {
    tongue: Tongue,
    fault: Fault,
    stream: TcpStream,
    name: Vec<u8>,
    authenticated: bool,
}

/// Starts a server on a free port; it lives as long as the test.
pub(crate) fn start(tongue: Tongue, fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("it is bound");
    let state = Arc::new(Mutex::new(State::default()));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = Arc::clone(&state);
            let line = Line { tongue, fault, stream, name: Vec::new(), authenticated: false };
            std::thread::spawn(move || line.serve(&state));
        }
    });
    addr
}

impl Line {
    fn serve(mut self, state: &Mutex<State>) {
        let (mut buffer, mut chunk) = (Vec::new(), [0; 16 * 1024]);
        self.stream.set_nodelay(true).expect("a socket");
        if self.tongue == Tongue::Nats {
            write(&self.stream, b"INFO {\"max_payload\":1048576}\r\n");
        }
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) | Err(_) => return,
                Ok(n) => buffer.extend_from_slice(&chunk[..n]),
            }
            let mut state = state.lock().expect("no server thread panics");
            while let Some((said, used)) = next(self.tongue, &buffer) {
                buffer.drain(..used);
                self.answer(said, &mut state);
            }
        }
    }

    fn answer(&mut self, said: Said, state: &mut State) {
        let refuses = self.fault == Fault::Closed;
        match said {
            Said::Login(name) => {
                let line = self.stream.try_clone().expect("a descriptor");
                state.lines.insert(name.clone(), line);
                self.name = name;
                self.authenticated = true;
                self.say(match (self.tongue, refuses) {
                    (Tongue::Mqtt, false) => b"\x20\x02\0\0",
                    (Tongue::Mqtt, true) => b"\x20\x02\0\x05",
                    (Tongue::Nats, false) => b"",
                    (Tongue::Nats, true) => b"-ERR 'Authorization Violation'\r\n",
                    (Tongue::Xmpp, false) => b"<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>",
                    (Tongue::Xmpp, true) => b"<failure><not-authorized/></failure>",
                });
            }
            Said::Subscribe(id, quality) => {
                let [high, low] = id.to_be_bytes();
                self.say(&[0x90, 3, high, low, quality]);
            }
            Said::Ping => self.say(b"PONG\r\n"),
            Said::Stream => {
                self.say(b"<?xml version='1.0'?><stream:stream id='1' version='1.0'>");
                self.say(if self.authenticated {
                    b"<stream:features><bind/></stream:features>"
                } else {
                    b"<stream:features><mechanism>PLAIN</mechanism></stream:features>"
                });
            }
            Said::Bind => self.say(b"<iq type='result' id='bind'><bind/></iq>"),
            Said::Publish { to, id, body } => self.publish(&to, id, body, state),
            Said::Nothing => {}
        }
    }

    fn publish(&self, to: &[u8], id: Option<u16>, body: Vec<u8>, state: &mut State) {
        state.taken += 1;
        let hit = state.taken == FAULTY;
        if hit && self.fault == Fault::Swallow {
            state.muted = Some(self.name.clone());
        }
        if let Some(id) = id.filter(|_| state.muted.as_ref() != Some(&self.name)) {
            let [high, low] = id.to_be_bytes();
            self.say(&[0x40, 2, high, low]);
        }
        match self.fault {
            Fault::Lose if hit => return,
            Fault::Reorder if hit => {
                state.held = Some((self.name.clone(), to.to_vec(), body));
                return;
            }
            Fault::Misdeliver if hit => return self.deliver(&self.name, id, &body, state),
            Fault::Duplicate if hit => self.deliver(to, id, &body, state),
            _ => {}
        }
        self.deliver(to, id, &body, state);
        let mine = |held: &mut (Vec<u8>, Vec<u8>, Vec<u8>)| held.0 == self.name;
        if let Some((_, to, body)) = state.held.take_if(mine) {
            self.deliver(&to, id, &body, state);
        }
    }

    fn deliver(&self, to: &[u8], id: Option<u16>, body: &[u8], state: &State) {
        let Some(line) = state.lines.get(to) else { return };
        let length = body.len();
        let mut bytes = match self.tongue {
            Tongue::Mqtt => {
                let length = 2 + to.len() + id.map_or(0, |_| 2) + length;
                let [low, high] = [length as u8 & 0x7f | 0x80, (length >> 7) as u8];
                let mut bytes = vec![0x30 | id.map_or(0, |_| 2), low, high, 0, to.len() as u8];
                bytes.extend_from_slice(to);
                bytes.extend(id.into_iter().flat_map(u16::to_be_bytes));
                bytes
            }
            Tongue::Nats => [b"MSG ", to, format!(" 1 {length}\r\n").as_bytes()].concat(),
            Tongue::Xmpp => b"<message from='a>b' type='chat'><body>".to_vec(),
        };
        bytes.extend_from_slice(body);
        bytes.extend_from_slice(match self.tongue {
            Tongue::Mqtt => b"",
            Tongue::Nats => b"\r\n",
            Tongue::Xmpp => b"</body></message>",
        });
        let (first, rest) = bytes.split_at(bytes.len() / 3);
        write(line, first);
        write(line, rest);
    }

    fn say(&self, bytes: &[u8]) {
        write(&self.stream, bytes);
    }
}

/// The first thing that a client says and its length.
fn next(tongue: Tongue, bytes: &[u8]) -> Option<(Said, usize)> {
    match tongue {
        Tongue::Mqtt => mqtt(bytes),
        Tongue::Nats => nats(bytes),
        Tongue::Xmpp => xmpp(bytes),
    }
}

fn mqtt(bytes: &[u8]) -> Option<(Said, usize)> {
    let low = usize::from(*bytes.get(1)?);
    let (length, header) = match low < 0x80 {
        true => (low, 2),
        false => (low & 0x7f | usize::from(*bytes.get(2)?) << 7, 3),
    };
    let rest = bytes.get(header..header + length)?;
    let two = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    let said = match bytes[0] {
        0x10 => Said::Login(rest[12..].to_vec()),
        0x82 => Said::Subscribe(two(0), rest[length - 1]),
        0x30 | 0x32 => {
            let end = 2 + usize::from(two(0));
            let id = (bytes[0] == 0x32).then(|| two(end));
            let body = rest[end + id.map_or(0, |_| 2)..].to_vec();
            Said::Publish { to: rest[2..end].to_vec(), id, body }
        }
        _ => Said::Nothing,
    };
    Some((said, header + length))
}

fn nats(bytes: &[u8]) -> Option<(Said, usize)> {
    let end = find(bytes, b"\r\n")?;
    let line = std::str::from_utf8(&bytes[..end]).expect("text");
    let words: Vec<&str> = line.split(' ').collect();
    let said = match words[0] {
        "SUB" => Said::Login(words[1].as_bytes().to_vec()),
        "PING" => Said::Ping,
        "PUB" => {
            let length: usize = words[2].parse().expect("a number");
            let body = bytes.get(end + 2..end + 2 + length)?.to_vec();
            let publish = Said::Publish { to: words[1].as_bytes().to_vec(), id: None, body };
            return (bytes.len() >= end + length + 4).then_some((publish, end + length + 4));
        }
        _ => Said::Nothing,
    };
    Some((said, end + 2))
}

fn xmpp(bytes: &[u8]) -> Option<(Said, usize)> {
    let until = |end: &[u8]| find(bytes, end).map(|at| at + end.len());
    if bytes.starts_with(b"<?xml") {
        let end = until(b"version='1.0' to='localhost'>")?;
        return Some((Said::Stream, end));
    }
    if bytes.starts_with(b"<auth") {
        let end = until(b"</auth>")?;
        // The name follows a zero byte in base64; what it is does not matter,
        // as long as each has one of its own: addresses are looked up by it.
        let start = find(bytes, b">")? + 1;
        let secret = decode(&bytes[start..end - b"</auth>".len()]);
        let name = secret.split(|byte| *byte == 0).nth(1).expect("a name").to_vec();
        return Some((Said::Login(name), end));
    }
    if bytes.starts_with(b"<iq") {
        return Some((Said::Bind, until(b"</iq>")?));
    }
    let end = until(b"</message>")?;
    let text = |from: &[u8], to: &[u8]| {
        let start = find(bytes, from).expect("it is there") + from.len();
        bytes[start..start + find(&bytes[start..], to).expect("it ends")].to_vec()
    };
    let (to, body) = (text(b"to='", b"@"), text(b"<body>", b"</body>"));
    Some((Said::Publish { to, id: None, body }, end))
}

/// Base64, for names only.
fn decode(text: &[u8]) -> Vec<u8> {
    let mut bits = 0_u32;
    let mut out = Vec::new();
    for (at, byte) in text.iter().filter(|byte| **byte != b'=').enumerate() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        bits = bits << 6 | u32::from(value);
        if at % 4 > 0 {
            out.push((bits >> (6 - 2 * (at % 4))) as u8);
        }
    }
    out
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A client that is gone needs no answer.
fn write(mut stream: &TcpStream, bytes: &[u8]) {
    let _gone = stream.write_all(bytes);
}
