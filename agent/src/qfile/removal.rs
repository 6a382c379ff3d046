//! Delete what was delivered, and only that: what changed since it was read stays.

use alloc::boxed::Box;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::levels::Levels;
use super::listing;
use super::wire::Kind;
use crate::say;
use crate::speak::{Reason, Shown};

/// More complaints are only counted.
const MOST_WORDS: usize = 10;
/// A file, link or directory as it was when it was sent.
pub struct Delivered {
    name: Box<[u8]>,
    kind: Kind,
    file: (u64, u64),
    changed: (i64, u64),
}

impl Delivered {
    /// Note it under its name on the wire.
    pub fn new(name: &[u8], kind: Kind, found: &Stat) -> Self {
        Self {
            name: name.into(),
            kind,
            file: (found.st_dev, found.st_ino),
            changed: (found.st_ctime, found.st_ctime_nsec),
        }
    }

    /// Whether what lies there now is what was sent. A directory changes by being emptied.
    fn is(&self, found: &Stat) -> bool {
        self.file == (found.st_dev, found.st_ino)
            && (self.kind == Kind::Directory || self.changed == (found.st_ctime, found.st_ctime_nsec))
    }
}

/// Delete entries, the content of a directory before it, below the directory that held them all.
///
/// Returns how many stay; each of the first is told of.
pub fn remove(parent: OwnedFd, delivered: &[Delivered]) -> usize {
    let mut levels = Levels::new(parent, ResolveFlags::empty(), true);
    let mut stayed = 0;
    for entry in delivered {
        let Err(error) = remove_one(&mut levels, entry) else { continue };
        stayed += 1;
        if stayed > MOST_WORDS {
            continue;
        }
        let name = Shown(&entry.name);
        match error {
            Errno::STALE => say!("error: `{name}` changed since it was copied: it stays here, too"),
            Errno::NOTEMPTY => say!("error: `{name}` is not empty: it stays here, too"),
            other => say!("error: cannot delete `{name}`: {other}", other = Reason(other)),
        }
    }
    if stayed > MOST_WORDS {
        say!("error: {more} more stay here, too", more = stayed - MOST_WORDS);
    }
    stayed
}

/// `STALE` says that it is not what was sent any more.
fn remove_one(levels: &mut Levels, entry: &Delivered) -> Result<(), Errno> {
    let (parent, last) = levels.parent(&entry.name)?;
    if !entry.is(&listing::look(parent, last)?) {
        return Err(Errno::STALE);
    }
    let directory = entry.kind == Kind::Directory;
    let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    rustix::fs::unlinkat(parent, last, flags)
}
