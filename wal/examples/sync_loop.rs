//! The plain loop that everything durable is compared with: write 4 KiB,
//! fdatasync, again, into a file that was written full of zeroes before, so that
//! no commit has to change the file system's own tables.
//!
//! `sync_loop --dir DIRECTORY [--seconds N] [--direct]` prints one JSON object
//! with the rate and the times of one write with its fdatasync; `waited_p99_us` is
//! what 99 of 100 who come at any moment wait at most for the end of the write
//! under way, which is where a stall counts for as long as it lasts. `--direct` opens
//! the file with `O_DIRECT` and `O_DSYNC` instead, which is how the log writes
//! where the file system can.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const BLOCK_BYTES: usize = 4096;
const FILE_BYTES: usize = 64 << 20;

/// A block where `O_DIRECT` wants it.
#[repr(align(4096))]
struct Block([u8; BLOCK_BYTES]);

fn main() -> Result<(), Box<dyn Error>> {
    let (mut dir, mut seconds, mut direct) = (None, 2.0, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{name} wants a value"));
        match name.as_str() {
            "--dir" => dir = Some(PathBuf::from(value()?)),
            "--seconds" => seconds = value()?.parse::<f64>()?,
            "--direct" => direct = true,
            _ => return Err(format!("unknown argument {name}").into()),
        }
    }
    let dir = dir.ok_or("usage: sync_loop --dir DIRECTORY [--seconds N] [--direct]")?;
    let path = dir.join(format!("sync_loop.{}", std::process::id()));
    let result = measure(&path, Duration::from_secs_f64(seconds), direct);
    std::fs::remove_file(&path)?;
    let mut times_us = result?;
    times_us.sort_unstable();
    let at = |share: f64| times_us[(times_us.len() as f64 * share) as usize];
    println!(
        "{{\n  \"writes_per_s\": {:.0},\n  \"p50_us\": {},\n  \"p99_us\": {},\n  \"p999_us\": {},\n  \"waited_p99_us\": {:.0}\n}}",
        times_us.len() as f64 / seconds,
        at(0.5),
        at(0.99),
        at(0.999),
        waited_us(&times_us, 0.99),
    );
    Ok(())
}

/// The wait that `share` of those who come at random times do not exceed. Who
/// comes during a write that takes `t` waits for a time between 0 and `t`.
fn waited_us(sorted_us: &[u32], share: f64) -> f64 {
    let total: f64 = sorted_us.iter().map(|time| f64::from(*time)).sum();
    let (mut low, mut high) = (0.0, sorted_us.last().map_or(0.0, |time| f64::from(*time)));
    for _ in 0..40 {
        let wait = (low + high) / 2.0;
        let longer: f64 = sorted_us.iter().map(|time| (f64::from(*time) - wait).max(0.0)).sum();
        if longer / total > 1.0 - share { low = wait } else { high = wait }
    }
    high
}

/// How long each write took until it was durable, microseconds.
fn measure(path: &Path, duration: Duration, direct: bool) -> Result<Vec<u32>, Box<dyn Error>> {
    let zeroes = vec![0; 1 << 20];
    let file = File::create(path)?;
    for at in (0..FILE_BYTES).step_by(zeroes.len()) {
        file.write_all_at(&zeroes, at as u64)?;
    }
    file.sync_all()?;
    let flags = if direct { libc::O_DIRECT | libc::O_DSYNC } else { 0 };
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    let block = Block([0xa5; BLOCK_BYTES]);
    let mut times_us = Vec::with_capacity(1 << 20);
    let began = Instant::now();
    while times_us.is_empty() || began.elapsed() < duration {
        let offset = times_us.len() * BLOCK_BYTES % FILE_BYTES;
        let before = Instant::now();
        file.write_all_at(&block.0, offset as u64)?;
        if !direct {
            file.sync_data()?;
        }
        times_us.push(before.elapsed().as_micros() as u32);
    }
    Ok(times_us)
}
