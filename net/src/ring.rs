//! The hot ring: submits operations and counts every one of them until its last completion.
//!
//! It knows what an operation needs, not what it is for: who asked is a [`Token`], memory comes as
//! an [`Area`] that its pool keeps still. When the submission queue is full, or the kernel wants
//! completions reaped first, operations wait in a backlog; nothing is ever lost or reordered.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::squeue::{Entry, Flags as EntryFlags};
use io_uring::types::{DestinationSlot, Fd, Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode};

use crate::buf::Area;
use crate::disk::WriteMode;
use crate::options::{Features, HandsOptions};

/// What an operation is aimed at.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// A descriptor of the process.
    Plain(RawFd),
    /// An index into the ring's own table.
    Direct(u32),
}

/// Builds one operation for either kind of target.
macro_rules! aimed {
    ($target:expr, $fd:ident => $build:expr) => {
        match $target {
            Target::Plain(raw) => {
                let $fd = Fd(raw);
                $build
            }
            Target::Direct(index) => {
                let $fd = Fixed(index);
                $build
            }
        }
    };
}

/// Which operation a completion belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    /// Nobody wants to know.
    Forget,
    Poll,
    Receive,
    Send,
    /// Completes only if it did not take everything; who asks hears of a `Send` either way.
    QuietSend,
    Hush,
    Close,
    Move,
    Accept,
    Wake,
    Write,
    Sync,
    Read,
}

impl Op {
    const ALL: [Op; 13] = [
        Op::Forget,
        Op::Poll,
        Op::Receive,
        Op::Send,
        Op::QuietSend,
        Op::Hush,
        Op::Close,
        Op::Move,
        Op::Accept,
        Op::Wake,
        Op::Write,
        Op::Sync,
        Op::Read,
    ];
}

/// What travels through the kernel with an operation: what it is and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) op: Op,
    /// Slot of the connection, the listener or the disk operation.
    pub(crate) slot: u32,
}

impl Token {
    fn pack(self) -> u64 {
        (self.op as u64) << 32 | u64::from(self.slot)
    }

    fn unpack(bits: u64) -> Token {
        Token { op: Op::ALL[(bits >> 32) as usize], slot: bits as u32 }
    }
}

const FORGET: Token = Token { op: Op::Forget, slot: 0 };

/// One completion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) token: Token,
    /// The operation's value, or the negated error number.
    pub(crate) result: i32,
    /// The operation goes on and will complete again.
    pub(crate) more: bool,
}

/// An operation that found no room in the submission queue.
#[derive(Debug)]
enum Queued {
    One(Entry),
    /// Linked: both or neither go into one submission.
    Pair([Entry; 2]),
}

/// The ring and what waits for it.
pub(crate) struct Ring {
    uring: IoUring,
    features: Features,
    backlog: VecDeque<Queued>,
    /// Operations without their last completion.
    inflight: usize,
    /// Quiet sends with their lengths, in order; without one if the failure has been taken. The
    /// others have taken everything once the kernel has seen all of them.
    quiet: Vec<(u32, u32)>,
    /// Calls of `io_uring_enter`.
    enters: u64,
    /// Read by the kernel when a timeout entry is submitted, so it must not move until then.
    timespec: Box<Timespec>,
    /// Size of the table of direct descriptors, 0 without one.
    table: u32,
}

impl Ring {
    pub(crate) fn new(options: &HandsOptions) -> io::Result<Ring> {
        let (uring, found) = setup(options)?;
        let mut ring = Ring {
            features: options.features.and(found),
            uring,
            backlog: VecDeque::new(),
            inflight: 0,
            quiet: Vec::new(),
            enters: 0,
            timespec: Box::new(Timespec::new()),
            table: 0,
        };
        if options.direct_descriptors {
            ring.make_table(options.conns_max)?;
        }
        Ok(ring)
    }

    pub(crate) fn features(&self) -> Features {
        self.features
    }

    pub(crate) fn inflight(&self) -> usize {
        self.inflight
    }

    pub(crate) fn enters(&self) -> u64 {
        self.enters
    }

    /// Size of the table of direct descriptors, 0 without one.
    pub(crate) fn table(&self) -> u32 {
        self.table
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }

    // ---- operations on sockets -------------------------------------------------------------

    pub(crate) fn accept(&mut self, listener: RawFd, slot: u32) {
        let direct = self.table > 0;
        // A direct descriptor is never inherited, and the kernel refuses the flag for it.
        let flags = if direct { 0 } else { libc::SOCK_CLOEXEC };
        let entry = if self.features.multishot_accept {
            opcode::AcceptMulti::new(Fd(listener)).allocate_file_index(direct).flags(flags).build()
        } else {
            opcode::Accept::new(Fd(listener), std::ptr::null_mut(), std::ptr::null_mut())
                .file_index(direct.then(DestinationSlot::auto_target))
                .flags(flags)
                .build()
        };
        self.push(entry, Token { op: Op::Accept, slot });
    }

    pub(crate) fn poll(&mut self, target: Target, slot: u32) {
        let wanted = (libc::POLLIN | libc::POLLRDHUP) as u32;
        let multi = self.features.multishot_poll;
        let entry = aimed!(target, fd => opcode::PollAdd::new(fd, wanted).multi(multi).build());
        self.push(entry, Token { op: Op::Poll, slot });
    }

    /// Receives what is there; answers EAGAIN instead of waiting.
    pub(crate) fn receive(&mut self, target: Target, area: &Area, slot: u32) {
        let entry = aimed!(target, fd => opcode::Recv::new(fd, area.ptr(), area.len())
            .flags(libc::MSG_DONTWAIT)
            .build());
        self.push(entry, Token { op: Op::Receive, slot });
    }

    pub(crate) fn send(&mut self, target: Target, area: &Area, slot: u32) {
        let entry = aimed!(target, fd => opcode::Send::new(fd, area.ptr(), area.len())
            .flags(libc::MSG_NOSIGNAL)
            .build());
        self.push(entry, Token { op: Op::Send, slot });
    }

    /// A send that never waits and that completes, without the kernel's saying so, when it is
    /// submitted. What the socket has no room for comes as a short one.
    pub(crate) fn send_quietly(&mut self, target: Target, area: &Area, slot: u32) {
        // With `MSG_WAITALL` a short one is a failure, and those always complete aloud.
        const FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_WAITALL;
        let entry = aimed!(target, fd => opcode::Send::new(fd, area.ptr(), area.len())
            .flags(FLAGS)
            .build());
        self.quiet.push((slot, area.len()));
        let token = Token { op: Op::QuietSend, slot };
        self.push(entry.flags(EntryFlags::SKIP_SUCCESS), token);
    }

    /// Says "no more from here" to the peer; input still arrives. Whether it is
    /// under way: of a direct descriptor it is done by another thread of the
    /// kernel's, which looks only then what stands at that index. Until it has
    /// completed the index must not become another connection's.
    #[must_use]
    pub(crate) fn shut_sending(&mut self, target: Target, slot: u32) -> bool {
        match target {
            // SAFETY: takes no pointers; the descriptor belongs to the table of connections.
            Target::Plain(fd) => unsafe {
                // It fails only when the peer is gone already.
                libc::shutdown(fd, libc::SHUT_WR);
                false
            },
            Target::Direct(index) => {
                let entry = opcode::Shutdown::new(Fixed(index), libc::SHUT_WR).build();
                self.push(entry, Token { op: Op::Hush, slot });
                true
            }
        }
    }

    pub(crate) fn close(&mut self, target: Target, token: Token) {
        let entry = aimed!(target, fd => opcode::Close::new(fd).build());
        self.push(entry, token);
    }

    /// Closes a socket that never got a place in the table.
    pub(crate) fn discard(&mut self, target: Target) {
        self.close(target, FORGET);
    }

    /// Hands a direct descriptor to another ring, into a free place of its table. The completion
    /// here carries the place.
    pub(crate) fn send_descriptor(&mut self, index: u32, ring: RawFd, slot: u32) {
        const CQE_SKIP: u32 = 1;
        let entry =
            opcode::MsgRingSendFd::new(Fd(ring), Fixed(index), DestinationSlot::auto_target(), 0)
                // The other core learns of it by the mesh; a completion of ours in its ring would only be
                // one that it did not ask for.
                .opcode_flags(CQE_SKIP)
                .build();
        self.push(entry, Token { op: Op::Move, slot });
    }

    /// Ends an operation early. It still completes, usually with ECANCELED.
    pub(crate) fn cancel(&mut self, token: Token) {
        // For polls, too: POLL_REMOVE gives up (EALREADY) on one that has just fired, and a
        // multishot poll then goes on for ever.
        let entry = opcode::AsyncCancel::new(token.pack()).build();
        self.push(entry, FORGET);
    }

    // ---- operations on files ---------------------------------------------------------------

    /// Reads the counter of the wake-up eventfd as soon as there is one.
    pub(crate) fn read_wake(&mut self, fd: RawFd, area: &Area) {
        let entry = opcode::Read::new(Fd(fd), area.ptr(), 8).build();
        self.push(entry, Token { op: Op::Wake, slot: 0 });
    }

    pub(crate) fn read(&mut self, fd: RawFd, area: &Area, offset: u64, slot: u32) {
        let entry = opcode::Read::new(Fd(fd), area.ptr(), area.len()).offset(offset).build();
        self.push(entry, Token { op: Op::Read, slot });
    }

    pub(crate) fn write(
        &mut self,
        fd: RawFd,
        area: &Area,
        offset: u64,
        mode: WriteMode,
        slot: u32,
    ) {
        let write = opcode::Write::new(Fd(fd), area.ptr(), area.len()).offset(offset);
        let token = Token { op: Op::Write, slot };
        match mode {
            WriteMode::Dsync => self.push(write.rw_flags(libc::RWF_DSYNC).build(), token),
            WriteMode::ThenFdatasync => {
                let sync = opcode::Fsync::new(Fd(fd)).flags(FsyncFlags::DATASYNC);
                self.push_linked([
                    write.build().flags(EntryFlags::IO_LINK).user_data(token.pack()),
                    sync.build().user_data(Token { op: Op::Sync, slot }.pack()),
                ]);
            }
        }
    }

    // ---- submitting and waiting ------------------------------------------------------------

    fn push(&mut self, entry: Entry, token: Token) {
        let entry = entry.user_data(token.pack());
        self.inflight += 1;
        if !self.backlog.is_empty() || !self.try_push_one(&entry) {
            self.backlog.push_back(Queued::One(entry));
        }
    }

    fn push_linked(&mut self, pair: [Entry; 2]) {
        self.inflight += 2;
        if !self.backlog.is_empty() || !self.try_push_pair(&pair) {
            self.backlog.push_back(Queued::Pair(pair));
        }
    }

    fn try_push_one(&mut self, entry: &Entry) -> bool {
        // SAFETY: every pointer in an entry comes from an `Area` (kept still by its pool until the
        // completion) or from `timespec`, which is boxed and copied by the kernel at submission.
        unsafe { self.uring.submission().push(entry).is_ok() }
    }

    /// Both, or none.
    fn try_push_pair(&mut self, pair: &[Entry; 2]) -> bool {
        // SAFETY: as for one.
        unsafe { self.uring.submission().push_multiple(pair).is_ok() }
    }

    /// Moves the backlog into the submission queue as far as it goes.
    fn refill(&mut self) {
        while let Some(queued) = self.backlog.pop_front() {
            let fits = match &queued {
                Queued::One(entry) => self.try_push_one(entry),
                Queued::Pair(pair) => self.try_push_pair(pair),
            };
            if !fits {
                self.backlog.push_front(queued);
                return;
            }
        }
    }

    /// Hands everything queued to the kernel; does not wait and does nothing if there is nothing.
    pub(crate) fn submit(&mut self) {
        loop {
            self.refill();
            let queue = self.uring.submission();
            let nothing = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
            drop(queue);
            if nothing {
                return;
            }
            let result = self.uring.submit();
            if !self.entered(result) || self.backlog.is_empty() {
                return;
            }
        }
    }

    /// Submits, then sleeps until there is a completion or `timeout` has passed.
    pub(crate) fn wait(&mut self, timeout: Duration) {
        self.submit();
        if self.has_completions() || self.has_quiet() {
            return;
        }
        let result = if self.features.wait_timeout {
            let timespec = Timespec::from(timeout);
            let arguments = SubmitArgs::new().timespec(&timespec);
            self.uring.submitter().submit_with_args(1, &arguments)
        } else {
            // Completes together with whatever else completes first, so none is ever left over.
            *self.timespec = Timespec::from(timeout);
            let entry = opcode::Timeout::new(&raw const *self.timespec).count(1).build();
            self.push(entry, FORGET);
            self.uring.submit_and_wait(1)
        };
        self.entered(result);
    }

    /// Submits and lets the kernel post what has completed, without waiting.
    pub(crate) fn poke(&mut self) {
        const GETEVENTS: u32 = 1;
        self.submit();
        let none: Option<&libc::sigset_t> = None;
        // SAFETY: nothing to submit, nothing to wait for, no signal mask.
        let result = unsafe { self.uring.submitter().enter(0, 0, GETEVENTS, none) };
        self.entered(result);
    }

    /// Judges the result of an enter. `false`: completions must be reaped before going on.
    fn entered(&mut self, result: io::Result<usize>) -> bool {
        self.enters += 1;
        let Err(error) = result else { return true };
        match error.raw_os_error() {
            // A signal, or the time is up.
            Some(libc::EINTR | libc::ETIME) => true,
            // The completion queue is full, or the kernel is short of memory.
            Some(libc::EBUSY | libc::EAGAIN | libc::ENOMEM) => false,
            // Completions are lost, or the ring is broken: what is in flight can no longer be
            // known, and guessing about memory or durability is not an option.
            _ => panic!("io_uring_enter failed: {error}"),
        }
    }

    pub(crate) fn has_completions(&self) -> bool {
        // SAFETY: a second view of the queue is dangerous only if both take from it; this one
        // only looks, and no other exists while `self` is borrowed (each is a temporary).
        unsafe { !self.uring.completion_shared().is_empty() }
    }

    /// Takes everything that has completed.
    pub(crate) fn take(&mut self, into: &mut Vec<Completion>) {
        let is_all_seen = self.is_all_seen();
        let (mut ended, mut at, quiet) = (0, 0, &mut self.quiet);
        into.extend(self.uring.completion().map(|entry| {
            let more = cqueue::more(entry.flags());
            ended += usize::from(!more);
            let mut token = Token::unpack(entry.user_data());
            if token.op == Op::QuietSend {
                // Failures come in the order of the sends, as a rule.
                let is_it = |(slot, len): &(u32, u32)| *slot == token.slot && *len > 0;
                let ahead = quiet[at..].iter().position(is_it).map(|far| at + far);
                let found = ahead.or_else(|| quiet.iter().position(is_it));
                at = found.expect("a failure has its send");
                quiet[at].1 = 0;
                token.op = Op::Send;
            }
            Completion { token, result: entry.result(), more }
        }));
        if is_all_seen {
            let quiet = self.quiet.drain(..).filter(|(_, len)| *len > 0);
            into.extend(quiet.map(|(slot, len)| {
                ended += 1;
                let token = Token { op: Op::Send, slot };
                Completion { token, result: len as i32, more: false }
            }));
        }
        self.inflight -= ended;
    }

    /// Whether quiet sends wait to be taken: their failures have come, and the others have ended.
    pub(crate) fn has_quiet(&mut self) -> bool {
        !self.quiet.is_empty() && self.is_all_seen()
    }

    /// Whether the kernel has seen everything and has kept no completion back.
    fn is_all_seen(&mut self) -> bool {
        let queue = self.uring.submission();
        self.backlog.is_empty() && queue.is_empty() && !queue.cq_overflow()
    }

    // ---- the doorbell ----------------------------------------------------------------------

    /// Has `fd` (an eventfd) written to on completions, but only while the bell is on.
    pub(crate) fn register_doorbell(&mut self, fd: RawFd) -> io::Result<()> {
        self.uring.submitter().register_eventfd(fd)?;
        self.doorbell_off();
        Ok(())
    }

    pub(crate) fn doorbell_on(&mut self) {
        self.uring.completion().enable_eventfd();
    }

    pub(crate) fn doorbell_off(&mut self) {
        self.uring.completion().disable_eventfd();
    }

    // ---- the table of direct descriptors ---------------------------------------------------

    fn make_table(&mut self, conns_max: usize) -> io::Result<()> {
        if !self.features.direct_descriptors {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "direct descriptors need Linux 5.19",
            ));
        }
        const KERNEL_MAX: usize = 1 << 20;
        let wanted = (conns_max + conns_max / 4 + 16).min(KERNEL_MAX) as u32;
        let submitter = self.uring.submitter();
        self.table = match submitter.register_files_sparse(wanted) {
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                let limit = descriptor_limit()?.min(wanted);
                submitter.register_files_sparse(limit)?;
                limit
            }
            result => result.map(|()| wanted)?,
        };
        Ok(())
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("features", &self.features)
            .field("inflight", &self.inflight)
            .field("backlog", &self.backlog.len())
            .finish_non_exhaustive()
    }
}

/// Takes a plain descriptor out of the table's keeping.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller forgets the descriptor; the kernel gave it to us by accept.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// `RLIMIT_NOFILE`, the soft one.
fn descriptor_limit() -> io::Result<u32> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes into the structure given.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur.min(u64::from(u32::MAX)) as u32)
}

/// Makes the ring with the best setup the kernel takes, and says what it has.
fn setup(options: &HandsOptions) -> io::Result<(IoUring, Features)> {
    let wish = options.features;
    let tries =
        [(true, true, true), (true, true, false), (false, true, false), (false, false, false)];
    let mut last = None;
    for (single, coop, defer) in tries {
        let allowed = (!single || wish.single_issuer)
            && (!coop || wish.coop_taskrun)
            && (!defer || wish.defer_taskrun);
        if !allowed {
            continue;
        }
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(options.ring_entries.next_power_of_two() * 4);
        if single {
            builder.setup_single_issuer();
        }
        if defer {
            builder.setup_defer_taskrun().setup_taskrun_flag();
        } else if coop {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        if coop {
            // As old as COOP_TASKRUN: one bad entry does not hold up those behind it.
            builder.setup_submit_all();
        }
        match builder.build(options.ring_entries) {
            Ok(uring) => {
                let found = Features {
                    single_issuer: single,
                    coop_taskrun: coop,
                    defer_taskrun: defer,
                    ..probe(&uring)?
                };
                return Ok((uring, found));
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EINVAL)))
}

/// Finds features that cannot be asked for by name through operations of the same release.
fn probe(uring: &IoUring) -> io::Result<Features> {
    let mut probe = Probe::new();
    uring.submitter().register_probe(&mut probe)?;
    let socket_519 = probe.is_supported(opcode::Socket::CODE);
    let send_zc_600 = probe.is_supported(opcode::SendZc::CODE);
    let sendmsg_zc_601 = probe.is_supported(opcode::SendMsgZc::CODE);
    Ok(Features {
        multishot_poll: uring.params().is_feature_resource_tagging(), // 5.13
        multishot_accept: socket_519,
        wait_timeout: uring.params().is_feature_ext_arg(), // 5.11
        direct_descriptors: socket_519,
        send_descriptor: send_zc_600 && probe.is_supported(opcode::MsgRingData::CODE),
        // Completions only of failures came with 5.17, `MSG_WAITALL` for sends with 5.19, and that
        // a short one says how much it took with 6.1.
        quiet_send: sendmsg_zc_601 && uring.params().is_feature_skip_cqe_on_success(),
        ..Features::FLOOR
    })
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for op in Op::ALL {
            let token = Token { op, slot: 0xdead_beef };
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }

    #[test]
    fn a_full_queue_loses_nothing() {
        let mut ring =
            Ring::new(&HandsOptions { ring_entries: 4, ..HandsOptions::default() }).unwrap();
        for _ in 0..1000 {
            ring.cancel(Token { op: Op::Poll, slot: 1 });
        }
        assert_eq!(ring.inflight(), 1000);
        let mut completions = Vec::new();
        while ring.inflight() > 0 {
            ring.wait(Duration::from_secs(10));
            ring.take(&mut completions);
        }
        assert_eq!(completions.len(), 1000);
    }

    /// More sends fail than the completion queue holds, so that the kernel keeps failures back: each
    /// send is told of once, and as what it was.
    #[test]
    fn quiet_sends_survive_a_full_completion_queue() {
        const SENDS: usize = 200;
        let body = [7; 64];
        let mut ring =
            Ring::new(&HandsOptions { ring_entries: 4, ..HandsOptions::default() }).unwrap();
        if !ring.features().quiet_send {
            println!("skipped: this kernel has no quiet sends (Linux 6.1)");
            return;
        }
        let sockets: Vec<_> = (0..SENDS).map(|_| UnixStream::pair().unwrap()).collect();
        let is_gone = |slot: usize| slot % 3 != 1;
        for (_, far) in sockets.iter().enumerate().filter(|(slot, _)| is_gone(*slot)).map(|it| it.1)
        {
            far.shutdown(Shutdown::Read).unwrap();
        }
        for (slot, (near, _)) in sockets.iter().enumerate() {
            // SAFETY: it stays until the ring has told of every send, or is gone itself.
            let area = unsafe { Area::foreign(body.as_ptr(), body.len() as u32) };
            ring.send_quietly(Target::Plain(near.as_raw_fd()), &area, slot as u32);
        }
        ring.submit();
        assert!(ring.uring.submission().cq_overflow(), "the queue has held all of them");
        let mut completions = Vec::new();
        while ring.inflight() > 0 {
            ring.wait(Duration::from_secs(10));
            ring.take(&mut completions);
        }
        completions.sort_by_key(|it| it.token.slot);
        let told: Vec<_> = completions.iter().map(|it| (it.token, it.result, it.more)).collect();
        let expected = (0..SENDS).map(|slot| {
            let result = if is_gone(slot) { -libc::EPIPE } else { body.len() as i32 };
            (Token { op: Op::Send, slot: slot as u32 }, result, false)
        });
        assert_eq!(told, expected.collect::<Vec<_>>());
        assert!(!ring.has_quiet());
    }

    #[test]
    fn the_floor_is_reached_by_wish() {
        let ring =
            Ring::new(&HandsOptions { features: Features::FLOOR, ..HandsOptions::default() })
                .unwrap();
        assert_eq!(ring.features(), Features::FLOOR);
    }

    #[test]
    fn waits_end_by_timeout_both_ways() {
        for wait_timeout in [true, false] {
            let features = Features { wait_timeout, ..Features::ALL };
            let mut ring =
                Ring::new(&HandsOptions { features, ..HandsOptions::default() }).unwrap();
            ring.wait(Duration::from_millis(1));
        }
    }
}
