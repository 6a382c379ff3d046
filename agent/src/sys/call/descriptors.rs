//! Descriptors that nobody in the process owns, and those that outlive an `exec`.

use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{exit, number, syscall};

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
