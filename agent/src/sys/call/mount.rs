//! Mounts.

use core::ffi::CStr;

use rustix::io::Errno;

use super::{number, syscall};

/// Let a file or directory be seen at another place as well.
pub fn bind_mount(source: &CStr, target: &CStr) -> Result<(), Errno> {
    const BIND: usize = 1 << 12;
    let a = [source.as_ptr() as usize, target.as_ptr() as usize, 0, BIND, 0, 0];
    // SAFETY: both paths end with a NUL and are only read.
    // JUSTIFICATION: a feature of rustix that nothing else needs.
    unsafe { syscall(number::MOUNT, a) }.map(|_| ())
}
