//! The four memory functions that compiled Rust code expects of a libc.
//!
//! Written in assembly where a loop in Rust would be compiled into a call of itself.

use core::arch::asm;

/// Copy `count` bytes between regions that do not overlap.
///
/// # Safety
/// As C's `memcpy`.
#[no_mangle]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller promises `count` readable and writable bytes.
    // JUSTIFICATION: the compiler emits calls of this name.
    unsafe { copy_forward(to, from, count) };
    to
}

/// Copy `count` bytes between regions that may overlap.
///
/// # Safety
/// As C's `memmove`.
#[no_mangle]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: as `memcpy`; the direction is chosen so that no byte is overwritten before it is read.
    // JUSTIFICATION: the compiler emits calls of this name.
    unsafe {
        if (to as usize).wrapping_sub(from as usize) >= count {
            copy_forward(to, from, count);
        } else {
            copy_backward(to, from, count);
        }
    }
    to
}

/// Fill `count` bytes with the low byte of `value`.
///
/// # Safety
/// As C's `memset`.
#[no_mangle]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller promises `count` writable bytes.
    // JUSTIFICATION: the compiler emits calls of this name.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") value as u8,
             options(nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        asm!("cbz {n}, 3f", "2: strb {v:w}, [{t}], #1", "subs {n}, {n}, #1", "b.ne 2b", "3:",
             n = inout(reg) count => _, t = inout(reg) to => _, v = in(reg) value,
             options(nostack));
    }
    to
}

/// Compare `count` bytes.
///
/// # Safety
/// As C's `memcmp`.
#[no_mangle]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    for at in 0..count {
        // SAFETY: the caller promises `count` readable bytes on both sides.
        // JUSTIFICATION: the compiler emits calls of this name.
        let (l, r) = unsafe { (left.add(at).read_volatile(), right.add(at).read_volatile()) };
        if l != r {
            return i32::from(l) - i32::from(r);
        }
    }
    0
}

/// Compare `count` bytes for equality.
///
/// # Safety
/// As BSD's `bcmp`.
#[no_mangle]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    // SAFETY: the same contract.
    // JUSTIFICATION: the compiler emits calls of this name.
    unsafe { memcmp(left, right, count) }
}

/// Length of a C string.
///
/// # Safety
/// As C's `strlen`.
#[no_mangle]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller promises a terminating zero.
    // JUSTIFICATION: the compiler emits calls of this name.
    while unsafe { text.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}

#[inline(always)]
unsafe fn copy_forward(to: *mut u8, from: *const u8, count: usize) {
    // SAFETY: the caller promises `count` bytes on both sides.
    // JUSTIFICATION: a loop in Rust would become a call of `memcpy`.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        asm!("cbz {n}, 3f", "2: ldrb {v:w}, [{f}], #1", "strb {v:w}, [{t}], #1",
             "subs {n}, {n}, #1", "b.ne 2b", "3:",
             n = inout(reg) count => _, t = inout(reg) to => _, f = inout(reg) from => _,
             v = out(reg) _, options(nostack));
    }
}

#[inline(always)]
unsafe fn copy_backward(to: *mut u8, from: *const u8, count: usize) {
    for at in (0..count).rev() {
        // SAFETY: the caller promises `count` bytes on both sides.
        // JUSTIFICATION: volatile, so that the loop is not compiled into a call of `memmove`.
        unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
    }
}

/// Called by precompiled parts of `alloc` when a panic unwinds, which it never does here.
#[no_mangle]
extern "C" fn _Unwind_Resume() -> ! {
    super::call::exit(125)
}

/// Named by the unwind tables of precompiled parts of `alloc`; see `_Unwind_Resume`.
#[no_mangle]
extern "C" fn rust_eh_personality() -> ! {
    super::call::exit(125)
}
