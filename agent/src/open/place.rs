//! The place of a file that is edited elsewhere: what it was, and putting new content there.

use alloc::vec::Vec;

use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{Access, AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, CWD};
use rustix::io::Errno;

use crate::flow::{self, Trouble};
use crate::open::folder::random_letters;
use crate::text::basename;

const ATTEMPTS: usize = 100;

/// What came of new content.
#[derive(Debug, PartialEq, Eq)]
pub enum Put {
    /// It is the file now.
    InPlace,
    /// It lies beside the file under this name.
    Beside(Vec<u8>),
}

/// A regular file that was opened, and where it lies.
pub struct Place {
    directory: OwnedFd,
    name: Vec<u8>,
    before: Stat,
}

impl Place {
    /// The place of an opened file. Links on the way to it were followed when it was opened; from here
    /// on only its directory and its name count.
    pub fn of(file: &OwnedFd, before: Stat) -> Result<Self, Errno> {
        let own = alloc::format!("/proc/self/fd/{}", file.as_raw_fd());
        let path = rustix::fs::readlinkat(CWD, &own, Vec::new())?.into_bytes();
        let name = basename(&path).to_vec();
        let parent = &path[..path.len() - name.len()];
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent, flags, Mode::empty())?;
        let place = Self { directory, name, before };
        // Also true of a file that was removed meanwhile.
        if place.is_untouched()? {
            Ok(place)
        } else {
            Err(Errno::STALE)
        }
    }

    /// True where we may put new content there.
    pub fn is_writable(&self) -> bool {
        let may = |name: &[u8], access| {
            rustix::fs::accessat(&self.directory, name, access, AtFlags::empty()).is_ok()
        };
        may(&self.name, Access::WRITE_OK) && may(b".", Access::WRITE_OK | Access::EXEC_OK)
    }

    /// A file without a name on the same file system, which vanishes with us.
    pub fn spool(&self) -> Result<OwnedFd, Errno> {
        let (spool, name) = self.new_file(b".part")?;
        rustix::fs::unlinkat(&self.directory, &name[..], AtFlags::empty())?;
        Ok(spool)
    }

    /// Put the content of `spool` in the file's place; beside it where the file has changed since.
    pub fn replace(&self, spool: &OwnedFd, limit: u64) -> Result<Put, Trouble> {
        let (new, name) = self.copied(spool, limit)?;
        let put = self.keep_owner(&new).and_then(|()| {
            if !self.is_untouched()? {
                return Ok(Put::Beside(name.clone()));
            }
            rustix::fs::renameat(&self.directory, &name[..], &self.directory, &self.name[..])?;
            Ok(Put::InPlace)
        });
        match put {
            Err(Errno::PERM) => Ok(Put::Beside(name)),
            other => other.map_err(Trouble::Writing),
        }
    }

    /// Put the content of `spool` beside the file; its name.
    pub fn put_beside(&self, spool: &OwnedFd, limit: u64) -> Result<Vec<u8>, Trouble> {
        self.copied(spool, limit).map(|(_, name)| name)
    }

    /// True while the name still means the file that was opened, with the content that it had.
    fn is_untouched(&self) -> Result<bool, Errno> {
        let now = match rustix::fs::statat(&self.directory, &self.name[..], AtFlags::SYMLINK_NOFOLLOW) {
            Ok(now) => now,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(error),
        };
        let facts = |stat: &Stat| {
            (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_mode)
        };
        Ok(FileType::from_raw_mode(now.st_mode) == FileType::RegularFile
            && facts(&now) == facts(&self.before))
    }

    fn copied(&self, spool: &OwnedFd, limit: u64) -> Result<(OwnedFd, Vec<u8>), Trouble> {
        rustix::fs::seek(spool, rustix::fs::SeekFrom::Start(0)).map_err(Trouble::Reading)?;
        let (new, name) = self.new_file(b".edited").map_err(Trouble::Writing)?;
        // Without the bits that would give its content another user's rights.
        let mode = Mode::from_raw_mode(self.before.st_mode & 0o777);
        let filled = flow::copy(spool, &new, limit).and_then(|_| {
            rustix::fs::fchmod(&new, mode).and_then(|()| rustix::fs::fsync(&new)).map_err(Trouble::Writing)
        });
        match filled {
            Ok(()) => Ok((new, name)),
            Err(trouble) => {
                let _ = rustix::fs::unlinkat(&self.directory, &name[..], AtFlags::empty());
                Err(trouble)
            }
        }
    }

    fn keep_owner(&self, new: &OwnedFd) -> Result<(), Errno> {
        let made = rustix::fs::fstat(new)?;
        if (made.st_uid, made.st_gid) == (self.before.st_uid, self.before.st_gid) {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(self.before.st_uid), Gid::from_raw(self.before.st_gid));
        rustix::fs::fchown(new.as_fd(), Some(uid), Some(gid))
    }

    fn new_file(&self, suffix: &[u8]) -> Result<(OwnedFd, Vec<u8>), Errno> {
        /// So much of the name is kept, for the new one is not to be too long.
        const KEPT: usize = 200;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..ATTEMPTS {
            let stem = &self.name[..self.name.len().min(KEPT)];
            let name = [stem, suffix, b".", &random_letters()?].concat();
            match rustix::fs::openat(&self.directory, &name[..], flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => return Ok((file, name)),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::EXIST)
    }
}
