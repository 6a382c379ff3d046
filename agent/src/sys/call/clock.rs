//! Clocks, and how long to wait.

use rustix::event::Timespec;
use rustix::io::Errno;

use super::{number, syscall};

const REALTIME: usize = 0;
const MONOTONIC: usize = 1;

/// How long the kernel is to wait, from milliseconds; none are waited where the time is over.
pub fn timeout(milliseconds: i64) -> Timespec {
    let left = milliseconds.max(0);
    Timespec { tv_sec: left / 1000, tv_nsec: (left % 1000) * 1_000_000 }
}

/// Milliseconds of a clock that never jumps.
pub fn milliseconds() -> i64 {
    let now = clock(MONOTONIC);
    now[0] * 1000 + now[1] / 1_000_000
}

/// Seconds and nanoseconds of a clock.
fn clock(which: usize) -> [i64; 2] {
    let mut now = [0_i64; 2];
    // SAFETY: `now` has the layout of a timespec.
    // JUSTIFICATION: rustix's clock pulls in the vDSO.
    let _ = unsafe { syscall(number::CLOCK_GETTIME, [which, now.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    now
}

/// Seconds since the epoch, by the clock that people read.
pub fn seconds() -> i64 {
    clock(REALTIME)[0]
}

/// Set the clock that people read.
pub fn set_seconds(seconds: i64) -> Result<(), Errno> {
    let wanted = [seconds, 0_i64];
    // SAFETY: `wanted` has the layout of a timespec and is only read.
    // JUSTIFICATION: as `milliseconds`.
    unsafe { syscall(number::CLOCK_SETTIME, [REALTIME, wanted.as_ptr() as usize, 0, 0, 0, 0]) }.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The clock moves forward.
    #[test]
    fn clock_is_monotonic() {
        let before = milliseconds();
        assert!(before > 0 && milliseconds() >= before);
    }
}
