//! The way from a directory down to a file, by descriptor, one component at a time.

use alloc::vec::Vec;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::names::components;

/// Open a directory, and nothing else.
pub const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

const NO_WAY_OUT: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Open one component, which is no symbolic link (`LOOP`) and leads nowhere else.
pub fn open_beneath(
    at: BorrowedFd<'_>,
    name: &[u8],
    flags: OFlags,
    mode: Mode,
    more: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(at, name, flags | OFlags::CLOEXEC, mode, NO_WAY_OUT | more)
}

/// A directory, and an open descriptor for each level down to the place used last.
pub struct Levels {
    root: OwnedFd,
    more: ResolveFlags,
    keeps: bool,
    open: Vec<(Vec<u8>, OwnedFd)>,
}

impl Levels {
    /// Start at a directory; `more` restricts each step further, `keeps` allows to go on from a directory that was opened before.
    pub fn new(root: OwnedFd, more: ResolveFlags, keeps: bool) -> Self {
        Self { root, more, keeps, open: Vec::new() }
    }

    /// The directory that all ways start from.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The directory that holds `name`, and the last component of `name`.
    pub fn parent<'n>(&mut self, name: &'n [u8]) -> Result<(BorrowedFd<'_>, &'n [u8]), Errno> {
        let (path, last) = match name.iter().rposition(|&byte| byte == b'/') {
            Some(at) => (Some(&name[..at]), &name[at + 1..]),
            None => (None, name),
        };
        if !self.keeps {
            self.open.clear();
        }
        let mut depth = 0;
        for component in path.into_iter().flat_map(components) {
            if !self.open.get(depth).is_some_and(|(known, _)| known == component) {
                self.open.truncate(depth);
                let opened = open_beneath(self.last(), component, DIRECTORY, Mode::empty(), self.more)?;
                self.open.push((component.to_vec(), opened));
            }
            depth += 1;
        }
        self.open.truncate(depth);
        Ok((self.last(), last))
    }

    fn last(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd())
    }
}
