//! Signals: their numbers, their effects, and where they arrive.

use rustix::fd::{FromRawFd, OwnedFd};
use rustix::io::Errno;

use super::{number, syscall};

/// Signals as the kernel numbers them on the architectures that we build for.
pub mod signal {
    /// The default end of a session.
    pub const INTERRUPT: u32 = 2;
    /// Cannot be caught.
    pub const KILL: u32 = 9;
    /// The first for a program's own purposes.
    pub const USER_1: u32 = 10;
    /// A pipe without readers was written to.
    pub const PIPE: u32 = 13;
    /// Please end.
    pub const TERMINATE: u32 = 15;
    /// A child ended.
    pub const CHILD: u32 = 17;
    /// Go on after a stop.
    pub const CONTINUE: u32 = 18;
    /// The highest signal number.
    pub const LAST: u32 = 64;
}

/// The kernel's `struct sigaction`.
#[repr(C)]
struct Action {
    handler: usize,
    flags: usize,
    restorer: usize,
    mask: u64,
}

fn set_action(signal: u32, handler: usize) {
    let action = Action { handler, flags: 0, restorer: 0, mask: 0 };
    let a = [signal as usize, &action as *const Action as usize, 0, 8, 0, 0];
    // SAFETY: `handler` is SIG_DFL or SIG_IGN, so no code is ever called through it.
    // JUSTIFICATION: no libc.
    let _ = unsafe { syscall(number::RT_SIGACTION, a) };
}

/// Forget what our starter ignored: every signal has its default effect again.
pub fn default_signals() {
    (1..=signal::LAST).for_each(|signal| set_action(signal, 0));
}

/// Let writes to a closed pipe fail instead of ending the process.
pub fn ignore_broken_pipes() {
    set_action(signal::PIPE, 1);
}

/// Undo `ignore_broken_pipes`.
pub fn default_broken_pipes() {
    set_action(signal::PIPE, 0);
}

fn set_mask(mask: u64) {
    const SET: usize = 2;
    let a = [SET, &mask as *const u64 as usize, 0, 8, 0, 0];
    // SAFETY: `mask` is a valid signal set of eight bytes.
    // JUSTIFICATION: no libc.
    let _ = unsafe { syscall(number::RT_SIGPROCMASK, a) };
}

/// Hold back every signal that can be held back.
pub fn block_signals() {
    set_mask(u64::MAX);
}

/// Deliver all signals again.
pub fn unblock_signals() {
    set_mask(0);
}

/// A descriptor that is readable when one of `signals` (which must be blocked) is pending.
pub fn signal_descriptor(signals: &[u32]) -> Result<OwnedFd, Errno> {
    const NONBLOCK_CLOEXEC: usize = 0o4000 | 0o2000000;
    let mask = signals.iter().fold(0_u64, |mask, signal| mask | (1 << (signal - 1)));
    let a = [usize::MAX, &mask as *const u64 as usize, 8, NONBLOCK_CLOEXEC, 0, 0];
    // SAFETY: `mask` is a valid signal set of eight bytes.
    // JUSTIFICATION: rustix has no signalfd.
    let fd = unsafe { syscall(number::SIGNALFD4, a) }?;
    // SAFETY: the kernel has just given us this descriptor.
    // JUSTIFICATION: the number must become an owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
