//! System calls that rustix does not offer, or offers only with a libc's bookkeeping.

use alloc::vec::Vec;
use core::arch::asm;
use core::ffi::CStr;
use core::ptr;

use rustix::event::Timespec;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::Errno;

use super::number;

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

/// End the process.
pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: takes no pointer.
        // JUSTIFICATION: no libc.
        let _ = unsafe { syscall(number::EXIT_GROUP, [code as usize, 0, 0, 0, 0, 0]) };
    }
}

/// Make a new process; `None` in the child, its id in the parent.
///
/// The process has one thread and no user-space locks, so the child may do anything.
pub fn fork() -> Result<Option<i32>, Errno> {
    let flags = signal::CHILD as usize;
    // SAFETY: `clone` without a new stack or shared memory is a fork.
    // JUSTIFICATION: no libc.
    let pid = unsafe { syscall(number::CLONE, [flags, 0, 0, 0, 0, 0]) }?;
    Ok(if pid == 0 { None } else { Some(pid as i32) })
}

/// Replace the program; returns only on failure.
pub fn execute(path: &CStr, arguments: &[&CStr], environment: &[&CStr]) -> Errno {
    let list = |strings: &[&CStr]| -> Vec<*const core::ffi::c_char> {
        let mut pointers: Vec<_> = strings.iter().map(|s| s.as_ptr()).collect();
        pointers.push(ptr::null());
        pointers
    };
    let (argv, envp) = (list(arguments), list(environment));
    let a = [path.as_ptr() as usize, argv.as_ptr() as usize, envp.as_ptr() as usize, 0, 0, 0];
    // SAFETY: both arrays end with a null pointer and live until the call returns.
    // JUSTIFICATION: no libc.
    match unsafe { syscall(number::EXECVE, a) } {
        Err(error) => error,
        Ok(_) => Errno::NOEXEC,
    }
}

/// Give `length` bytes of fresh zeroed memory.
pub fn map_memory(length: usize) -> Option<usize> {
    const READ_WRITE: usize = 3;
    const PRIVATE_ANONYMOUS: usize = 0x22;
    let a = [0, length, READ_WRITE, PRIVATE_ANONYMOUS, usize::MAX, 0];
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing in use.
    // JUSTIFICATION: the allocator needs memory.
    unsafe { syscall(number::MMAP, a) }.ok()
}

/// Take away the right to write from a part of our own image.
///
/// # Safety
/// Nothing may write there any more.
#[cfg(not(any(test, fuzzing)))]
pub unsafe fn protect_read_only(start: usize, length: usize) {
    // SAFETY: the caller answers for it; failing leaves the memory writable, which is sound.
    // JUSTIFICATION: there is no loader to do it.
    let _ = unsafe { syscall(number::MPROTECT, [start, length, 1, 0, 0, 0]) };
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

/// Send a signal to a process, to a group (negative), or to all others that we may signal (-1).
pub fn kill(target: i32, signal: u32) {
    // SAFETY: takes no pointer.
    // JUSTIFICATION: rustix has no call for "all processes".
    let _ = unsafe { syscall(number::KILL, [target as usize, signal as usize, 0, 0, 0, 0]) };
}

/// Reap one child that has ended: its id and its wait status.
///
/// `Ok(None)`: no child has ended yet. `Err(CHILD)`: there is no child at all.
pub fn reap() -> Result<Option<(i32, i32)>, Errno> {
    const NO_HANG: usize = 1;
    let mut status = 0_i32;
    let a = [usize::MAX, &mut status as *mut i32 as usize, NO_HANG, 0, 0, 0];
    // SAFETY: `status` is writable for the length of the call.
    // JUSTIFICATION: rustix keeps the id of a reaped child unsigned and optional; this is simpler.
    let pid = unsafe { syscall(number::WAIT4, a) }? as i32;
    Ok(if pid == 0 { None } else { Some((pid, status)) })
}

/// Wait for one child to end; its wait status.
pub fn wait_for(pid: i32) -> Result<i32, Errno> {
    let mut status = 0_i32;
    loop {
        let a = [pid as usize, &mut status as *mut i32 as usize, 0, 0, 0, 0];
        // SAFETY: `status` is writable for the length of the call.
        // JUSTIFICATION: as `reap`.
        match unsafe { syscall(number::WAIT4, a) } {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(status),
        }
    }
}

/// How long the kernel is to wait, from milliseconds; none are waited where the time is over.
pub fn timeout(milliseconds: i64) -> Timespec {
    let left = milliseconds.max(0);
    Timespec { tv_sec: left / 1000, tv_nsec: (left % 1000) * 1_000_000 }
}

/// Milliseconds of a clock that never jumps.
pub fn milliseconds() -> i64 {
    const MONOTONIC: usize = 1;
    let now = clock(MONOTONIC);
    now[0] * 1000 + now[1] / 1_000_000
}

/// Seconds since 1970 as this machine believes.
pub fn unix_time() -> i64 {
    const REALTIME: usize = 0;
    clock(REALTIME)[0]
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
    const REALTIME: usize = 0;
    let mut now = [0_i64; 2];
    // SAFETY: `now` has the layout of a timespec.
    // JUSTIFICATION: as `milliseconds`.
    let _ = unsafe { syscall(number::CLOCK_GETTIME, [REALTIME, now.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    now[0]
}

/// Set the clock that people read.
pub fn set_seconds(seconds: i64) -> Result<(), Errno> {
    const REALTIME: usize = 0;
    let wanted = [seconds, 0_i64];
    // SAFETY: `wanted` has the layout of a timespec and is only read.
    // JUSTIFICATION: as `milliseconds`.
    unsafe { syscall(number::CLOCK_SETTIME, [REALTIME, wanted.as_ptr() as usize, 0, 0, 0, 0]) }.map(|_| ())
}

/// Let a file or directory be seen at another place as well.
pub fn bind_mount(source: &CStr, target: &CStr) -> Result<(), Errno> {
    const BIND: usize = 1 << 12;
    let a = [source.as_ptr() as usize, target.as_ptr() as usize, 0, BIND, 0, 0];
    // SAFETY: both paths end with a NUL and are only read.
    // JUSTIFICATION: a feature of rustix that nothing else needs.
    unsafe { syscall(number::MOUNT, a) }.map(|_| ())
}

/// One of the descriptors that the process was started with: 0, 1 or 2.
pub fn standard(which: u8) -> BorrowedFd<'static> {
    assert!(which <= 2);
    // SAFETY: nothing in the process owns 0, 1 or 2; if one was closed, calls on it fail with EBADF.
    // JUSTIFICATION: these numbers are given by convention, there is nobody to borrow them from.
    unsafe { BorrowedFd::borrow_raw(i32::from(which)) }
}

/// A descriptor that our starter promised to give us, as ours; `None` where it is not open.
///
/// To be called at most once a number, before anything was opened.
pub fn given_descriptor(number: u8) -> Option<OwnedFd> {
    assert!(number > 2);
    // SAFETY: at the program's start nothing of ours owns the number, and `fcntl` only looks.
    // JUSTIFICATION: as `standard`.
    let fd = unsafe { BorrowedFd::borrow_raw(i32::from(number)) };
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, and nothing else will own it.
    // JUSTIFICATION: the number must become an owner.
    Some(unsafe { OwnedFd::from_raw_fd(i32::from(number)) })
}

/// Close standard input, so that its writer learns that nobody reads on.
pub fn close_standard_input() {
    // SAFETY: nothing owns descriptor 0, see `standard`.
    // JUSTIFICATION: an owner of 0 would close it at the wrong time.
    let _ = unsafe { syscall(number::CLOSE, [0, 0, 0, 0, 0, 0]) };
}

/// Close every descriptor but the standard ones and this, which gets another number.
///
/// For a forked process that goes on without what its parent had open, and never returns to the
/// code that owns it.
pub fn keep_only(fd: OwnedFd) -> OwnedFd {
    const PLACE: usize = 3;
    /// What a kernel before 5.9 closes one by one; an agent has far fewer open.
    const OLD_KERNEL_LIMIT: usize = 4096;
    let kept = if fd.as_raw_fd() as usize == PLACE {
        fd
    } else {
        // SAFETY: the number may belong to an owner in a frame that is never returned to.
        // JUSTIFICATION: the owners are out of reach after the fork.
        match unsafe { syscall(number::DUP3, [fd.as_raw_fd() as usize, PLACE, 0o2000000, 0, 0, 0]) } {
            // SAFETY: the kernel has just made this descriptor.
            // JUSTIFICATION: the number must become an owner.
            Ok(made) => unsafe { OwnedFd::from_raw_fd(made as i32) },
            Err(_) => exit(125),
        }
    };
    // SAFETY: as above; nothing below PLACE + 1 is touched.
    // JUSTIFICATION: as above.
    unsafe {
        if syscall(number::CLOSE_RANGE, [PLACE + 1, u32::MAX as usize, 0, 0, 0, 0]).is_err() {
            for descriptor in PLACE + 1..OLD_KERNEL_LIMIT {
                let _ = syscall(number::CLOSE, [descriptor, 0, 0, 0, 0, 0]);
            }
        }
    }
    kept
}

/// Let a descriptor outlive an `exec` and give its number.
pub fn keep_open(fd: OwnedFd) -> i32 {
    let _ = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty());
    let number = fd.as_raw_fd();
    core::mem::forget(fd);
    number
}

/// Acts that a sealed qube must refuse. Each is harmless where it is allowed.
///
/// They run in a child of their own: some would change the process that succeeds with them.
pub mod forbidden {
    use super::super::number;
    use super::{ptr, syscall, Errno};
    use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

    /// A new user namespace.
    pub const NEW_USER: usize = 0x1000_0000;
    /// A new mount namespace.
    pub const NEW_MOUNT: usize = 0x0002_0000;

    fn attempt(number: usize, arguments: [usize; 6]) -> Result<(), Errno> {
        // SAFETY: each caller below passes constants, null, or pointers to live data that the call
        // only reads.
        // JUSTIFICATION: the attempt is the proof; no library offers these calls.
        unsafe { syscall(number, arguments) }.map(|_| ())
    }

    /// Leave a namespace.
    pub fn unshare(flags: usize) -> Result<(), Errno> {
        attempt(number::UNSHARE, [flags, 0, 0, 0, 0, 0])
    }

    /// Fork into a new user namespace; a child that comes to be ends at once.
    pub fn clone_into_user_namespace() -> Result<(), Errno> {
        let flags = NEW_USER | super::signal::CHILD as usize;
        // SAFETY: as `fork`; the child does nothing but end.
        // JUSTIFICATION: as `attempt`.
        let pid = unsafe { syscall(number::CLONE, [flags, 0, 0, 0, 0, 0]) }?;
        if pid == 0 {
            super::exit(0);
        }
        let _ = super::wait_for(pid as i32);
        Ok(())
    }

    /// Make `/` private: changes nothing in a mount namespace that is already of its own.
    pub fn mount_private() -> Result<(), Errno> {
        const PRIVATE: usize = 1 << 18;
        let root = b"/\0".as_ptr() as usize;
        attempt(number::MOUNT, [0, root, 0, PRIVATE, 0, 0])
    }

    /// Open a file system context, the newer way to mount.
    pub fn open_file_system() -> Result<(), Errno> {
        attempt(number::FSOPEN, [b"tmpfs\0".as_ptr() as usize, 1, 0, 0, 0, 0])
    }

    /// Take a copy of a mount tree.
    pub fn open_tree() -> Result<(), Errno> {
        const HERE: usize = -100_isize as usize;
        const CLONE_CLOEXEC: usize = 1 | 0o2000000;
        attempt(number::OPEN_TREE, [HERE, b"/\0".as_ptr() as usize, CLONE_CLOEXEC, 0, 0, 0])
    }

    /// Put a character into a terminal's input. `high` sets a bit that the kernel ignores and a
    /// careless filter does not (CVE-2019-10063).
    pub fn terminal_input(fd: BorrowedFd<'_>, high: bool) -> Result<(), Errno> {
        const TIOCSTI: usize = 0x5412;
        let request = if high { TIOCSTI | (1 << 32) } else { TIOCSTI };
        let space = b" ";
        attempt(number::IOCTL, [fd.as_raw_fd() as usize, request, space.as_ptr() as usize, 0, 0, 0])
    }

    /// Paste from the console's selection.
    pub fn console_paste(fd: BorrowedFd<'_>) -> Result<(), Errno> {
        const TIOCLINUX: usize = 0x541C;
        let paste = b"\x03";
        attempt(number::IOCTL, [fd.as_raw_fd() as usize, TIOCLINUX, paste.as_ptr() as usize, 0, 0, 0])
    }

    /// Ask who owns a namespace: fails for one that does not belong to our user namespace.
    pub fn namespace_owner(fd: BorrowedFd<'_>) -> Result<(), Errno> {
        const GET_USER_NAMESPACE: usize = 0xb701;
        let request = [fd.as_raw_fd() as usize, GET_USER_NAMESPACE, 0, 0, 0, 0];
        // SAFETY: the arguments are a live descriptor and constants.
        // JUSTIFICATION: as `attempt`.
        let owner = unsafe { syscall(number::IOCTL, request) }?;
        // SAFETY: the kernel has just made this descriptor, for us alone.
        // JUSTIFICATION: left open it would be one that services inherit.
        drop(unsafe { OwnedFd::from_raw_fd(owner as i32) });
        Ok(())
    }

    /// Load a kernel module (of no bytes).
    pub fn load_module() -> Result<(), Errno> {
        attempt(number::INIT_MODULE, [0, 0, b"\0".as_ptr() as usize, 0, 0, 0])
    }

    /// Load a kernel module from a descriptor (that is none).
    pub fn load_module_file() -> Result<(), Errno> {
        attempt(number::FINIT_MODULE, [usize::MAX, b"\0".as_ptr() as usize, 0, 0, 0, 0])
    }

    /// Add a key to the keyring of this process.
    pub fn add_key() -> Result<(), Errno> {
        const PROCESS_KEYRING: usize = -2_isize as usize;
        let (kind, name, value) = (b"user\0".as_ptr(), b"caisson\0".as_ptr(), b"x\0".as_ptr());
        attempt(number::ADD_KEY, [kind as usize, name as usize, value as usize, 1, PROCESS_KEYRING, 0])
    }

    /// Ask for the id of this session's keyring.
    pub fn keyring_id() -> Result<(), Errno> {
        const GET_ID: usize = 0;
        const SESSION_KEYRING: usize = -3_isize as usize;
        attempt(number::KEYCTL, [GET_ID, SESSION_KEYRING, 0, 0, 0, 0])
    }

    /// Make the smallest BPF map.
    pub fn bpf_map() -> Result<(), Errno> {
        const MAP_CREATE: usize = 0;
        let attributes: [u32; 18] = {
            let mut a = [0; 18];
            a[..4].copy_from_slice(&[2, 4, 4, 1]); // an array of one u32
            a
        };
        let size = core::mem::size_of_val(&attributes);
        attempt(number::BPF, [MAP_CREATE, attributes.as_ptr() as usize, size, 0, 0, 0])
    }

    /// Open a performance counter of the kernel.
    pub fn performance_counter() -> Result<(), Errno> {
        let mut attributes = [0_u32; 28];
        attributes[0] = 1; // software events
        attributes[1] = core::mem::size_of_val(&attributes) as u32;
        let a = [attributes.as_ptr() as usize, 0, usize::MAX, usize::MAX, 8, 0];
        attempt(number::PERF_EVENT_OPEN, a)
    }

    /// Load a new kernel to boot into (of no segments).
    pub fn load_kernel() -> Result<(), Errno> {
        attempt(number::KEXEC_LOAD, [0, 0, ptr::null::<u8>() as usize, 0, 0, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child's exit code reaches its parent, and an `exec` that fails says why.
    #[test]
    fn fork_and_wait() {
        match fork().unwrap() {
            // Allocates nothing: another thread of the test may have held the allocator's lock.
            None => exit(42),
            Some(pid) => assert_eq!(wait_for(pid).unwrap(), 42 << 8),
        }
        let path = alloc::ffi::CString::new("/nonexistent").unwrap();
        assert_eq!(execute(&path, &[&path], &[]), Errno::NOENT);
    }

    /// The clock moves forward.
    #[test]
    fn clock_is_monotonic() {
        let before = milliseconds();
        assert!(before > 0 && milliseconds() >= before);
    }
}
