//! The directory that files are received into, and the way to each place beneath it.
//!
//! Every step is by descriptor, one component at a time; no symbolic link is followed and no other
//! file system entered. Nothing that exists is opened but directories.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps, CWD};
use rustix::io::Errno;

use super::barriers::Confined;
use super::levels::{open_beneath, Levels, DIRECTORY};
use super::wire::{Header, Moment};
use crate::text::c_string;

const INCOMING: &[u8] = b"QubesIncoming";
const LONGEST_QUBE_NAME: usize = 31;
/// Modes that are kept. Set-user-id and set-group-id are not: a file of another qube gets no
/// privilege of this one by being moved to where programs may run.
const KEPT_MODES: u32 = 0o1777;
const NEW_FILE: OFlags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL);
const NAMELESS_FILE: OFlags = OFlags::WRONLY.union(OFlags::TMPFILE);
const OWN: Mode = Mode::RUSR.union(Mode::WUSR);
/// A file of this size is worth one more look before it is received.
const MUCH: u64 = 64 * 1024;
const HOW: ResolveFlags = ResolveFlags::NO_XDEV;

/// Open a directory that somebody chose for us.
pub fn open_given(path: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Open `QubesIncoming/<source>` in a home directory, made where it is missing.
pub fn open_incoming(home: &[u8], source: &[u8]) -> Result<OwnedFd, Errno> {
    let home = open_given(home)?;
    let incoming = open_or_make(home.as_fd(), INCOMING)?;
    open_or_make(incoming.as_fd(), source)
}

/// A directory in ours, which must be the user's own and no link.
fn open_or_make(at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(at, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let opened = open_beneath(at, name, DIRECTORY, Mode::empty(), ResolveFlags::empty())?;
    if rustix::fs::fstat(&opened)?.st_uid != rustix::process::geteuid().as_raw() {
        return Err(Errno::PERM);
    }
    Ok(opened)
}

/// True for what can be the name of a qube: it becomes the name of a directory.
pub fn is_qube_name(name: &[u8]) -> bool {
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
    (1..=LONGEST_QUBE_NAME).contains(&name.len()) && name[0].is_ascii_alphabetic() && name.iter().all(inner)
}

/// A file under construction.
pub struct NewFile {
    file: OwnedFd,
    nameless: bool,
}

impl NewFile {
    /// Append bytes.
    pub fn write(&self, mut bytes: &[u8]) -> Result<(), Errno> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.file, bytes) {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The directory that receives.
pub struct Place {
    levels: Levels,
    /// Whether files without a name can be made here: they appear when they are complete.
    nameless: bool,
}

impl Place {
    /// Start at the directory.
    pub fn new(confined: Confined) -> Self {
        // Without Landlock a directory that is open might have been moved away.
        Self { levels: Levels::new(confined.directory, HOW, confined.landlocked), nameless: true }
    }

    /// Bytes that are free for us where files are written.
    pub fn free_bytes(&self) -> Result<u64, Errno> {
        let space = rustix::fs::fstatvfs(self.levels.root())?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// Bring everything to the disk: the sender may delete its own once it hears that all is here.
    pub fn flush(&self) -> Result<(), Errno> {
        rustix::fs::syncfs(self.levels.root())
    }

    /// Make a directory; one that exists gets the mode and times of the header instead.
    pub fn directory(&mut self, name: &[u8], header: &Header) -> Result<(), Errno> {
        let (parent, last) = self.levels.parent(name)?;
        match rustix::fs::mkdirat(parent, last, Mode::RWXU) {
            Err(Errno::EXIST) => {
                let directory = open_beneath(parent, last, DIRECTORY, Mode::empty(), HOW)?;
                finish(directory.as_fd(), header)
            }
            other => other,
        }
    }

    /// Make a symbolic link.
    pub fn link(&mut self, name: &[u8], target: &[u8]) -> Result<(), Errno> {
        let (parent, last) = self.levels.parent(name)?;
        rustix::fs::symlinkat(target, parent, last)
    }

    /// Begin a file of `length` bytes; `name` must be free.
    pub fn begin_file(&mut self, name: &[u8], length: u64) -> Result<NewFile, Errno> {
        if self.nameless {
            let (parent, last) = self.levels.parent(name)?;
            if length > MUCH {
                refuse_existing(parent, last)?;
            }
            match open_beneath(parent, b".", NAMELESS_FILE, OWN, HOW) {
                Ok(file) => return Ok(NewFile { file, nameless: true }),
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => self.nameless = false,
                Err(error) => return Err(error),
            }
        }
        let (parent, last) = self.levels.parent(name)?;
        open_beneath(parent, last, NEW_FILE, OWN, HOW).map(|file| NewFile { file, nameless: false })
    }

    /// Give a file its mode and times, and its name if it has none yet.
    pub fn finish_file(&mut self, new: NewFile, name: &[u8], header: &Header) -> Result<(), Errno> {
        finish(new.file.as_fd(), header)?;
        if !new.nameless {
            return Ok(());
        }
        let (parent, last) = self.levels.parent(name)?;
        match rustix::fs::linkat(&new.file, "", parent, last, AtFlags::EMPTY_PATH) {
            // Before Linux 6.10 it takes a privilege.
            Err(Errno::NOENT) => {}
            linked => return linked,
        }
        let own = c_string(&[b"/proc/self/fd/", alloc::format!("{}", new.file.as_raw_fd()).as_bytes()]);
        rustix::fs::linkat(CWD, &own, parent, last, AtFlags::SYMLINK_FOLLOW)
    }
}

/// Say early what making the link would say after all was sent.
fn refuse_existing(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Set the mode, then the times, of what is open.
fn finish(file: BorrowedFd<'_>, header: &Header) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(header.mode & KEPT_MODES);
    if mode != OWN {
        rustix::fs::fchmod(file, mode)?;
    }
    let time = |at: Moment| Timespec { tv_sec: i64::from(at.seconds), tv_nsec: at.nanoseconds.into() };
    let times = Timestamps { last_access: time(header.accessed), last_modification: time(header.modified) };
    rustix::fs::futimens(file, &times)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes a directory's name is a qube's name.
    #[test]
    fn qube_names() {
        for right in [&b"work"[..], b"dom0", b"a", b"disp123", b"a.b_c-d", &[b'x'; 31]] {
            assert!(is_qube_name(right));
        }
        for wrong in
            [&b""[..], b".", b"..", b"../x", b"a/b", b"1a", b"a\n", b"@x", b"-a", &[b'x'; 32], b"\xc3\xa4"]
        {
            assert!(!is_qube_name(wrong));
        }
    }
}
