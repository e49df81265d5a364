//! XMPP as a client: login with a name and any password, one resource, chat
//! messages to others' resources by their full address, so that the server need
//! neither keep a contact list nor tell anyone that somebody has come.
//!
//! The stream is cut into elements and these are looked at as text: enough for
//! what a server says to a client that asks for nothing more. Bodies are base64,
//! which needs no escaping. Nothing is confirmed.

use super::{Broken, Event, base64, cut};

/// The domain that a server must be set up for.
const DOMAIN: &str = "localhost";

/// See the module.
#[derive(Debug)]
pub(crate) struct Client {
    name: String,
    pub(super) out: Vec<u8>,
    partial: Vec<u8>,
    stage: Stage,
    body: Vec<u8>,
}

/// What the client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The stream's first tag and what it offers; whether the login is behind.
    Stream { authenticated: bool, open: bool },
    /// The answer to the password.
    Authenticating,
    /// The answer to the resource.
    Binding,
    /// Messages.
    Online,
}

impl Client {
    /// A user that has never been connected.
    pub(super) fn new(name: &str) -> Client {
        Client {
            name: name.to_owned(),
            out: Vec::new(),
            partial: Vec::new(),
            stage: Stage::Stream { authenticated: false, open: false },
            body: Vec::new(),
        }
    }

    pub(super) fn connect(&mut self) -> Vec<u8> {
        self.out.clear();
        self.partial.clear();
        self.open(false);
        std::mem::take(&mut self.out)
    }

    fn open(&mut self, authenticated: bool) {
        self.stage = Stage::Stream { authenticated, open: false };
        self.say(&[
            "<?xml version='1.0'?><stream:stream xmlns='jabber:client' ",
            "xmlns:stream='http://etherx.jabber.org/streams' version='1.0' to='",
            DOMAIN,
            "'>",
        ]);
    }

    fn say(&mut self, parts: &[&str]) {
        parts.iter().for_each(|part| self.out.extend_from_slice(part.as_bytes()));
    }

    pub(super) fn send(&mut self, to: &str, bytes: &[u8]) {
        self.say(&["<message type='chat' to='", to, "@", DOMAIN, "/r'><body>"]);
        base64::put(&mut self.out, bytes);
        self.say(&["</body></message>"]);
    }

    pub(super) fn receive(
        &mut self,
        bytes: &[u8],
        mut on: impl FnMut(Event<'_>),
    ) -> Result<(), Broken> {
        let mut partial = std::mem::take(&mut self.partial);
        let result = cut(&mut partial, bytes, |bytes| self.unit(bytes, &mut on));
        self.partial = partial;
        result
    }

    /// Takes the stream's first tag, an element, or white space between them.
    fn unit(&mut self, bytes: &[u8], on: &mut impl FnMut(Event<'_>)) -> Result<usize, Broken> {
        if bytes[0].is_ascii_whitespace() {
            return Ok(1);
        }
        if let Stage::Stream { authenticated, open: false } = self.stage {
            let Some(end) = tag_end(bytes)? else { return Ok(0) };
            if bytes.starts_with(b"<stream:stream") {
                self.stage = Stage::Stream { authenticated, open: true };
            } else if !bytes.starts_with(b"<?xml") {
                return Err(unexpected(&bytes[..end]));
            }
            return Ok(end);
        }
        let Some(end) = element_end(bytes)? else { return Ok(0) };
        self.element(&bytes[..end], on)?;
        Ok(end)
    }

    fn element(&mut self, element: &[u8], on: &mut impl FnMut(Event<'_>)) -> Result<(), Broken> {
        let is = |name: &str| element[1..].starts_with(name.as_bytes());
        match self.stage {
            Stage::Online if is("message") => return self.message(element, on),
            Stage::Online if is("presence") || is("iq") => {}
            Stage::Stream { authenticated: false, .. } if is("stream:features") => {
                let mut secret = Vec::new();
                let name = self.name.as_bytes();
                base64::put(&mut secret, &[b"\0", name, b"\0", name].concat());
                self.say(&["<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>"]);
                self.out.append(&mut secret);
                self.say(&["</auth>"]);
                self.stage = Stage::Authenticating;
            }
            Stage::Authenticating if is("success") => self.open(true),
            Stage::Stream { authenticated: true, .. } if is("stream:features") => {
                self.say(&[
                    "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>",
                    "<resource>r</resource></bind></iq>",
                ]);
                self.stage = Stage::Binding;
            }
            Stage::Binding if is("iq") && has_attribute(element, "type", "result") => {
                self.stage = Stage::Online;
                on(Event::LoggedIn);
            }
            _ => return Err(unexpected(element)),
        }
        Ok(())
    }

    fn message(&mut self, element: &[u8], on: &mut impl FnMut(Event<'_>)) -> Result<(), Broken> {
        let start = find(element, b"<body>").map(|at| at + b"<body>".len());
        let end = find(element, b"</body>");
        let text = start.zip(end).and_then(|(start, end)| element.get(start..end));
        let Some(text) = text.filter(|_| !has_attribute(element, "type", "error")) else {
            return Err(unexpected(element));
        };
        base64::read(text, &mut self.body)?;
        on(Event::Delivered(&self.body));
        Ok(())
    }
}

fn unexpected(element: &[u8]) -> Broken {
    let text = String::from_utf8_lossy(&element[..element.len().min(300)]);
    Broken(format!("the server says: {text}"))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Whether the first tag has this attribute with this value.
fn has_attribute(element: &[u8], name: &str, value: &str) -> bool {
    let end = element.iter().position(|byte| *byte == b'>').unwrap_or(element.len());
    ["'", "\""].iter().any(|quote| {
        find(&element[..end], format!(" {name}={quote}{value}{quote}").as_bytes()).is_some()
    })
}

/// Where the first tag ends; `None` when it is not complete. A `>` in quotes is
/// part of a value.
fn tag_end(bytes: &[u8]) -> Result<Option<usize>, Broken> {
    if bytes[0] != b'<' {
        return Err(unexpected(bytes));
    }
    let mut quote = None;
    for (at, byte) in bytes.iter().enumerate() {
        match (quote, *byte) {
            (None, b'>') => return Ok(Some(at + 1)),
            (None, b'\'' | b'"') => quote = Some(*byte),
            (Some(open), byte) if open == byte => quote = None,
            _ => {}
        }
    }
    Ok(None)
}

/// Where the first element ends with everything in it.
fn element_end(bytes: &[u8]) -> Result<Option<usize>, Broken> {
    let (mut at, mut depth) = (0, 0_usize);
    loop {
        let Some(end) = tag_end(&bytes[at..])? else { return Ok(None) };
        let tag = &bytes[at..at + end];
        match (tag.get(1), tag.ends_with(b"/>")) {
            (Some(b'/'), _) => match depth.checked_sub(1) {
                Some(rest) => depth = rest,
                None => return Err(Broken::new("the server ends the stream")),
            },
            (_, true) => {}
            (_, false) => depth += 1,
        }
        at += end;
        if depth == 0 {
            return Ok(Some(at));
        }
        match bytes[at..].iter().position(|byte| *byte == b'<') {
            Some(next) => at += next,
            None => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::splits::{self, Heard};
    use super::*;

    const SERVER: &str = "<?xml version='1.0'?><stream:stream id='7' version='1.0' \
        xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>\
        <stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>\
        <mechanism>PLAIN</mechanism><mechanism>X-OAUTH2</mechanism></mechanisms></stream:features>\
        <success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>\n \
        <?xml version='1.0'?><stream:stream id=\"8>\" version='1.0'><stream:features>\
        <bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/><session><optional/></session>\
        </stream:features><iq type='result' id='bind'><bind><jid>me@localhost/r</jid></bind></iq>\
        <presence from='x'/><message from='you@localhost/r' type='chat'><archived id='1'/>\
        <body>Zm9vYmFy</body></message> <message type='chat' from=\"a>b\"><body></body></message>";

    #[test]
    fn a_session_is_understood_however_it_is_cut() {
        let heard = splits::check(
            || Client::new("me"),
            SERVER.as_bytes(),
            |client, bytes, on| client.receive(bytes, on),
            |client| client.out.clone(),
        );
        let delivered = |bytes: &[u8]| Heard::Delivered(bytes.to_vec());
        assert_eq!(heard, [Heard::LoggedIn, delivered(b"foobar"), delivered(b"")]);
        let mut client = Client::new("me");
        assert!(client.connect().ends_with(b"to='localhost'>"));
        client.receive(SERVER.as_bytes(), |_| {}).expect("it is a server's");
        let said = String::from_utf8(client.out.clone()).expect("text");
        assert!(said.contains(">AG1lAG1l</auth>"), "{said}");
        assert!(said.ends_with("</iq>"), "{said}");
        client.out.clear();
        client.send("you", b"foobar");
        let message = b"<message type='chat' to='you@localhost/r'><body>Zm9vYmFy</body></message>";
        assert_eq!(client.out, message);
    }

    #[test]
    fn what_no_server_says_ends_the_connection() {
        let broken = |bytes: &str| {
            let mut client = Client::new("me");
            let bytes = format!("<stream:stream>{bytes}");
            client.receive(bytes.as_bytes(), |_| {}).expect_err("it is wrong").0
        };
        assert!(broken("</stream:stream>").contains("ends"));
        assert!(broken("<failure><not-authorized/></failure>").contains("not-authorized"));
        assert!(broken("<stream:error/>").contains("error"));
        assert!(broken("HTTP").contains("HTTP"));
        let online = |bytes: &str| {
            let mut client = Client { stage: Stage::Online, ..Client::new("me") };
            client.receive(bytes.as_bytes(), |_| {}).expect_err("it is wrong").0
        };
        assert!(online("<message type='error'><body>Zm9v</body></message>").contains("error"));
        assert!(online("<message><body>?</body></message>").contains("base64"));
        assert!(online("<message/>").contains("says"));
    }
}
