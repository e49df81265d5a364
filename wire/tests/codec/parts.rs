//! Material for every packet of both protocols: one bag of random fields, and
//! which packet it is poured into.

use proptest::collection::vec;
use proptest::prelude::*;
use wire::id::{Class, MessageId};
use wire::limits::NAME_BYTES_MAX;
use wire::v1::{Answer, BatchEntries, Packet, READ_ID_BYTES_MAX};
use wire::v2::{Deliver, Hello, Reply, Request, Send, Welcome};

/// Random fields; every packet takes the ones it has.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) name: Vec<u8>,
    pub(crate) word: Vec<u8>,
    pub(crate) body: Vec<u8>,
    pub(crate) id: [u8; 16],
    pub(crate) number: u64,
    pub(crate) other: u64,
    pub(crate) count: u32,
    pub(crate) more: u32,
    pub(crate) code: u16,
    pub(crate) flags: u8,
    pub(crate) yes: bool,
}

/// Any parts within the bounds of every packet. Names may hold every byte
/// but `:`, which would move the border of a v1 login.
pub(crate) fn any_parts() -> impl Strategy<Value = Parts> {
    let name = vec(any::<u8>().prop_map(|byte| if byte == b':' { b';' } else { byte }), 0..80);
    let texts = (name, vec(any::<u8>(), 0..READ_ID_BYTES_MAX), vec(any::<u8>(), 0..400));
    let numbers = (any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>());
    (texts, numbers, any::<[u8; 16]>(), any::<u16>(), any::<u8>(), any::<bool>()).prop_map(
        |((name, word, body), (number, other, count, more), id, code, flags, yes)| Parts {
            name,
            word,
            body,
            id,
            number,
            other,
            count,
            more,
            code,
            flags,
            yes,
        },
    )
}

impl Parts {
    /// Every v1 packet with an end of its own, that is all but LOGIN.
    pub(crate) fn v1_packets(&self) -> Vec<Packet<'_>> {
        let (name, body) = (&self.name[..], &self.body[..]);
        let (target, group, user, header) = (name, name, name, &self.word[..]);
        vec![
            Packet::Send { target, body },
            Packet::Ack { id: MessageId(self.id) },
            Packet::Batch { target, entries: BatchEntries::new(body) },
            Packet::GetStatus { user },
            Packet::SendSeq { target, seq: self.number, body },
            Packet::Cbor { target, map: body },
            Packet::UploadPrekeys { map: body },
            Packet::FetchPrekeys { user },
            Packet::Encrypted { target, header, ciphertext: body },
            Packet::GroupCreate { name },
            Packet::GroupLeave { group },
            Packet::GroupMessage { group, header, ciphertext: body },
            Packet::GroupRoster { group },
            Packet::SenderKey { group, data: body },
            Packet::Typing { target, on: true },
            Packet::Typing { target, on: false },
            Packet::Read { id: &self.word, sender: name },
        ]
    }

    /// Both shapes of a v1 login.
    pub(crate) fn v1_logins(&self) -> [Packet<'_>; 2] {
        assert!(self.name.len() + 1 + self.word.len() <= NAME_BYTES_MAX);
        [
            Packet::Login { user: &self.name, token: None },
            Packet::Login { user: &self.name, token: Some(&self.word) },
        ]
    }

    /// Every v1 answer.
    pub(crate) fn v1_answers(&self) -> Vec<Answer<'_>> {
        let (user, body) = (&self.name[..], &self.body[..]);
        vec![
            Answer::LoginOk,
            Answer::AuthFailed,
            Answer::LoginRateLimited,
            Answer::Deliver { id: MessageId(self.id), body },
            Answer::Status { user, online: self.yes, last_seen_s: self.number },
            Answer::Prekeys { map: body },
            Answer::Prekeys { map: b"" },
            Answer::Error { text: &self.word },
            Answer::RateLimited { wait_ms: self.count },
        ]
    }

    fn class(&self) -> Class {
        if self.yes { Class::Guaranteed } else { Class::BestEffort }
    }

    /// Every v2 request.
    pub(crate) fn v2_requests(&self) -> Vec<Request<'_>> {
        vec![
            Request::Hello(Hello {
                version_min: self.flags,
                version_max: self.code as u8,
                capabilities: self.more,
                device: self.number,
                last_seq: self.other,
                credit: self.count,
                user: &self.name,
                token: &self.body,
            }),
            Request::Send(Send {
                seq: self.number.max(1),
                class: self.class(),
                flags: self.flags,
                expiry_s: self.count,
                to: &self.name,
                body: &self.body,
            }),
            Request::Ack { seq: self.number },
            Request::Credit { window: self.count },
            Request::Ping { nonce: self.number },
        ]
    }

    /// Every v2 reply.
    pub(crate) fn v2_replies(&self) -> Vec<Reply<'_>> {
        let (seq, id, code) = (self.number, MessageId(self.id), self.code);
        let (to, text) = (&self.name[..], &self.word[..]);
        vec![
            Reply::Welcome(Welcome {
                version: self.flags,
                capabilities: self.more,
                server_time_ms: self.number,
                first_seq: self.other,
                last_seq: self.other ^ self.number,
                frame_bytes_max: self.count,
                body_bytes_max: self.count ^ self.more,
                credit_max: self.more.rotate_left(16),
            }),
            Reply::Sent { seq, id, class: self.class(), to },
            Reply::Gap { expected: seq, to },
            Reply::Refused { seq, code, retry_after_ms: self.count, to },
            Reply::Deliver(Deliver {
                inbox_seq: seq,
                id,
                flags: self.flags,
                from_device: self.other,
                send_seq: self.other ^ seq,
                time_ms: self.other.rotate_left(32),
                from: to,
                body: &self.body,
            }),
            Reply::Pong { nonce: seq },
            Reply::Goaway { code, reconnect_after_ms: self.count, text },
            Reply::Error { code, text },
            Reply::Delivered { seq, id, to },
        ]
    }
}
