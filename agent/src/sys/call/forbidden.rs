//! Acts that a sealed qube must refuse. Each is harmless where it is allowed.
//!
//! They run in a child of their own: some would change the process that succeeds with them.

use core::ptr;

use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::Errno;

use super::{exit, number, signal, syscall, wait_for};

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
    let flags = NEW_USER | signal::CHILD as usize;
    // SAFETY: as `fork`; the child does nothing but end.
    // JUSTIFICATION: as `attempt`.
    let pid = unsafe { syscall(number::CLONE, [flags, 0, 0, 0, 0, 0]) }?;
    if pid == 0 {
        exit(0);
    }
    let _ = wait_for(pid as i32);
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
