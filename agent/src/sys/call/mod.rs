//! System calls that rustix does not offer, or offers only with a libc's bookkeeping.

mod clock;
mod descriptors;
pub mod forbidden;
mod memory;
mod mount;
mod process;
mod signals;

use core::arch::asm;

use rustix::io::Errno;

use super::number;

pub use clock::{milliseconds, seconds, set_seconds, timeout};
pub use descriptors::{close_standard_input, given_descriptor, keep_only, keep_open, standard};
pub use memory::map_memory;
#[cfg(not(any(test, fuzzing)))]
pub use memory::protect_read_only;
pub use mount::bind_mount;
pub use process::{execute, exit, fork, kill, reap, wait_for};
pub use signals::{
    block_signals, default_broken_pipes, default_signals, ignore_broken_pipes, signal, signal_descriptor,
    unblock_signals,
};

/// Issue a system call with up to six arguments.
///
/// # Safety
/// The arguments must be what the call with this number expects; pointers must be valid for it.
#[inline]
pub(super) unsafe fn syscall(number: usize, a: [usize; 6]) -> Result<usize, Errno> {
    let result: isize;
    // SAFETY: the clobbers are those of the kernel's calling convention; the caller answers for the
    // meaning of the arguments.
    // JUSTIFICATION: there is no libc.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("syscall", inlateout("rax") number as isize => result,
             in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4],
             in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
        #[cfg(target_arch = "aarch64")]
        asm!("svc 0", in("x8") number, inlateout("x0") a[0] as isize => result,
             in("x1") a[1], in("x2") a[2], in("x3") a[3], in("x4") a[4], in("x5") a[5],
             options(nostack));
    }
    if (-4095..0).contains(&result) {
        Err(Errno::from_raw_os_error(-result as i32))
    } else {
        Ok(result as usize)
    }
}
