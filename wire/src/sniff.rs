//! The first bytes of a connection: which protocol is this?

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The original Erlang server's packets.
    V1,
    /// Framed protocol, after its preface of four bytes.
    V2,
    /// A TLS client hello.
    Tls,
    /// An HTTP request, perhaps a WebSocket upgrade.
    Http,
}

/// The preface that opens protocol v2.
pub const V2_PREFACE: &[u8; 4] = b"IRS2";

/// Tells the protocol from the first bytes; `None` asks for more of them.
///
/// One byte decides between the families; only a v2 preface needs all four,
/// and four bytes that merely begin like it are v1 (where they are an unknown
/// opcode, answered as one).
pub fn sniff(bytes: &[u8]) -> Option<Protocol> {
    match *bytes.first()? {
        0x16 => Some(Protocol::Tls),
        b'G' => Some(Protocol::Http),
        b'I' if bytes.len() >= V2_PREFACE.len() => {
            if bytes.starts_with(V2_PREFACE) {
                Some(Protocol::V2)
            } else {
                Some(Protocol::V1)
            }
        }
        b'I' if V2_PREFACE.starts_with(bytes) => None,
        _ => Some(Protocol::V1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], expect: Option<Protocol>) {
        assert_eq!(sniff(bytes), expect, "{bytes:02x?}");
    }

    #[test]
    fn first_bytes_tell() {
        check(b"", None);
        check(b"I", None);
        check(b"IRS", None);
        check(b"IRS2", Some(Protocol::V2));
        check(b"IRS2\0\0", Some(Protocol::V2));
        check(b"IRSX", Some(Protocol::V1));
        check(b"IX", Some(Protocol::V1));
        check(b"GET / HTTP/1.1", Some(Protocol::Http));
        check(&[0x16, 3, 1], Some(Protocol::Tls));
        check(&[0x01], Some(Protocol::V1));
        check(&[0xff], Some(Protocol::V1));
    }
}
