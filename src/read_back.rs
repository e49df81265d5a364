//! One shard's state read back from its directory, and what is said of it.

use std::path::Path;

use shard::{KeyHasher, Options, Replay};
use wal::LogOptions;
use wal::disk::{DataDir, DataDirError, Recovered, ShardDir};
use wire::id::ShardId;

use crate::exit::Exit;
use crate::progress::Teller;

/// Reads a shard's snapshot and log back; says how far it is and what it found.
///
/// # Errors
/// Why nobody can be served from it.
pub(crate) fn read_back(
    dir: &ShardDir,
    options: Options,
    hasher: KeyHasher,
    log: &LogOptions,
    mut teller: Teller,
) -> Result<(Replay, Recovered), Exit> {
    let shard = options.shard;
    let mut replay = Replay::new(options, hasher, log.segment_bytes);
    let recovered = dir
        .recover(&mut replay, &mut |at| teller.reading(shard, at))
        .map_err(|error| Exit::data(error.to_string()))?;
    tell_recovery(shard, &recovered, log.segment_bytes);
    if replay.contradictions() > 0 {
        return Err(Exit::data(format!(
            "the log of shard {shard} contradicts itself in {} records; nothing was changed, \
             please report this with the data directory",
            replay.contradictions()
        )));
    }
    Ok((replay, recovered))
}

/// Reads a shard back as a start does and changes nothing, not even what a start
/// sets aside.
///
/// # Errors
/// Why a start would be refused, in words.
pub(crate) fn look_back(
    dir: &ShardDir,
    id: ShardId,
    replay: &mut Replay,
    teller: &mut Teller,
) -> Result<Recovered, String> {
    let read = dir.look_back(replay, &mut |at| teller.reading(id, at));
    let recovered = read.map_err(|error| match dir.path().to_owned() {
        path if path.exists() => error.to_string(),
        path => DataDirError::ShardMissing { path }.to_string(),
    })?;
    match replay.contradictions() {
        0 => Ok(recovered),
        records => Err(format!("the log contradicts itself in {records} records")),
    }
}

fn tell_recovery(shard: ShardId, recovered: &Recovered, segment_bytes: u64) {
    let ms = recovered.elapsed.as_millis();
    let log = bytes(recovered.replayed_bytes);
    match &recovered.snapshot {
        None => tracing::info!("shard {shard}: read back {log} of log in {ms} ms"),
        Some(loaded) => tracing::info!(
            "shard {shard}: read back a snapshot of {} and {log} of log since then in {ms} ms",
            bytes(loaded.bytes)
        ),
    }
    for (path, why) in &recovered.damaged {
        tracing::warn!(
            "shard {shard}: {} could not be used: {why}; an older snapshot or the whole log took \
             its place and nothing is lost, but the disk should be looked at; the file was set \
             aside",
            path.display()
        );
    }
    if let Some(torn) = &recovered.torn {
        tracing::warn!(
            "shard {shard}: the log ends in a write that is not whole, as a crash leaves it; {} \
             bytes at position {} were cut; unless the disk lost bytes that it had confirmed, \
             nothing that was confirmed as guaranteed is among them",
            torn.bytes,
            torn.lsn
        );
    }
    if let Some(last) = recovered.segments.last()
        && recovered.start.lsn == (last + 1) * segment_bytes
    {
        tracing::warn!("shard {shard}: {}", ends_with(*last));
    }
    for path in &recovered.foreign {
        tracing::warn!("shard {shard}: {} is not part of the log; left alone", path.display());
    }
}

/// Waits until no write of a server that is gone is under way to this directory.
pub(crate) fn awaited(data: DataDir) -> Result<DataDir, Exit> {
    let mut tell = |path: &Path| tracing::warn!("{}", waits_for(path));
    data.await_writes(&mut tell).map_err(|error| Exit::data(error.to_string()))?;
    Ok(data)
}

/// What it means when a segment is locked though the directory is not.
pub(crate) fn waits_for(segment: &Path) -> String {
    format!(
        "waiting for {}: a write of a server that is gone is still under way to it, or somebody \
         else has locked it",
        segment.display()
    )
}

/// What it means when nothing was made ahead of the log.
pub(crate) fn ends_with(segment: u64) -> String {
    format!(
        "the log ends where its last file does, segment {segment}, and a server keeps one more \
         ahead unless the disk is full; if files behind it were deleted, bring them back before \
         anything is sent"
    )
}

/// A number of bytes for people.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}
