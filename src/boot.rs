//! From a plan to a running node: data directory, listeners, admin, one pinned
//! executor per shard, until a signal ends it.
//!
//! Everything that can be refused is refused before the first client is
//! accepted, and each refusal says what to do.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use glommio::{GlommioError, LocalExecutorBuilder, Placement, ReactorErrorKind};
use net::{Features, Hands, HandsOptions, Mesh, Port, Quota, Waker};
use shard::KeyHasher;
use shard::snapshot::Reserve;
use tuning::{Machine, Plan};
use wal::disk::{DataDir, DataDirError, DirectMode, OpenOptions, SPARE_SEGMENTS, ShardDir};
use wal::{Log, LogOptions};
use wire::id::ShardId;

use crate::admin::{self, Board, ServerInfo};
use crate::config::Config;
use crate::exit::Exit;
use crate::progress::Teller;
use crate::pulse::{self, Watch};
use crate::read_back::{awaited, read_back};
use crate::reshard::{Layout, reshard, sweep};
use crate::signal::Signals;
use crate::terminal;
use crate::turn::{Core, MeshCargo, Shared};

/// How long a taken port is tried again, and how often.
const PORT_PATIENCE: Duration = Duration::from_secs(3);
const PORT_RETRY: Duration = Duration::from_millis(20);
/// How long a data directory in use is tried again: whoever only looks into it
/// keeps its lock for a moment, and a server before this one until it has ended.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// How long the cores have to end: what they need themselves, several times.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// Some settings count days, the shards milliseconds.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

// The least that `limits.pairs_kept_days` may be.
const _: () = assert!(DAY_MS == shard::PAIRS_KEPT_MS_MIN);
// The plan's numbers, where they are used.
const _: () = assert!(tuning::plan::SEGMENT_BYTES_MIN == wal::disk::SEGMENT_BYTES_MIN);
const _: () = assert!(tuning::plan::SEGMENT_BYTES_MAX == wal::disk::SEGMENT_BYTES_MAX);
const _: () = assert!(tuning::plan::READ_BUFFER_BYTES == net::READ_BYTES_MAX as u64);

/// What a core reports to the main thread.
enum Report {
    /// It accepts connections; ring it to make it look around.
    Ready(ShardId, Waker),
    /// It could not start.
    Failed(Exit),
    /// Its thread ends without a word; how it ended says why.
    Lost(ShardId),
    /// It has ended, as asked or because its log failed.
    Ended(Result<(), Exit>),
    /// A signal asks the process to end.
    Asked(&'static str),
}

/// What one core needs to start.
struct Seat {
    id: ShardId,
    dir: ShardDir,
    mode: DirectMode,
    listeners: Vec<OwnedFd>,
    hands: HandsOptions,
    log: LogOptions,
    progress_pause: Duration,
    shard: shard::Options,
    hasher: KeyHasher,
    port: Port<MeshCargo>,
    shared: Arc<Shared>,
}

/// Runs the node until a signal or a failed disk ends it.
///
/// # Errors
/// Why it could not start, or what ended it.
pub(crate) fn run(
    config: &Config,
    machine: &Machine,
    plan: &Plan,
    signals: Signals,
) -> Result<(), Exit> {
    let (reports, from_cores) = channel();
    let is_heard = Arc::new(AtomicBool::new(false));
    forward(signals, reports.clone(), Arc::clone(&is_heard))?;
    // A start that cannot serve leaves no directory behind, whose number of
    // shards would be kept from then on. Where there is one, it may have to be
    // rewritten first, and clients are not to wait for that.
    let early = (!config.data_dir.exists()).then(|| Ports::take(config)).transpose()?;
    let mut data = open_data(config, plan)?;
    let log = log_options(plan, data.manifest().segment_bytes)?;
    let mode = wal::disk::probe(&config.data_dir).at_best(best_mode(machine));
    tracing::debug!(?mode, "how commits become durable on this disk");
    if let Some(shards) = config.shards.filter(|asked| *asked != data.manifest().shards) {
        let options = |shard, shards| shard_options(config, plan, shard, shards);
        let pause = progress_pause(config);
        reshard(&mut data, shards, &Layout { log, mode, pause, options: &options })?;
    }
    let shards = data.manifest().shards;
    let ports = early.map_or_else(|| Ports::take(config), Ok)?;
    let (addresses, listeners) = bind_all(ports.first, shards)?;
    let info = ServerInfo {
        version: env!("CARGO_PKG_VERSION"),
        data_dir: config.data_dir.clone(),
        listen: addresses.clone(),
    };
    let board = Board::new(shards, info);
    let admin = admin::start(ports.admin, Arc::clone(&board))
        .map_err(|error| cannot_bind(config.admin, "--admin", &error))?;
    let shared = Arc::new(Shared::new(shards, board, config.frame_ms, config.stalled_ms));
    let seats = seats(config, machine, plan, &data, (log, mode), listeners, &shared);
    let cores = seats.len();
    is_heard.store(true, Ordering::SeqCst);
    let mut threads = start_cores(seats, plan, reports)?;
    let Some(wakers) = wait_until_ready(&from_cores, &mut threads)? else {
        // A core that reads back takes its time, and nothing is lost by leaving
        // it there: what is stored is stored.
        return Ok(());
    };
    shared.board.note_empty();
    data.note_begun();
    announce(config, &addresses, admin.addr(), shards);
    // Not before all that counts has been read back. Without a thread the next
    // start does it.
    let _ = std::thread::Builder::new().name("sweep".to_owned()).spawn(move || sweep(&data));
    let ended = wait_for_end(&from_cores, &shared, &wakers, cores);
    // The threads are not waited for: each core has let go of everything when
    // it says that it has ended, and an executor has been seen to sleep for
    // ever after that. A core that panicked has aborted the process already.
    drop(threads);
    admin.stop();
    ended
}

fn open_data(config: &Config, plan: &Plan) -> Result<DataDir, Exit> {
    let options = OpenOptions {
        shards: config.shards,
        default_shards: plan.shards,
        segment_bytes: plan.segment_bytes,
    };
    let began = Instant::now();
    loop {
        match DataDir::open(&config.data_dir, options) {
            Ok(data) => return awaited(data),
            Err(DataDirError::Locked { .. }) if began.elapsed() < LOCK_PATIENCE => {
                std::thread::park_timeout(PORT_RETRY);
            }
            Err(error) => return Err(Exit::data(error.to_string())),
        }
    }
}

/// How commits may become durable at best.
fn best_mode(machine: &Machine) -> DirectMode {
    if machine.without.has(tuning::disk::O_DIRECT) {
        DirectMode::BufferedFdatasync
    } else if machine.without.has(tuning::disk::RWF_DSYNC) {
        DirectMode::DirectFdatasync
    } else {
        DirectMode::DirectDsync
    }
}

/// The addresses that this server and no other has: SO_REUSEPORT lets two of
/// the same user share a port silently, and clients would land on either. The
/// first listener of each asks without it.
struct Ports {
    first: Vec<OwnedFd>,
    admin: TcpListener,
}

impl Ports {
    fn take(config: &Config) -> Result<Ports, Exit> {
        let first = |address: &SocketAddr| take(*address, "--listen", net::listen::bind_first);
        Ok(Ports {
            first: config.listen.iter().map(first).collect::<Result<_, _>>()?,
            admin: take(config.admin, "--admin", TcpListener::bind)?,
        })
    }
}

/// The listeners of a server that was just killed are closed in the background,
/// 0.2 to 0.5 s after its end, so a taken port is tried for a while. So do both
/// of two servers that came at the same moment, until one has it.
fn take<T>(
    address: SocketAddr,
    flag: &str,
    bind: impl Fn(SocketAddr) -> std::io::Result<T>,
) -> Result<T, Exit> {
    let began = Instant::now();
    let mut is_told = false;
    loop {
        match bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error)
                if error.kind() == ErrorKind::AddrInUse && began.elapsed() < PORT_PATIENCE =>
            {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::info!("{address} is taken: tried for {PORT_PATIENCE:?}");
                }
                std::thread::park_timeout(PORT_RETRY);
            }
            Err(error) => return Err(cannot_bind(address, flag, &error)),
        }
    }
}

/// Every shard's own listener on every address; ports chosen by the kernel are
/// the same for all of them.
fn bind_all(
    first: Vec<OwnedFd>,
    shards: u16,
) -> Result<(Vec<SocketAddr>, Vec<Vec<OwnedFd>>), Exit> {
    let mut addresses = Vec::new();
    let mut by_shard: Vec<Vec<OwnedFd>> = (0..shards).map(|_| Vec::new()).collect();
    for listener in first {
        let address = net::listen::local_addr(&listener)
            .map_err(|error| Exit::network(format!("a listener without an address: {error}")))?;
        by_shard[0].push(listener);
        for listeners in &mut by_shard[1..] {
            let listener = net::listen::bind(address)
                .map_err(|error| cannot_bind(address, "--listen", &error))?;
            listeners.push(listener);
        }
        addresses.push(address);
    }
    Ok((addresses, by_shard))
}

fn cannot_bind(address: SocketAddr, flag: &str, error: &std::io::Error) -> Exit {
    let what = match error.kind() {
        ErrorKind::AddrInUse => format!(
            "{address} is taken by another program; stop it or choose another port with {flag}"
        ),
        ErrorKind::AddrNotAvailable => {
            format!("{address} is not an address of this machine; see {flag}")
        }
        ErrorKind::PermissionDenied => {
            format!("{address} may not be used without privileges; choose a port above 1023")
        }
        _ => format!("cannot listen on {address}: {error}"),
    };
    Exit::network(what)
}

fn seats(
    config: &Config,
    machine: &Machine,
    plan: &Plan,
    data: &DataDir,
    (log, mode): (LogOptions, DirectMode),
    listeners: Vec<Vec<OwnedFd>>,
    shared: &Arc<Shared>,
) -> Vec<Seat> {
    let manifest = data.manifest();
    let mesh = Mesh::new(usize::from(manifest.shards), plan.mesh_capacity);
    let quota = Quota::new(plan.conns_max);
    let seat = |(id, listeners): (usize, Vec<OwnedFd>)| Seat {
        id: id as ShardId,
        dir: data.shard(id as ShardId),
        mode,
        listeners,
        hands: hands_options(machine, plan, &quota),
        log,
        progress_pause: progress_pause(config),
        shard: shard_options(config, plan, id as ShardId, manifest.shards),
        hasher: KeyHasher::new(manifest.seed),
        port: mesh.port(id),
        shared: Arc::clone(shared),
    };
    listeners.into_iter().enumerate().map(seat).collect()
}

fn log_options(plan: &Plan, segment_bytes: u64) -> Result<LogOptions, Exit> {
    let log = LogOptions { tail_bytes: plan.tail_bytes, segment_bytes, ..LogOptions::default() };
    log.check().map_err(|why| {
        Exit::usage(format!("{why} (the data directory's segments have {segment_bytes} bytes)"))
    })?;
    Ok(log)
}

fn hands_options(machine: &Machine, plan: &Plan, quota: &Arc<Quota>) -> HandsOptions {
    let ring = &machine.ring;
    HandsOptions {
        ring_entries: plan.ring_entries,
        arena_slices: plan.arena_slices,
        send_buffer_bytes_max: plan.send_buffer_bytes_max,
        send_pause_bytes: plan.send_pause_bytes,
        unsent_bytes_max_total: plan.unsent_bytes_max_per_shard,
        partial_bytes_max_total: plan.partial_bytes_max_per_shard,
        conns_max: plan.conns_max_per_shard,
        quota: Arc::clone(quota),
        direct_descriptors: plan.direct_descriptors,
        features: Features {
            multishot_poll: ring.multishot_poll,
            multishot_accept: ring.multishot_accept,
            wait_timeout: ring.ext_arg,
            single_issuer: ring.single_issuer,
            coop_taskrun: ring.coop_taskrun,
            defer_taskrun: ring.defer_taskrun,
            direct_descriptors: ring.sparse_files,
            send_descriptor: ring.msg_ring_fd,
            quiet_send: ring.quiet_send,
        },
    }
}

fn shard_options(config: &Config, plan: &Plan, shard: ShardId, shards: u16) -> shard::Options {
    shard::Options {
        shard,
        shards,
        node: 0,
        users_max: plan.users_max_per_shard,
        waiting_messages_max: plan.waiting_messages_max_per_shard,
        pairs_max: plan.pairs_max_per_shard,
        inbox_messages_max: usize::try_from(config.inbox_messages_max).unwrap_or(usize::MAX),
        inbox_bytes_max: config.inbox_bytes_max,
        retention_ms: u64::from(config.retention_days) * DAY_MS,
        pairs_kept_ms: u64::from(config.pairs_kept_days) * DAY_MS,
        handshake_ms: config.handshake_ms,
        logins_per_second: config.logins_per_second,
        vouch_after_ms: shard::VOUCH_AFTER_MS,
    }
}

/// Between two words of how far a start is.
fn progress_pause(config: &Config) -> Duration {
    Duration::from_millis(config.progress_ms)
}

/// A core's threads by shard; taken by who looks how one ended.
type Threads = Vec<Option<glommio::ExecutorJoinHandle<()>>>;

/// What a core's thread speaks with. An executor that cannot be made drops it
/// unused, so its end is heard as well.
struct Voice {
    id: ShardId,
    reports: Sender<Report>,
    has_ended: bool,
}

impl Voice {
    /// The main thread listens for as long as cores live.
    fn say(&self, report: Report) {
        let _ = self.reports.send(report);
    }

    fn say_last(mut self, report: Report) {
        self.has_ended = true;
        self.say(report);
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        if !self.has_ended {
            self.say(Report::Lost(self.id));
        }
    }
}

fn start_cores(seats: Vec<Seat>, plan: &Plan, reports: Sender<Report>) -> Result<Threads, Exit> {
    let mut threads = Vec::new();
    for seat in seats {
        let id = seat.id;
        let voice = Voice { id, reports: reports.clone(), has_ended: false };
        let core = plan.core_of_shard[usize::from(seat.id) % plan.core_of_shard.len()];
        let placement = if plan.pin { Placement::Fixed(core) } else { Placement::Unbound };
        let thread = LocalExecutorBuilder::new(placement)
            .name(&format!("shard-{}", seat.id))
            .io_memory(plan.executor_memory_bytes)
            .spawn(move || turn_until_stopped(seat, voice))
            .map_err(|error| cannot_execute(id, &error))?;
        threads.push(Some(thread));
    }
    Ok(threads)
}

fn cannot_execute(id: ShardId, error: &GlommioError<()>) -> Exit {
    let why = match error {
        GlommioError::ReactorError(ReactorErrorKind::MemLockLimit(there, wanted)) => format!(
            "it needs {} KiB of lockable memory and RLIMIT_MEMLOCK allows {}: start with `ulimit -l \
             unlimited` or LimitMEMLOCK=infinity in the systemd unit",
            wanted / 1024,
            there / 1024
        ),
        GlommioError::IoError(error) if error.kind() == ErrorKind::WouldBlock => {
            return cannot_thread(error);
        }
        _ => format!("{error}; {DOCTOR}"),
    };
    Exit::machine(format!("cannot start the executor of shard {id}: {why}"))
}

/// The life of one core's thread.
async fn turn_until_stopped(seat: Seat, voice: Voice) {
    let (last, waker) = match start_core(seat) {
        Err(exit) => (Report::Failed(exit), None),
        Ok((core, waker)) => {
            voice.say(Report::Ready(voice.id, waker.clone()));
            (Report::Ended(core.run().await), Some(waker))
        }
    };
    drop(waker);
    voice.say_last(last);
}

/// Reads the log back and joins the shard to its hands.
fn start_core(seat: Seat) -> Result<(Core, Waker), Exit> {
    // Those who serve sooner leave this much of the disk alone.
    let snapshot_bytes = seat.dir.newest_snapshot_bytes();
    let reserve = Reserve::new(snapshot_bytes, seat.log.segment_bytes, 0);
    seat.shared.reserve(seat.id, reserve, SPARE_SEGMENTS as u64);
    let teller = Teller::to_log(seat.progress_pause);
    let (replay, recovered) = read_back(&seat.dir, seat.shard, seat.hasher, &seat.log, teller)?;
    let segments = seat
        .dir
        .open_segments(recovered.start.lsn, seat.mode)
        .map_err(|error| Exit::data(error.to_string()))?;
    let log = Log::new(seat.log, recovered.start);
    let shard = replay.finish(&recovered.start, log, segments.present());
    let hands = Hands::new(seat.hands, seat.listeners)
        .map_err(|error| Exit::machine(format!("cannot set up io_uring: {error}; {DOCTOR}")))?;
    let waker = hands.waker();
    let core = Core::new(seat.id, seat.shared, hands, shard, seat.dir, segments, seat.port);
    Ok((core, waker))
}

const DOCTOR: &str = "`iris-shard doctor` shows which limits hold here";

/// The cores' bells, or nothing when a signal ends the start.
fn wait_until_ready(
    from_cores: &Receiver<Report>,
    threads: &mut Threads,
) -> Result<Option<Vec<Waker>>, Exit> {
    let mut wakers: Vec<Option<Waker>> = vec![None; threads.len()];
    while wakers.iter().any(Option::is_none) {
        match from_cores.recv() {
            Ok(Report::Ready(id, waker)) => wakers[usize::from(id)] = Some(waker),
            Ok(Report::Failed(exit)) => return Err(exit),
            Ok(Report::Lost(id)) => return Err(why_lost(id, threads)),
            Ok(Report::Asked(name)) => {
                tracing::info!("{name} during the start: stopped");
                return Ok(None);
            }
            Ok(Report::Ended(_)) | Err(_) => {
                return Err(Exit::internal("a core ended before it had started"));
            }
        }
    }
    Ok(wakers.into_iter().collect())
}

/// Why a core's thread ended before the core was there.
fn why_lost(id: ShardId, threads: &mut Threads) -> Exit {
    let thread = threads[usize::from(id)].take().expect("a thread is lost once");
    match thread.join() {
        Ok(()) => Exit::internal(format!("shard {id} ended without saying why")),
        Err(error) => cannot_execute(id, &error),
    }
}

/// The lines a person and a script want to see.
fn announce(config: &Config, addresses: &[SocketAddr], admin: SocketAddr, shards: u16) {
    let listen: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    terminal::mention(&format!("ready listen={} admin={admin}\n", listen.join(",")));
    let first = &listen[0];
    let serve =
        if shards == 1 { "1 shard serves".into() } else { format!("{shards} shards serve") };
    tracing::info!(
        "{serve} {} (protocols v1 and v2); data in {}",
        listen.join(", "),
        absolute(&config.data_dir)
    );
    tracing::info!("latency http://{admin}/latency, metrics http://{admin}/metrics");
    let loadgen = load_generator();
    tracing::info!("try: {loadgen} pairs --target {first} --connections 1000 --duration 10");
}

/// How to start the load generator here: it is in no search path, but a build
/// puts it beside this program.
fn load_generator() -> String {
    let beside = std::env::current_exe().map(|program| program.with_file_name("iris-loadgen"));
    match beside {
        Ok(path) if path.is_file() => path.display().to_string(),
        _ => "cargo run --release -p iris-loadgen --".to_owned(),
    }
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// Waits for the signal on a thread of its own, which ends with the process.
/// Until there are cores the main thread has no ear for it, and what it does
/// may be cut short at any point, as by a crash.
#[allow(clippy::disallowed_methods, reason = "nobody could return an Exit, and nothing is lost")]
fn forward(
    signals: Signals,
    reports: Sender<Report>,
    is_heard: Arc<AtomicBool>,
) -> Result<(), Exit> {
    let wait = move || {
        let name = signals.wait();
        if !is_heard.load(Ordering::SeqCst) {
            terminal::tell(&format!("iris-shard: {name} during the start: stopped"));
            std::process::exit(0);
        }
        // Nobody listens any more when the process is ending already.
        let _ = reports.send(Report::Asked(name));
    };
    let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(wait);
    thread.map(drop).map_err(|error| cannot_thread(&error))
}

/// The sentence for a thread that the machine does not give.
pub(crate) fn cannot_thread(error: &std::io::Error) -> Exit {
    Exit::machine(format!(
        "cannot start a thread: {error}; see `ulimit -u` and `ulimit -v`, and pids.max of the \
         control group (systemd: TasksMax=, docker: --pids-limit)"
    ))
}

/// What a core or a signal says next; `None` when nobody does in time. While it
/// waits it looks after the cores.
fn next_report(
    from_cores: &Receiver<Report>,
    by: Option<Instant>,
    mut look: impl FnMut(),
) -> Option<Report> {
    loop {
        let left = by.map(|by| by.saturating_duration_since(Instant::now()));
        match from_cores.recv_timeout(left.map_or(pulse::LOOK, |left| left.min(pulse::LOOK))) {
            Ok(report) => return Some(report),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) if left.is_some_and(|left| left.is_zero()) => {
                return None;
            }
            Err(RecvTimeoutError::Timeout) => look(),
        }
    }
}

/// Waits until a signal or a core's failed log ends all of them.
fn wait_for_end(
    from_cores: &Receiver<Report>,
    shared: &Shared,
    wakers: &[Waker],
    cores: usize,
) -> Result<(), Exit> {
    let mut running = cores;
    let mut result = Ok(());
    let mut stop_by = None;
    let mut watch = Watch::new(cores);
    while running > 0 {
        match next_report(from_cores, stop_by, || watch.look(&shared.pulses, wakers)) {
            Some(Report::Asked(name)) => tracing::info!("{name}: asking every connection to leave"),
            Some(Report::Ended(ended)) => {
                running -= 1;
                result = result.and(ended);
            }
            Some(Report::Failed(exit)) => return Err(exit),
            Some(Report::Lost(id)) => {
                return Err(Exit::internal(format!("shard {id} ended without saying why")));
            }
            Some(Report::Ready(..)) => return Err(Exit::internal("a core started twice")),
            None => {
                return result.and(Err(Exit::internal(format!(
                    "{running} of {cores} shards have not ended {} s after they were asked to; \
                     the process ends without them, and what was acknowledged is on the disk",
                    STOP_PATIENCE.as_secs()
                ))));
            }
        }
        stop_by.get_or_insert_with(|| Instant::now() + STOP_PATIENCE);
        shared.stop.store(true, Ordering::Relaxed);
        for waker in wakers {
            waker.wake();
        }
    }
    if result.is_ok() {
        tracing::info!("stopped; everything acknowledged is on the disk");
    }
    result
}
