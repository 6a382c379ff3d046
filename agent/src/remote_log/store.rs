//! Where lines are kept: a file for each qube that sends, of bounded size, or the local syslog.

use alloc::vec::Vec;

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::flow;
use crate::remote_log::line::{self, Priority};
use crate::sys::call;

/// Who writes holds this. It is nobody's to open but the writers': who only reads makes none wait.
const LOCK: &[u8] = b".lock";
/// A file is put aside before it grows beyond this; one older file is kept.
const LARGEST: u64 = 8 << 20;

/// Takes lines.
pub enum Store {
    /// A file of the source.
    File(Files),
    /// The socket of a syslog, and the tag of the source.
    Syslog(OwnedFd, Vec<u8>),
}

/// The file of one source in a directory.
pub struct Files {
    directory: OwnedFd,
    lock: OwnedFd,
    name: Vec<u8>,
    largest: u64,
}

impl Store {
    /// Keep lines in `<directory>/<source>.log`; the directory and its parent are made where missing.
    pub fn in_files(directory: &[u8], source: &[u8]) -> Result<Self, Errno> {
        let parent = directory.rsplitn(2, |&byte| byte == b'/').nth(1).unwrap_or(b"/");
        for path in [parent, directory] {
            match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::open(directory, flags, Mode::empty())?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&opened, LOCK, flags, Mode::RUSR | Mode::WUSR)?;
        let name = [source, b".log"].concat();
        Ok(Self::File(Files { directory: opened, lock, name, largest: LARGEST }))
    }

    /// Send lines to the syslog that listens at `socket`.
    pub fn in_syslog(socket: &[u8], source: &[u8]) -> Result<Self, Errno> {
        let kind = SocketType::DGRAM;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(socket)?)?;
        Ok(Self::Syslog(fd, [b"qubes-", source].concat()))
    }

    /// Keep a line; it is kept when this returns without an error.
    pub fn keep(&self, priority: Priority, text: &str) -> Result<(), Errno> {
        match self {
            Self::File(files) => {
                let now = line::time(call::seconds());
                files.append(alloc::format!("{now} {}: {text}\n", priority.severity()).as_bytes())
            }
            Self::Syslog(socket, tag) => {
                let head = alloc::format!("<{}>", priority.number());
                let datagram = [head.as_bytes(), tag, b": ", text.as_bytes()].concat();
                rustix::net::send(socket, &datagram, SendFlags::NOSIGNAL).map(|_| ())
            }
        }
    }
}

impl Files {
    /// Append whole lines only, one writer at a time, also where several calls log at once.
    fn append(&self, bytes: &[u8]) -> Result<(), Errno> {
        rustix::fs::flock(&self.lock, FlockOperation::LockExclusive)?;
        let kept = self.append_locked(bytes);
        rustix::fs::flock(&self.lock, FlockOperation::Unlock)?;
        kept
    }

    fn append_locked(&self, bytes: &[u8]) -> Result<(), Errno> {
        let (mut file, mut size) = self.open()?;
        if size > 0 && size + bytes.len() as u64 > self.largest {
            let older = [&self.name[..], b".1"].concat();
            rustix::fs::renameat(&self.directory, &self.name[..], &self.directory, &older[..])?;
            (file, size) = self.open()?;
        }
        let written = flow::write_all(&file, bytes);
        if written.is_err() {
            // A full disk leaves no half a line.
            let _ = rustix::fs::ftruncate(&file, size);
        }
        written
    }

    fn open(&self) -> Result<(OwnedFd, u64), Errno> {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mode = Mode::from_raw_mode(0o644);
        let file = rustix::fs::openat(&self.directory, &self.name[..], flags | OFlags::CLOEXEC, mode)?;
        let found = rustix::fs::fstat(&file)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::RegularFile => Ok((file, found.st_size as u64)),
            _ => Err(Errno::INVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open::folder::Folder;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    fn path(folder: &Folder, name: &[u8]) -> PathBuf {
        PathBuf::from(std::ffi::OsString::from_vec(folder.path_of(name)))
    }

    fn files(folder: &Folder, largest: u64) -> Files {
        match Store::in_files(&folder.path, b"work").unwrap() {
            Store::File(files) => Files { largest, ..files },
            Store::Syslog(..) => unreachable!(),
        }
    }

    /// However much is sent, a source takes up two files of bounded size beside the lock, and the newest lines
    /// stay.
    #[test]
    fn a_source_is_bounded() {
        let folder = Folder::fresh(b"/tmp", b"log").unwrap();
        let files = files(&folder, 100);
        for number in 0..1_000 {
            files.append(std::format!("line {number}\n").as_bytes()).unwrap();
        }
        let read = |name: &[u8]| std::fs::read_to_string(path(&folder, name)).unwrap();
        let (new, old) = (read(b"work.log"), read(b"work.log.1"));
        assert!(new.len() <= 100 && old.len() <= 100);
        assert!(new.ends_with("line 999\n"));
        assert!(std::format!("{old}{new}").lines().all(|line| line.starts_with("line ")));
        assert_eq!(std::fs::read_dir(path(&folder, b".")).unwrap().count(), 3);
        folder.remove().unwrap();
    }

    /// A link in the place of the log is not followed.
    #[test]
    fn links_are_not_followed() {
        let folder = Folder::fresh(b"/tmp", b"log").unwrap();
        std::fs::write(path(&folder, b"other"), "").unwrap();
        std::os::unix::fs::symlink(path(&folder, b"other"), path(&folder, b"work.log")).unwrap();
        assert_eq!(files(&folder, 100).append(b"x\n"), Err(Errno::LOOP));
        assert_eq!(std::fs::read(path(&folder, b"other")).unwrap(), b"");
        folder.remove().unwrap();
    }
}
