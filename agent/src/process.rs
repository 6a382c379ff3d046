//! How processes begin and end.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::sys::call;
use crate::text::c_string;

/// Make sure that what we open later never becomes 0, 1 or 2 by accident.
pub fn occupy_standard_descriptors() {
    occupy_standard_descriptors_with(OFlags::RDWR);
}

fn occupy_standard_descriptors_with(for_output: OFlags) {
    let null = |flags| rustix::fs::open(c_string(&[b"/dev/null"]), flags, Mode::empty());
    loop {
        let found = match null(OFlags::RDWR) {
            Ok(fd) if fd.as_raw_fd() == 1 => {
                drop(fd);
                null(for_output)
            }
            other => other,
        };
        match found {
            Ok(fd) if fd.as_raw_fd() <= 2 => {
                call::keep_open(fd);
            }
            _ => return,
        }
    }
}

/// As `occupy_standard_descriptors`, for a program that writes what others send: where it was started
/// without standard output, writing there fails, for to drop the bytes would pass for success.
pub fn occupy_all_but_output() {
    occupy_standard_descriptors_with(OFlags::RDONLY);
}

/// Let the reader of our standard output see its end while we go on.
pub fn let_go_of_standard_output() {
    if let Ok(null) =
        rustix::fs::open(c_string(&[b"/dev/null"]), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}

/// A descriptor that becomes readable when a child of ours has ended.
pub fn watch(pid: i32) -> Result<OwnedFd, Errno> {
    let known = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    rustix::process::pidfd_open(known, PidfdFlags::empty())
}

/// The exit code that a caller sees: the low eight bits, or 128 + n after signal n.
pub fn exit_code(wait_status: i32) -> i32 {
    match wait_status & 0x7f {
        0 => (wait_status >> 8) & 0xff,
        signal => 128 + signal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes and signals, with or without a core file.
    #[test]
    fn codes() {
        assert_eq!(exit_code(0), 0);
        assert_eq!(exit_code(255 << 8), 255);
        assert_eq!(exit_code(9), 137);
        assert_eq!(exit_code(11 | 0x80), 139);
    }
}
