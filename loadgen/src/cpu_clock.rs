//! The CPU clock of another process.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

const SECOND_NS: u64 = 1_000_000_000;

/// User and system time of a process, all its threads and those that have ended,
/// nanoseconds; `None` when it is gone.
///
/// `/proc/PID/stat` shows both in whole ticks of 10 ms: in four seconds of 1,000
/// messages each they are sixteen.
pub(crate) fn read(pid: u32) -> Option<u64> {
    let pid = libc::pid_t::try_from(pid).ok()?;
    let mut clock = 0;
    // SAFETY: the result is written to a place of its own.
    if unsafe { libc::clock_getcpuclockid(pid, &mut clock) } != 0 {
        return None;
    }
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the call fills `time` when it returns 0, and only then it is read.
    let time = unsafe {
        if libc::clock_gettime(clock, time.as_mut_ptr()) != 0 {
            return None;
        }
        time.assume_init()
    };
    Some(u64::try_from(time.tv_sec).ok()? * SECOND_NS + u64::try_from(time.tv_nsec).ok()?)
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::read;

    #[test]
    fn work_shows_and_time_does_not_run_back() {
        let own = std::process::id();
        let began = read(own).expect("it runs");
        let mut last = began;
        for _ in 0..1_000 {
            black_box((0..10_000_u64).fold(0, |sum, n| black_box(sum ^ n)));
            let now = read(own).expect("it runs");
            assert!(now >= last);
            last = now;
        }
        assert!(last > began + 1_000_000, "ten million steps took {} ns", last - began);
    }

    #[test]
    fn a_process_that_is_gone_has_no_clock() {
        let mut child = std::process::Command::new("true").spawn().expect("it starts");
        let pid = child.id();
        child.wait().expect("it ends");
        assert_eq!(read(pid), None);
        assert_eq!(read(u32::MAX), None);
    }
}
