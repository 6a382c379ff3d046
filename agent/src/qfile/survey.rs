//! Look over what is to be copied, before anybody is asked.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::listing;
use super::names;
use super::walk::{self, Visitor};
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
        walk::entry(&mut surveyor, start.parent.as_fd(), start.name, kind, 1)?;
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
    fn see(&mut self, text: &[u8]) {
        self.found.odd_names |= !names::is_displayable(text);
    }
}

impl Visitor for Surveyor {
    type Stop = String;

    fn path(&mut self) -> &mut Vec<u8> {
        &mut self.path
    }

    fn unreadable(&self, error: Errno) -> String {
        cannot(&self.path, error)
    }

    fn uncopyable(&self) -> String {
        uncopyable(&self.path)
    }

    fn file(&mut self, at: BorrowedFd<'_>, name: &[u8]) -> Result<(), String> {
        self.see(name);
        if self.with_bytes {
            let size = listing::look(at, name).map_err(|error| self.unreadable(error))?.st_size;
            self.found.bytes = self.found.bytes.saturating_add(u64::try_from(size).unwrap_or(0));
        }
        Ok(())
    }

    fn link(&mut self, at: BorrowedFd<'_>, name: &[u8]) -> Result<(), String> {
        self.see(name);
        let target = rustix::fs::readlinkat(at, name, Vec::new()).map_err(|error| self.unreadable(error))?;
        self.see(target.as_bytes());
        Ok(())
    }

    fn directory(&mut self, at: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<(), String> {
        self.see(name);
        let opened =
            listing::open_to_read(at, name, OFlags::DIRECTORY).map_err(|error| self.unreadable(error))?;
        walk::content(self, &opened, depth)
    }
}
