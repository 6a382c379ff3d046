//! Delete what was delivered, and only that: what changed since it was read stays.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::levels::Levels;
use super::listing;
use super::wire::Kind;
use crate::say;
use crate::speak::{Reason, Shown};

/// More complaints are only counted.
const MOST_WORDS: usize = 10;

/// Device and inode.
type File = (u64, u64);
/// When an inode changed last: its content, its mode, its number of names.
type Changed = (i64, u64);

/// A file, link or directory as it was when it was sent.
pub struct Delivered {
    name: Box<[u8]>,
    kind: Kind,
    file: File,
    changed: Changed,
}

impl Delivered {
    /// Note it under its name on the wire.
    pub fn new(name: &[u8], kind: Kind, found: &Stat) -> Self {
        Self { name: name.into(), kind, file: (found.st_dev, found.st_ino), changed: changed(found) }
    }
}

fn changed(found: &Stat) -> Changed {
    (found.st_ctime, found.st_ctime_nsec)
}

/// Files that lose one name after the other: each loss is a change, and that change is ours.
#[derive(Default)]
pub struct Names(BTreeMap<File, Changed>);

impl Names {
    /// Whether what lies there now is what was sent. A directory changes by being emptied.
    fn is_same(&self, entry: &Delivered, found: &Stat) -> bool {
        let expected = self.0.get(&entry.file).unwrap_or(&entry.changed);
        entry.file == (found.st_dev, found.st_ino)
            && (entry.kind == Kind::Directory || *expected == changed(found))
    }

    /// A name of `file`, which was as `before` says, is gone.
    fn lost_one(&mut self, file: &OwnedFd, before: &Stat) -> Result<(), Errno> {
        let now = rustix::fs::fstat(file)?;
        let content = |at: &Stat| (at.st_dev, at.st_ino, at.st_size, at.st_mtime, at.st_mtime_nsec);
        if content(&now) == content(before) {
            self.0.insert((now.st_dev, now.st_ino), changed(&now));
        }
        Ok(())
    }
}

/// Delete entries, the content of a directory before it, below the directory that held them all.
///
/// Returns how many stay; each of the first is told of.
pub fn remove(parent: OwnedFd, delivered: &[Delivered], names: &mut Names) -> usize {
    let mut levels = Levels::new(parent, ResolveFlags::empty(), true);
    let mut stayed = 0;
    for entry in delivered {
        let Err(error) = remove_one(&mut levels, entry, names) else { continue };
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
fn remove_one(levels: &mut Levels, entry: &Delivered, names: &mut Names) -> Result<(), Errno> {
    let (parent, last) = levels.parent(&entry.name)?;
    let found = listing::look(parent, last)?;
    if !names.is_same(entry, &found) {
        return Err(Errno::STALE);
    }
    if entry.kind == Kind::Directory {
        return rustix::fs::unlinkat(parent, last, AtFlags::REMOVEDIR);
    }
    if found.st_nlink == 1 {
        return rustix::fs::unlinkat(parent, last, AtFlags::empty());
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, last, flags, Mode::empty())?;
    rustix::fs::unlinkat(parent, last, AtFlags::empty())?;
    names.lost_one(&file, &found)
}
