//! MQTT 3.1.1 as a client: one persistent or clean session, one subscription
//! to the user's own name, publishing to others' names.
//!
//! With class guaranteed everything has QoS 1: a message is confirmed by its
//! PUBACK, a delivery is answered with one. Confirmations must come in the order
//! of the messages. With best effort everything has QoS 0.

use std::collections::VecDeque;

use super::{Broken, Event, cut};
use crate::body::Body;
use crate::spec::ClassChoice;

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;
const PINGRESP: u8 = 0xd0;

const QOS_1: u8 = 0x02;
const QOS_BITS: u8 = 0x06;
const CLEAN_SESSION: u8 = 0x02;

/// Messages on the wire without their confirmation.
const IN_FLIGHT_MAX: usize = 4096;
const SUBSCRIPTION: u16 = 1;

/// See the module.
#[derive(Debug)]
pub(crate) struct Client {
    name: String,
    acknowledged: bool,
    pub(super) out: Vec<u8>,
    partial: Vec<u8>,
    /// Published and not confirmed, oldest first.
    in_flight: VecDeque<(u16, Body)>,
    last_id: u16,
}

/// What a server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packet<'a> {
    ConnAck {
        code: u8,
    },
    SubAck {
        id: u16,
        code: u8,
    },
    PubAck {
        id: u16,
    },
    /// With its identifier at QoS 1.
    Publish {
        id: Option<u16>,
        payload: &'a [u8],
    },
    PingResp,
}

impl Client {
    /// A user that has never been connected.
    pub(super) fn new(name: &str, class: ClassChoice) -> Client {
        Client {
            name: name.to_owned(),
            acknowledged: class == ClassChoice::Guaranteed,
            out: Vec::new(),
            partial: Vec::new(),
            in_flight: VecDeque::new(),
            last_id: 0,
        }
    }

    pub(super) fn connect(&mut self) -> Vec<u8> {
        self.out.clear();
        self.partial.clear();
        // What was under way is lost or, at QoS 1, the next connection's to
        // send again: runs of a comparison end when a connection does.
        self.in_flight.clear();
        let mut first = Vec::new();
        let name = self.name.as_bytes();
        put_header(&mut first, CONNECT, 10 + 2 + name.len());
        put_string(&mut first, b"MQTT");
        first.push(4);
        first.push(if self.acknowledged { 0 } else { CLEAN_SESSION });
        // No keep-alive: an idle connection stays silent.
        first.extend_from_slice(&[0, 0]);
        put_string(&mut first, name);
        put_header(&mut first, SUBSCRIBE, 2 + 2 + name.len() + 1);
        first.extend_from_slice(&SUBSCRIPTION.to_be_bytes());
        put_string(&mut first, name);
        first.push(u8::from(self.acknowledged));
        first
    }

    pub(super) fn send(&mut self, to: &str, bytes: &[u8], body: Body) -> bool {
        let id_bytes = if self.acknowledged { 2 } else { 0 };
        let length = 2 + to.len() + id_bytes + bytes.len();
        if !self.acknowledged {
            put_header(&mut self.out, PUBLISH, length);
            put_string(&mut self.out, to.as_bytes());
        } else {
            if self.in_flight.len() >= IN_FLIGHT_MAX {
                return false;
            }
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            self.in_flight.push_back((self.last_id, body));
            put_header(&mut self.out, PUBLISH | QOS_1, length);
            put_string(&mut self.out, to.as_bytes());
            self.out.extend_from_slice(&self.last_id.to_be_bytes());
        }
        self.out.extend_from_slice(bytes);
        true
    }

    pub(super) fn receive(
        &mut self,
        bytes: &[u8],
        mut on: impl FnMut(Event<'_>),
    ) -> Result<(), Broken> {
        let mut partial = std::mem::take(&mut self.partial);
        let result = cut(&mut partial, bytes, |bytes| {
            let Some((packet, length)) = decode(bytes)? else { return Ok(0) };
            self.packet(packet, &mut on)?;
            Ok(length)
        });
        self.partial = partial;
        result
    }

    fn packet(&mut self, packet: Packet<'_>, on: &mut impl FnMut(Event<'_>)) -> Result<(), Broken> {
        match packet {
            Packet::ConnAck { code: 0 } | Packet::PingResp => {}
            Packet::ConnAck { code } => {
                return Err(Broken(format!("the server refuses the login with code {code}")));
            }
            Packet::SubAck { id, code } => {
                if id != SUBSCRIPTION || code != u8::from(self.acknowledged) {
                    return Err(Broken(format!("the subscription was granted as {code}")));
                }
                on(Event::LoggedIn);
            }
            Packet::PubAck { id } => match self.in_flight.pop_front() {
                Some((oldest, body)) if oldest == id => on(Event::Sent(body)),
                _ => return Err(Broken::new("a confirmation out of order")),
            },
            Packet::Publish { id, payload } => {
                if let Some(id) = id {
                    put_header(&mut self.out, PUBACK, 2);
                    self.out.extend_from_slice(&id.to_be_bytes());
                }
                on(Event::Delivered(payload));
            }
        }
        Ok(())
    }
}

fn put_header(out: &mut Vec<u8>, kind: u8, mut length: usize) {
    out.push(kind);
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    let length = u16::try_from(text.len()).expect("names are short");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text);
}

/// The first packet and its length; `None` when it is not complete.
fn decode(bytes: &[u8]) -> Result<Option<(Packet<'_>, usize)>, Broken> {
    let Some((length, header)) = remaining_length(bytes)? else { return Ok(None) };
    let Some(rest) = bytes.get(header..header + length) else { return Ok(None) };
    let u16_at = |at: usize| Some(u16::from_be_bytes([*rest.get(at)?, *rest.get(at + 1)?]));
    let packet = match bytes[0] {
        CONNACK => rest.get(1).map(|code| Packet::ConnAck { code: *code }),
        SUBACK => u16_at(0).zip(rest.get(2)).map(|(id, code)| Packet::SubAck { id, code: *code }),
        PUBACK => u16_at(0).map(|id| Packet::PubAck { id }),
        PINGRESP => Some(Packet::PingResp),
        kind if kind & 0xf0 == PUBLISH => publish(kind & QOS_BITS, rest),
        kind => return Err(Broken(format!("a packet of kind {kind:#x}"))),
    };
    let packet = packet.ok_or_else(|| Broken::new("a packet that is too short"))?;
    Ok(Some((packet, header + length)))
}

fn publish(qos: u8, rest: &[u8]) -> Option<Packet<'_>> {
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let rest = rest.get(usize::from(u16::from_be_bytes(*length))..)?;
    match qos {
        0 => Some(Packet::Publish { id: None, payload: rest }),
        QOS_1 => {
            let (id, payload) = rest.split_first_chunk::<2>()?;
            Some(Packet::Publish { id: Some(u16::from_be_bytes(*id)), payload })
        }
        _ => None,
    }
}

/// The length after the fixed header, and the header's own.
fn remaining_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Broken> {
    let mut length = 0;
    for at in 0..4 {
        let Some(byte) = bytes.get(1 + at) else { return Ok(None) };
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((length, 2 + at)));
        }
    }
    Err(Broken::new("a length of more than four bytes"))
}

#[cfg(test)]
mod tests {
    use super::super::splits::{self, Heard};
    use super::*;

    const BODY: Body =
        Body { run: 1, sender: 2, recipient: 3, number: 0, intended_ns: 5, handed_ns: 6 };

    /// Logged in, with messages 1 to `sent` under way.
    fn client(class: ClassChoice, sent: u64) -> Client {
        let mut client = Client::new("me", class);
        client.connect();
        for number in 1..=sent {
            assert!(client.send("you", b"hello", Body { number, ..BODY }));
        }
        client.out.clear();
        client
    }

    fn delivery(id: Option<u16>, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (kind, extra) = if id.is_some() { (PUBLISH | QOS_1, 2) } else { (PUBLISH, 0) };
        put_header(&mut bytes, kind, 2 + 2 + extra + payload.len());
        put_string(&mut bytes, b"me");
        bytes.extend(id.into_iter().flat_map(u16::to_be_bytes));
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn the_first_bytes_are_those_of_the_standard() {
        let mut client = Client::new("me", ClassChoice::Guaranteed);
        let connect = b"\x10\x0e\0\x04MQTT\x04\x00\0\0\0\x02me".as_slice();
        let subscribe = b"\x82\x07\0\x01\0\x02me\x01".as_slice();
        assert_eq!(client.connect(), [connect, subscribe].concat());
        assert!(client.send("you", b"hello", BODY));
        assert_eq!(client.out, b"\x32\x0c\0\x03you\0\x01hello");
        let mut client = Client::new("me", ClassChoice::BestEffort);
        assert_eq!(client.connect()[9], CLEAN_SESSION);
        assert!(client.send("you", b"hello", BODY));
        assert_eq!(client.out, b"\x30\x0a\0\x03youhello");
    }

    #[test]
    fn a_session_is_understood_however_it_is_cut() {
        let long = vec![b'x'; 20_000];
        let mut bytes = b"\x20\x02\0\0\x90\x03\0\x01\x01\x40\x02\0\x01".to_vec();
        bytes.extend(delivery(Some(7), b"one"));
        bytes.extend_from_slice(b"\xd0\0\x40\x02\0\x02");
        bytes.extend(delivery(Some(8), b""));
        bytes.extend(delivery(Some(9), &long[..300]));
        let heard = splits::check(
            || client(ClassChoice::Guaranteed, 2),
            &bytes,
            |client, bytes, on| client.receive(bytes, on),
            |client| client.out.clone(),
        );
        let delivered = |bytes: &[u8]| Heard::Delivered(bytes.to_vec());
        let expected = [
            Heard::LoggedIn,
            Heard::Sent(1),
            delivered(b"one"),
            Heard::Sent(2),
            delivered(b""),
            delivered(&long[..300]),
        ];
        assert_eq!(heard, expected);
        let mut client = client(ClassChoice::Guaranteed, 0);
        let long = delivery(Some(1), &long);
        let mut count = 0;
        let pieces = long.chunks(999);
        pieces.for_each(|piece| client.receive(piece, |_| count += 1).expect("a delivery"));
        assert_eq!((count, client.out.as_slice()), (1, b"\x40\x02\0\x01".as_slice()));
    }

    #[test]
    fn quality_0_is_neither_confirmed_nor_acknowledged() {
        let mut client = client(ClassChoice::BestEffort, 3);
        assert!(client.in_flight.is_empty());
        let mut heard = Vec::new();
        let bytes = [b"\x20\x02\0\0\x90\x03\0\x01\0".as_slice(), &delivery(None, b"x")].concat();
        client.receive(&bytes, |event| heard.push(Heard::from(event))).expect("a server's");
        assert_eq!(heard, [Heard::LoggedIn, Heard::Delivered(b"x".to_vec())]);
        assert!(client.out.is_empty());
    }

    #[test]
    fn what_no_server_says_ends_the_connection() {
        let broken = |bytes: &[u8]| {
            client(ClassChoice::Guaranteed, 2).receive(bytes, |_| {}).expect_err("it is wrong").0
        };
        assert!(broken(b"\x20\x02\0\x05").contains("code 5"));
        assert!(broken(b"\x90\x03\0\x01\x80").contains("128"));
        assert!(broken(b"\x40\x02\0\x02").contains("order"));
        assert!(broken(b"\x40\x01\0").contains("short"));
        assert!(broken(b"\x34\x04\0\x00\0\x01").contains("short"), "QoS 2 was not asked for");
        assert!(broken(b"\x00\x00").contains("kind"));
        assert!(broken(b"\x30\xff\xff\xff\xff\x01").contains("length"));
    }

    #[test]
    fn identifiers_go_round_and_leave_out_0() {
        let mut client = client(ClassChoice::Guaranteed, 0);
        client.last_id = u16::MAX - 1;
        assert!(client.send("you", b"", BODY) && client.send("you", b"", BODY));
        let ids: Vec<u16> = client.in_flight.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [u16::MAX, 1]);
        client.last_id = 0;
        client.in_flight.clear();
        (0..IN_FLIGHT_MAX).for_each(|_| assert!(client.send("you", b"", BODY)));
        assert!(!client.send("you", b"", BODY), "bounded");
    }
}
