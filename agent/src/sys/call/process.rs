//! Processes: how they begin, change and end.

use alloc::vec::Vec;
use core::ffi::CStr;
use core::ptr;

use rustix::io::Errno;

use super::{number, signal, syscall};

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
}
