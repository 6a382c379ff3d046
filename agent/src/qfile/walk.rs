//! The walk over what is copied: the survey goes it first, then the sender, by the same rules.

use alloc::vec::Vec;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;

use super::listing::{self, Listing};
use super::names::DEEPEST;
use super::wire::{Kind, LONGEST_NAME};

/// Who goes the walk.
pub trait Visitor {
    /// What ends the walk before its end.
    type Stop;

    /// The name on the wire of what is being visited.
    fn path(&mut self) -> &mut Vec<u8>;

    /// What is being visited cannot be read.
    fn unreadable(&self, error: Errno) -> Self::Stop;

    /// What is being visited is neither file nor directory nor link.
    fn uncopyable(&self) -> Self::Stop;

    /// A regular file, as far as the directory told.
    fn file(&mut self, at: BorrowedFd<'_>, name: &[u8]) -> Result<(), Self::Stop>;

    /// A symbolic link, as far as the directory told.
    fn link(&mut self, at: BorrowedFd<'_>, name: &[u8]) -> Result<(), Self::Stop>;

    /// A directory, as far as the directory above it told; its content is for `content`.
    fn directory(&mut self, at: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<(), Self::Stop>;
}

/// Visit an entry of the directory `at`, and all that is in it.
pub fn entry<V: Visitor>(
    visitor: &mut V,
    at: BorrowedFd<'_>,
    name: &[u8],
    kind: Option<Kind>,
    depth: usize,
) -> Result<(), V::Stop> {
    let path = visitor.path();
    let length = path.len();
    if length > 0 {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    if depth > DEEPEST || path.len() + 1 >= LONGEST_NAME as usize {
        return Err(visitor.unreadable(Errno::NAMETOOLONG));
    }
    match kind {
        Some(Kind::File) => visitor.file(at, name)?,
        Some(Kind::Link) => visitor.link(at, name)?,
        Some(Kind::Directory) => visitor.directory(at, name, depth)?,
        None => return Err(visitor.uncopyable()),
    }
    visitor.path().truncate(length);
    Ok(())
}

/// Visit all that is in an opened directory, which lies at this depth.
pub fn content<V: Visitor>(visitor: &mut V, directory: &OwnedFd, depth: usize) -> Result<(), V::Stop> {
    let at = directory.as_fd();
    let entries = Listing::of(at).map_err(|error| visitor.unreadable(error))?;
    for (name, told) in entries.iter() {
        let kind = listing::kind_of(at, name, told).map_err(|error| visitor.unreadable(error))?;
        entry(visitor, at, name, kind, depth + 1)?;
    }
    Ok(())
}
