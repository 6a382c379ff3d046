//! Landlock: a process gives up what it does not need of the file system, for good.
//!
//! Format: `linux/landlock.h`, probed by the kernel's ABI version, 1 (Linux 5.13) to 7.

use core::mem::size_of;

use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::Errno;

use super::call::syscall;
use super::number;

/// Open a file to write it.
pub const WRITE_FILE: u64 = 1 << 1;
/// List a directory.
pub const READ_DIR: u64 = 1 << 3;
/// Make a directory.
pub const MAKE_DIR: u64 = 1 << 7;
/// Make a regular file.
pub const MAKE_FILE: u64 = 1 << 8;
/// Make a symbolic link.
pub const MAKE_LINK: u64 = 1 << 12;

/// The rights that ABI 1 knows; later ones are added by version.
const FIRST_RIGHTS: u64 = (1 << 13) - 1;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const DEVICE_CONTROL: u64 = 1 << 15;
const TCP_BIND_AND_CONNECT: u64 = 3;
const ABSTRACT_SOCKETS_AND_SIGNALS: u64 = 3;

/// `struct landlock_ruleset_attr`: what is forbidden unless a rule allows it.
#[repr(C)]
struct Handled {
    files: u64,
    network: u64,
    scopes: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct Beneath {
    allowed: u64,
    parent: i32,
}

impl Handled {
    /// Everything that the kernel can forbid, and the length of the structure that it knows.
    fn all(version: usize) -> (Self, usize) {
        let since = |first, rights| if version >= first { rights } else { 0 };
        let handled = Self {
            files: FIRST_RIGHTS | since(2, REFER) | since(3, TRUNCATE) | since(5, DEVICE_CONTROL),
            network: since(4, TCP_BIND_AND_CONNECT),
            scopes: since(6, ABSTRACT_SOCKETS_AND_SIGNALS),
        };
        let length = match version {
            0..=3 => size_of::<u64>(),
            4 | 5 => 2 * size_of::<u64>(),
            _ => size_of::<Self>(),
        };
        (handled, length)
    }
}

/// The version of the kernel's interface; an error where there is no Landlock.
pub fn version() -> Result<usize, Errno> {
    const ASK_VERSION: usize = 1;
    // SAFETY: this form of the call takes no pointer.
    // JUSTIFICATION: rustix has no Landlock.
    unsafe { syscall(number::LANDLOCK_CREATE_RULESET, [0, 0, ASK_VERSION, 0, 0, 0]) }
}

/// From now on this process may only do what `allowed` says, and only beneath `directory`.
///
/// What is open stays usable. Needs `no_new_privs`.
pub fn confine_beneath(directory: BorrowedFd<'_>, allowed: u64) -> Result<(), Errno> {
    const PATH_BENEATH: usize = 1;
    let (handled, length) = Handled::all(version()?);
    let a = [&handled as *const Handled as usize, length, 0, 0, 0, 0];
    // SAFETY: `handled` lives through the call and is at least `length` bytes long.
    // JUSTIFICATION: as `version`.
    let fd = unsafe { syscall(number::LANDLOCK_CREATE_RULESET, a) }?;
    // SAFETY: the kernel has just given us this descriptor.
    // JUSTIFICATION: the number must become an owner.
    let rules = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let beneath = Beneath { allowed, parent: directory.as_raw_fd() };
    let rules_fd = rules.as_raw_fd() as usize;
    let a = [rules_fd, PATH_BENEATH, &beneath as *const Beneath as usize, 0, 0, 0];
    // SAFETY: `beneath` has the layout of the rule's type and lives through the call.
    // JUSTIFICATION: as `version`.
    unsafe { syscall(number::LANDLOCK_ADD_RULE, a) }?;
    // SAFETY: takes no pointer.
    // JUSTIFICATION: as `version`.
    unsafe { syscall(number::LANDLOCK_RESTRICT_SELF, [rules_fd, 0, 0, 0, 0, 0]) }.map(drop)
}

/// A view of `directory` as a mount of its own, attached nowhere, on which no set-user-id bit, no
/// device, no program and no symbolic link has an effect. Needs `CAP_SYS_ADMIN`.
pub fn own_mount(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    const EMPTY_PATH: usize = 0x1000;
    const CLONE_CLOEXEC: usize = 1 | 0o2_000_000;
    const NO_SUID_DEVICE_PROGRAM_LINK: u64 = 2 | 4 | 8 | 0x20_0000;
    let empty = b"\0".as_ptr() as usize;
    let a = [directory.as_raw_fd() as usize, empty, EMPTY_PATH | CLONE_CLOEXEC, 0, 0, 0];
    // SAFETY: the path is a live C string.
    // JUSTIFICATION: rustix has no `mount_setattr`, and the two belong together.
    let fd = unsafe { syscall(number::OPEN_TREE, a) }?;
    // SAFETY: the kernel has just given us this descriptor.
    // JUSTIFICATION: the number must become an owner.
    let mount = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let attributes = [NO_SUID_DEVICE_PROGRAM_LINK, 0, 0, 0];
    let size = core::mem::size_of_val(&attributes);
    let a = [fd, empty, EMPTY_PATH, attributes.as_ptr() as usize, size, 0];
    // SAFETY: `attributes` is a `struct mount_attr` (four words), alive through the call.
    // JUSTIFICATION: as above.
    unsafe { syscall(number::MOUNT_SETATTR, a) }?;
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::call::{exit, fork, wait_for};
    use rustix::fd::AsFd;
    use rustix::fs::{Mode, OFlags};

    /// Each version of the interface gets the rights and the length that it knows.
    #[test]
    fn versions() {
        let at = |version| {
            let (handled, length) = Handled::all(version);
            (handled.files, handled.network, handled.scopes, length)
        };
        assert_eq!(at(1), (0x1fff, 0, 0, 8));
        assert_eq!(at(2), (0x3fff, 0, 0, 8));
        assert_eq!(at(3), (0x7fff, 0, 0, 8));
        assert_eq!(at(4), (0x7fff, 3, 0, 16));
        assert_eq!(at(5), (0xffff, 3, 0, 16));
        assert_eq!(at(6), (0xffff, 3, 3, 24));
        assert_eq!(at(99), at(6));
        assert_eq!(size_of::<Beneath>(), 12);
    }

    /// A confined process makes files beneath its directory, reads none, and reaches nothing else.
    #[test]
    fn confinement_holds() {
        let home = std::env::temp_dir().join(std::format!("landlock-{}", std::process::id()));
        std::fs::create_dir(&home).unwrap();
        let path = home.to_str().unwrap();
        let directory = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        match fork().unwrap() {
            None => exit(i32::from(!confined(directory.as_fd()))),
            Some(pid) => {
                let status = wait_for(pid).unwrap();
                let made = home.join("a").exists();
                std::fs::remove_dir_all(&home).unwrap();
                assert_eq!((status, made), (0, true));
            }
        }
    }

    fn confined(directory: BorrowedFd<'_>) -> bool {
        let open = |at, path: &str, flags| rustix::fs::openat(at, path, flags, Mode::RUSR);
        let make = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
        rustix::thread::set_no_new_privs(true).is_ok()
            && confine_beneath(directory, WRITE_FILE | MAKE_FILE).is_ok()
            && open(directory, "a", make).is_ok()
            && open(directory, "a", OFlags::RDONLY).err() == Some(Errno::ACCESS)
            && open(directory, "../landlock-out", make).err() == Some(Errno::ACCESS)
            && open(directory, "/etc/passwd", OFlags::RDONLY).err() == Some(Errno::ACCESS)
            && rustix::fs::mkdirat(directory, "d", Mode::RWXU).err() == Some(Errno::ACCESS)
    }
}
