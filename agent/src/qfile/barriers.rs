//! The barriers of the receiver, up before the first byte of a stream is read.
//! Why these: `docs/decisions/0014-confining-the-file-receiver.md`.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::names::DEEPEST;
use crate::say;
use crate::speak::Reason;
use crate::sys::landlock::{self, MAKE_DIR, MAKE_FILE, MAKE_LINK, READ_DIR, WRITE_FILE};
use crate::users;

/// What the receiver may still do, beneath its directory and nowhere else.
const RIGHTS: u64 = READ_DIR | WRITE_FILE | MAKE_DIR | MAKE_FILE | MAKE_LINK;
const RIGHTS_FLAT: u64 = READ_DIR | WRITE_FILE | MAKE_FILE;
const MOST_MEMORY: u64 = 64 << 20;
/// Descriptors beside one for each level of a tree.
const OTHER_DESCRIPTORS: u64 = 32;

/// A directory that is all that this process can reach.
pub struct Confined {
    /// The directory: with Landlock itself, else through a mount of its own.
    pub directory: OwnedFd,
    /// Whether the kernel itself refuses what lies outside, also after a directory was moved away.
    pub landlocked: bool,
}

/// Become another user, of no supplementary group; nothing to do where that is who we are.
///
/// Capabilities stay permitted, not effective, until `raise` has used and dropped them.
pub fn become_user(uid: u32) -> Result<(), Errno> {
    if rustix::process::getuid().as_raw() == uid && rustix::process::geteuid().as_raw() == uid {
        return Ok(());
    }
    let passwd = users::read_file(b"/etc/passwd")?;
    let gid = Gid::from_raw(users::find_id(&passwd, uid).ok_or(Errno::SRCH)?.gid);
    let uid = Uid::from_raw(uid);
    rustix::thread::set_keep_capabilities(true)?;
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// Raise all barriers around `directory`; `None`, with words for the person, where that fails.
///
/// Landlock and a mount do not add up: once a directory was moved out of the mount, Landlock takes
/// it for part of the mount (Linux 6.18), so that it is used on the directory itself.
pub fn raise(directory: OwnedFd, flat: bool, most_bytes: u64) -> Option<Confined> {
    let without = match landlock::version() {
        Ok(_) => None,
        Err(error) => Some((error, own_mount(directory.as_fd()))),
    };
    if let Err((what, error)) = limit(most_bytes) {
        say!("error: cannot raise a barrier of the receiver: {what}: {error}", error = Reason(error));
        return None;
    }
    match without {
        None => landlocked(directory, if flat { RIGHTS_FLAT } else { RIGHTS }),
        Some((_, Ok(mount))) => Some(Confined { directory: mount, landlocked: false }),
        Some((lock, Err(mount))) => {
            say!(
                "error: cannot confine the receiver: Landlock: {lock}; a mount of its own: {mount}",
                lock = Reason(lock),
                mount = Reason(mount)
            );
            say!("hint: use a kernel with Landlock (Linux 5.13), or start the receiver as root");
            None
        }
    }
}

fn landlocked(directory: OwnedFd, rights: u64) -> Option<Confined> {
    match landlock::confine_beneath(directory.as_fd(), rights).and_then(|()| prove()) {
        Ok(()) => Some(Confined { directory, landlocked: true }),
        Err(error) => {
            say!("error: cannot confine the receiver: Landlock: {error}", error = Reason(error));
            None
        }
    }
}

/// Use the capability that a mount needs, if we have it.
fn own_mount(directory: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let wanted = CapabilitySet::SYS_ADMIN;
    let permitted = rustix::thread::capabilities(None)?.permitted;
    if !permitted.contains(wanted) {
        return Err(Errno::PERM);
    }
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: wanted, permitted, inheritable: CapabilitySet::empty() },
    )?;
    landlock::own_mount(directory)
}

/// What needs no choice: no privilege to gain or left, no new process, bounded memory.
fn limit(most_bytes: u64) -> Result<(), (&'static str, Errno)> {
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )
    .map_err(|error| ("dropping capabilities", error))?;
    rustix::thread::set_no_new_privs(true).map_err(|error| ("no_new_privs", error))?;
    for (resource, most) in [
        (Resource::Core, 0),
        (Resource::Nproc, 0),
        (Resource::As, MOST_MEMORY),
        (Resource::Nofile, DEEPEST as u64 + OTHER_DESCRIPTORS),
        (Resource::Fsize, most_bytes),
    ] {
        let hard = rustix::process::getrlimit(resource).maximum;
        if most == u64::MAX {
            continue; // no quota
        }
        let limit = Some(hard.map_or(most, |hard| hard.min(most)));
        rustix::process::setrlimit(resource, Rlimit { current: limit, maximum: limit })
            .map_err(|error| ("resource limits", error))?;
    }
    Ok(())
}

/// Try what must fail now.
fn prove() -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open("/", flags, Mode::empty()) {
        Err(Errno::ACCESS) => Ok(()),
        _ => Err(Errno::PERM),
    }
}
