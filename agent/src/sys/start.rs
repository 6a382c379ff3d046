//! The first instructions of the process: relocate ourselves, find the arguments, run, exit.

use alloc::vec::Vec;
use core::arch::global_asm;
use core::ffi::CStr;

use super::call;

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    ".hidden _DYNAMIC",
    ".type _start, @function",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "lea rsi, [rip + __ehdr_start]",
    "lea rdx, [rip + _DYNAMIC]",
    "and rsp, -16",
    "call {entry}",
    "ud2",
    ".hidden __ehdr_start",
    entry = sym entry,
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl _start",
    ".hidden _DYNAMIC",
    ".hidden __ehdr_start",
    ".type _start, %function",
    "_start:",
    "mov x29, #0",
    "mov x30, #0",
    "mov x0, sp",
    "adrp x1, __ehdr_start",
    "add x1, x1, :lo12:__ehdr_start",
    "adrp x2, _DYNAMIC",
    "add x2, x2, :lo12:_DYNAMIC",
    "and sp, x0, #-16",
    "bl {entry}",
    "brk #1",
    entry = sym entry,
);

const DT_NULL: usize = 0;
const DT_RELA: usize = 7;
const DT_RELASZ: usize = 8;
#[cfg(target_arch = "x86_64")]
const R_RELATIVE: usize = 8;
#[cfg(target_arch = "aarch64")]
const R_RELATIVE: usize = 1027;
const PT_GNU_RELRO: u32 = 0x6474_e552;

/// One entry of the dynamic section.
#[repr(C)]
struct Dynamic {
    tag: usize,
    value: usize,
}

/// One relocation with addend (ELF64).
#[repr(C)]
struct Rela {
    offset: usize,
    info: usize,
    addend: usize,
}

/// What is needed of the ELF64 file header.
#[repr(C)]
struct FileHeader {
    identity: [u8; 16],
    kind_machine_version: [u32; 2],
    entry: usize,
    program_headers: usize,
    section_headers: usize,
    flags: u32,
    header_size: u16,
    program_header_size: u16,
    program_header_count: u16,
}

/// One ELF64 program header.
#[repr(C)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: usize,
    address: usize,
    physical: usize,
    file_size: usize,
    memory_size: usize,
    alignment: usize,
}

/// Apply the relocations of a static position-independent program, then make them read-only.
///
/// Until this has run no pointer stored in data may be followed.
///
/// # Safety
/// `base` must be the address at which this program was loaded and `dynamic` its dynamic section.
#[inline(always)]
unsafe fn relocate(base: usize, mut dynamic: *const Dynamic) {
    let (mut table, mut size) = (0, 0);
    // SAFETY: the linker ends the dynamic section with DT_NULL, and the table it names lies inside
    // the program's own mapped image; each target is a word in a still writable segment.
    // JUSTIFICATION: address space randomisation without a loader means relocating by hand.
    unsafe {
        while (*dynamic).tag != DT_NULL {
            match (*dynamic).tag {
                DT_RELA => table = (*dynamic).value,
                DT_RELASZ => size = (*dynamic).value,
                _ => {}
            }
            dynamic = dynamic.add(1);
        }
        let mut entry = (base + table) as *const Rela;
        let end = (base + table + size) as *const Rela;
        while entry < end {
            if (*entry).info & 0xffff_ffff == R_RELATIVE {
                *((base + (*entry).offset) as *mut usize) = base + (*entry).addend;
            }
            entry = entry.add(1);
        }
        let header = base as *const FileHeader;
        let mut program = (base + (*header).program_headers) as *const ProgramHeader;
        for _ in 0..(*header).program_header_count {
            if (*program).kind == PT_GNU_RELRO {
                let from = (base + (*program).address) & !4095;
                let to = (base + (*program).address + (*program).memory_size) & !4095;
                call::protect_read_only(from, to - from);
            }
            program = program.add(1);
        }
    }
}

unsafe extern "C" fn entry(stack: *const usize, base: usize, dynamic: *const Dynamic) -> ! {
    // SAFETY: `_start` passes the load address and the dynamic section of this very image.
    // JUSTIFICATION: see `relocate`.
    unsafe { relocate(base, dynamic) };
    // SAFETY: the kernel lays argc, the argv pointers, a null, the environment pointers and a null
    // at the initial stack pointer; the strings live as long as the process.
    // JUSTIFICATION: there is no libc that would have done it.
    let (arguments, environment) = unsafe {
        let count = *stack;
        let argv = stack.add(1) as *const *const core::ffi::c_char;
        (strings(argv), strings(argv.add(count + 1)))
    };
    call::exit(crate::run(&arguments, Vec::leak(environment)))
}

/// Collect a null-terminated array of C strings.
///
/// # Safety
/// `array` must be such an array, and array and strings must live for ever.
unsafe fn strings(mut array: *const *const core::ffi::c_char) -> Vec<&'static CStr> {
    let mut found = Vec::new();
    // SAFETY: the caller promises a null-terminated array of valid strings.
    // JUSTIFICATION: this is how the kernel hands over arguments.
    unsafe {
        while !(*array).is_null() {
            found.push(CStr::from_ptr(*array));
            array = array.add(1);
        }
    }
    found
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => crate::say!("internal error at {}:{}; please report it", at.file(), at.line()),
        None => crate::say!("internal error; please report it"),
    }
    call::exit(125)
}
