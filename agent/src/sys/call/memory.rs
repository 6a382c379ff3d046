//! Memory.

use super::{number, syscall};

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
