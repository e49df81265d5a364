//! Other servers' protocols, for comparisons: as much of them as a user needs
//! who logs in, receives under a name of its own, and sends to another.
//!
//! Without I/O like the sessions of the client library: bytes come in as they
//! arrive, cut anywhere, events and bytes to send come out. What a protocol
//! confirms is reported as [`Event::Sent`]; NATS core, XMPP and MQTT's QoS 0
//! confirm nothing.

mod base64;
mod mqtt;
mod nats;
mod xmpp;

use crate::body::Body;
use crate::spec::{ClassChoice, Protocol};

/// Bytes of an incomplete unit that are kept. No unit of a comparison is as
/// long: a message is at most 64 KiB there, some base64 or a server's
/// description of itself around it.
const PARTIAL_BYTES_MAX: usize = 256 * 1024;

/// What came of received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// The login is complete and messages are received from now on.
    LoggedIn,
    /// The server has taken this message.
    Sent(Body),
    /// A message arrived.
    Delivered(&'a [u8]),
}

/// Why a connection cannot go on, in words: bytes outside of the protocol, or
/// the server's refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken(pub(crate) String);

impl Broken {
    fn new(why: &str) -> Broken {
        Broken(why.to_owned())
    }
}

/// One user's end of a connection to another server.
#[derive(Debug)]
pub(crate) enum End {
    /// MQTT 3.1.1.
    Mqtt(mqtt::Client),
    /// NATS core.
    Nats(nats::Client),
    /// XMPP.
    Xmpp(Box<xmpp::Client>),
}

impl End {
    /// A user's end; `None` when the protocol is the server's own.
    pub(crate) fn new(protocol: Protocol, class: ClassChoice, name: &str) -> Option<End> {
        match protocol {
            Protocol::V1 | Protocol::V2 => None,
            Protocol::Mqtt => Some(End::Mqtt(mqtt::Client::new(name, class))),
            Protocol::Nats => Some(End::Nats(nats::Client::new(name))),
            Protocol::Xmpp => Some(End::Xmpp(Box::new(xmpp::Client::new(name)))),
        }
    }

    /// A new connection: forgets the old one; gives the first bytes to send.
    pub(crate) fn connect(&mut self) -> Vec<u8> {
        match self {
            End::Mqtt(client) => client.connect(),
            End::Nats(client) => client.connect(),
            End::Xmpp(client) => client.connect(),
        }
    }

    /// Queues a message; false when the protocol has no number left for it.
    pub(crate) fn send(&mut self, to: &str, bytes: &[u8], body: Body) -> bool {
        match self {
            End::Mqtt(client) => return client.send(to, bytes, body),
            End::Nats(client) => client.send(to, bytes),
            End::Xmpp(client) => client.send(to, bytes),
        }
        true
    }

    /// Takes received bytes.
    ///
    /// # Errors
    /// When the connection cannot go on.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        on: impl FnMut(Event<'_>),
    ) -> Result<(), Broken> {
        match self {
            End::Mqtt(client) => client.receive(bytes, on),
            End::Nats(client) => client.receive(bytes, on),
            End::Xmpp(client) => client.receive(bytes, on),
        }
    }

    /// Moves what is to be sent to the end of `out`.
    pub(crate) fn take_output(&mut self, out: &mut Vec<u8>) {
        out.append(match self {
            End::Mqtt(client) => &mut client.out,
            End::Nats(client) => &mut client.out,
            End::Xmpp(client) => &mut client.out,
        });
    }
}

/// Cuts what arrives into units: `step` takes the first one of the bytes given
/// and says how long it was, 0 when it is not complete. What is left over is
/// kept in `partial` until more arrives.
fn cut(
    partial: &mut Vec<u8>,
    bytes: &[u8],
    mut step: impl FnMut(&[u8]) -> Result<usize, Broken>,
) -> Result<(), Broken> {
    let mut whole = |bytes: &[u8]| {
        let mut used = 0;
        while used < bytes.len() {
            match step(&bytes[used..])? {
                0 => break,
                n => used += n,
            }
        }
        Ok(used)
    };
    if partial.is_empty() {
        let used = whole(bytes)?;
        partial.extend_from_slice(&bytes[used..]);
    } else {
        partial.extend_from_slice(bytes);
        let used = whole(partial)?;
        partial.drain(..used);
    }
    if partial.len() > PARTIAL_BYTES_MAX {
        return Err(Broken::new("the server sent something without an end"));
    }
    Ok(())
}

/// What the protocols' tests share: a client hears a server's bytes in one
/// piece and in every other way, and must make the same of them.
#[cfg(test)]
mod splits {
    use super::{Broken, Event};

    /// An event that owns its bytes.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(super) enum Heard {
        LoggedIn,
        Sent(u64),
        Delivered(Vec<u8>),
    }

    impl From<Event<'_>> for Heard {
        fn from(event: Event<'_>) -> Heard {
            match event {
                Event::LoggedIn => Heard::LoggedIn,
                Event::Sent(body) => Heard::Sent(body.number),
                Event::Delivered(bytes) => Heard::Delivered(bytes.to_vec()),
            }
        }
    }

    /// Everything that comes of `pieces`, and the bytes answered.
    pub(super) fn hear<C>(
        client: &mut C,
        pieces: &[&[u8]],
        receive: impl Fn(&mut C, &[u8], &mut dyn FnMut(Event<'_>)) -> Result<(), Broken>,
    ) -> Result<Vec<Heard>, Broken> {
        let mut heard = Vec::new();
        for piece in pieces {
            receive(client, piece, &mut |event| heard.push(event.into()))?;
        }
        Ok(heard)
    }

    /// Checks every split in two, and byte by byte.
    pub(super) fn check<C>(
        make: impl Fn() -> C,
        bytes: &[u8],
        receive: impl Fn(&mut C, &[u8], &mut dyn FnMut(Event<'_>)) -> Result<(), Broken>,
        output: impl Fn(&C) -> Vec<u8>,
    ) -> Vec<Heard> {
        let mut client = make();
        let whole = hear(&mut client, &[bytes], &receive).expect("it is a server's");
        let answer = output(&client);
        for at in 0..=bytes.len() {
            let mut client = make();
            let heard = hear(&mut client, &[&bytes[..at], &bytes[at..]], &receive);
            assert_eq!(heard.as_ref(), Ok(&whole), "cut at {at}");
            assert_eq!(output(&client), answer, "cut at {at}");
        }
        let mut client = make();
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(hear(&mut client, &single, &receive).as_ref(), Ok(&whole));
        assert_eq!(output(&client), answer);
        whole
    }
}
