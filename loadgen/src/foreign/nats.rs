//! NATS core as a client: one subscription to the user's own name, publishing
//! to others' names. Nothing is confirmed and nothing is kept for the absent.

use super::{Broken, Event, cut};

/// The end of the server's line may be this far away: its first line describes
/// the whole cluster.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Arguments of MSG: subject, subscription, perhaps where to answer, length.
const WORDS_MAX: usize = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct Client {
    name: String,
    pub(super) out: Vec<u8>,
    partial: Vec<u8>,
    /// The answer to the first PING is the end of the login.
    logged_in: bool,
}

impl Client {
    /// A user that has never been connected.
    pub(super) fn new(name: &str) -> Client {
        Client { name: name.to_owned(), out: Vec::new(), partial: Vec::new(), logged_in: false }
    }

    pub(super) fn connect(&mut self) -> Vec<u8> {
        self.out.clear();
        self.partial.clear();
        self.logged_in = false;
        format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"{}\",\"protocol\":1}}\r\nSUB {} 1\r\nPING\r\n",
            env!("CARGO_PKG_VERSION"),
            self.name
        )
        .into_bytes()
    }

    pub(super) fn send(&mut self, to: &str, bytes: &[u8]) {
        self.out.extend_from_slice(b"PUB ");
        self.out.extend_from_slice(to.as_bytes());
        self.out.push(b' ');
        put_number(&mut self.out, bytes.len());
        self.out.extend_from_slice(b"\r\n");
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
    }

    pub(super) fn receive(
        &mut self,
        bytes: &[u8],
        mut on: impl FnMut(Event<'_>),
    ) -> Result<(), Broken> {
        let mut partial = std::mem::take(&mut self.partial);
        let result = cut(&mut partial, bytes, |bytes| self.operation(bytes, &mut on));
        self.partial = partial;
        result
    }

    /// Takes the first operation; gives its length, 0 when it is not complete.
    fn operation(&mut self, bytes: &[u8], on: &mut impl FnMut(Event<'_>)) -> Result<usize, Broken> {
        let near = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
        let Some(end) = near.windows(2).position(|two| two == b"\r\n") else {
            let endless = near.len() == LINE_BYTES_MAX;
            return if endless { Err(Broken::new("a line without an end")) } else { Ok(0) };
        };
        let line = &bytes[..end];
        let rest = &bytes[end + 2..];
        if let Some(arguments) = line.strip_prefix(b"MSG ") {
            let length = message_length(arguments)
                .ok_or_else(|| Broken(format!("no message: {}", line.escape_ascii())))?;
            let Some(after) = rest.get(length..length + 2) else { return Ok(0) };
            if after != b"\r\n" {
                return Err(Broken::new("a message that does not end where it says"));
            }
            on(Event::Delivered(&rest[..length]));
            return Ok(end + 2 + length + 2);
        }
        match line {
            b"PING" => self.out.extend_from_slice(b"PONG\r\n"),
            b"PONG" => {
                if !std::mem::replace(&mut self.logged_in, true) {
                    on(Event::LoggedIn);
                }
            }
            b"+OK" => {}
            _ if line.starts_with(b"INFO ") => {}
            _ => return Err(Broken(format!("the server says: {}", line.escape_ascii()))),
        }
        Ok(end + 2)
    }
}

/// Writing it with `format!` would allocate for each message.
fn put_number(out: &mut Vec<u8>, mut number: usize) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// The length that the arguments of MSG end with.
fn message_length(arguments: &[u8]) -> Option<usize> {
    let mut words = arguments.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let (mut last, mut count) = (words.next()?, 1);
    for word in &mut words {
        (last, count) = (word, count + 1);
    }
    if !(3..=WORDS_MAX).contains(&count) {
        return None;
    }
    let length: usize = std::str::from_utf8(last).ok()?.parse().ok()?;
    (length <= super::PARTIAL_BYTES_MAX).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::super::splits::{self, Heard};
    use super::*;

    #[test]
    fn what_is_sent_is_the_protocol() {
        let mut client = Client::new("me");
        let first = String::from_utf8(client.connect()).expect("text");
        assert!(first.starts_with("CONNECT {\"verbose\":false,"), "{first}");
        assert!(first.ends_with("}\r\nSUB me 1\r\nPING\r\n"), "{first}");
        client.send("you", b"hello world");
        client.send("you", b"");
        assert_eq!(client.out, b"PUB you 11\r\nhello world\r\nPUB you 0\r\n\r\n");
        let mut digits = Vec::new();
        put_number(&mut digits, 1_048_570);
        assert_eq!(digits, b"1048570");
    }

    #[test]
    fn a_session_is_understood_however_it_is_cut() {
        let bytes = b"INFO {\"server_id\":\"X\",\"max_payload\":1048576}\r\n+OK\r\nPONG\r\nMSG me 1 5\r\na\r\nb\0\r\n\
            PING\r\nMSG me 1 _INBOX.7 0\r\n\r\nPONG\r\nMSG me  1 12\r\nMSG me 1 3\r\n\r\n";
        let heard = splits::check(
            || Client::new("me"),
            bytes,
            |client, bytes, on| client.receive(bytes, on),
            |client| client.out.clone(),
        );
        let delivered = |bytes: &[u8]| Heard::Delivered(bytes.to_vec());
        let expected =
            [Heard::LoggedIn, delivered(b"a\r\nb\0"), delivered(b""), delivered(b"MSG me 1 3\r\n")];
        assert_eq!(heard, expected);
    }

    #[test]
    fn what_no_server_says_ends_the_connection() {
        let broken =
            |bytes: &[u8]| Client::new("me").receive(bytes, |_| {}).expect_err("it is wrong").0;
        assert!(broken(b"-ERR 'Authorization Violation'\r\n").contains("Authorization"));
        assert!(broken(b"HTTP/1.1 400 Bad Request\r\n").contains("HTTP"));
        assert!(broken(b"MSG me 1 x\r\n").contains("no message"));
        assert!(broken(b"MSG me 5\r\n").contains("no message"));
        assert!(broken(b"MSG me 1 99999999999\r\n").contains("no message"));
        assert!(broken(b"MSG me 1 2\r\nabcd").contains("does not end"));
        assert!(broken(&[b'a'; LINE_BYTES_MAX]).contains("without an end"));
    }
}
