//! Look over what is to be copied, before anybody is asked.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::listing::{self, Listing};
use super::names::{self, DEEPEST};
use super::wire::Kind;
use crate::speak::{Reason, Shown};

/// What was found.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Bytes of all files; only where they were asked for.
    pub bytes: u64,
    /// A name or a link's target is not safe to display.
    pub odd_names: bool,
}

/// Look over the arguments and all that is in them; the error is words for a person.
pub fn survey(arguments: &[&'static CStr], with_bytes: bool) -> Result<Survey, String> {
    let mut surveyor = Surveyor { found: Survey::default(), with_bytes, path: Vec::new() };
    for argument in arguments {
        let argument = argument.to_bytes();
        let start = listing::start(argument).map_err(|error| match error {
            Errno::INVAL => format!("`{}` has no name of its own that could be kept", Shown(argument)),
            other => cannot(argument, other),
        })?;
        let found =
            listing::look(start.parent.as_fd(), start.name).map_err(|error| cannot(argument, error))?;
        let kind = Kind::of_mode(found.st_mode);
        if kind == Some(Kind::Link) {
            return Err(format!("`{}` is a symbolic link: name what it leads to", Shown(argument)));
        }
        surveyor.path.clear();
        surveyor.entry(start.parent.as_fd(), start.name, kind, 1)?;
    }
    Ok(surveyor.found)
}

/// What a person is told of a file that cannot be read.
pub fn cannot(path: &[u8], error: Errno) -> String {
    format!("cannot read `{}`: {error}", Shown(path), error = Reason(error))
}

/// What a person is told of what is neither file nor directory nor link.
pub fn uncopyable(path: &[u8]) -> String {
    format!("`{}` is no file, directory or symbolic link: nothing else can be copied", Shown(path))
}

struct Surveyor {
    found: Survey,
    with_bytes: bool,
    path: Vec<u8>,
}

impl Surveyor {
    fn entry(
        &mut self,
        at: BorrowedFd<'_>,
        name: &[u8],
        kind: Option<Kind>,
        depth: usize,
    ) -> Result<(), String> {
        let length = self.path.len();
        if length > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        self.found.odd_names |= !names::is_displayable(name);
        let done = match kind {
            None => return Err(uncopyable(&self.path)),
            Some(_) if depth > DEEPEST => {
                return Err(format!("`{}` lies deeper than {DEEPEST} levels", Shown(&self.path)));
            }
            Some(Kind::File) => self.file(at, name),
            Some(Kind::Link) => self.link(at, name),
            Some(Kind::Directory) => return self.directory(at, name, depth, length),
        };
        done.map_err(|error| cannot(&self.path, error))?;
        self.path.truncate(length);
        Ok(())
    }

    fn file(&mut self, at: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        if self.with_bytes {
            let size = listing::look(at, name)?.st_size;
            self.found.bytes = self.found.bytes.saturating_add(u64::try_from(size).unwrap_or(0));
        }
        Ok(())
    }

    fn link(&mut self, at: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
        let target = rustix::fs::readlinkat(at, name, Vec::new())?;
        self.found.odd_names |= !names::is_displayable(target.as_bytes());
        Ok(())
    }

    fn directory(
        &mut self,
        at: BorrowedFd<'_>,
        name: &[u8],
        depth: usize,
        length: usize,
    ) -> Result<(), String> {
        let opened = listing::open_to_read(at, name, OFlags::DIRECTORY)
            .and_then(|fd| Listing::of(fd.as_fd()).map(|listing| (fd, listing)));
        let (fd, entries) = opened.map_err(|error| cannot(&self.path, error))?;
        for (name, told) in entries.iter() {
            let kind = listing::kind_of(fd.as_fd(), name, told).map_err(|error| cannot(&self.path, error))?;
            self.entry(fd.as_fd(), name, kind, depth + 1)?;
        }
        self.path.truncate(length);
        Ok(())
    }
}
