//! Send files and trees as a stream. No link is followed.

use alloc::string::String;
use alloc::vec::Vec;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{OFlags, Stat};
use rustix::io::Errno;

use super::listing;
use super::output::{Halt, Output};
use super::removal::Delivered;
use super::survey::{cannot, uncopyable};
use super::walk::{self, Visitor};
use super::wire::{Header, Kind, Moment, END};
use crate::say;
use crate::speak::Shown;

/// Why sending ends before the end.
pub enum Stop {
    /// The receiver's side.
    Halted(Halt),
    /// Our side, in words for a person.
    Source(String),
}

impl From<Halt> for Stop {
    fn from(halt: Halt) -> Self {
        Self::Halted(halt)
    }
}

/// Sends one argument after the other.
pub struct Sender<'a> {
    output: Output<'a>,
    /// What to delete once it was delivered; `None` where it is a copy.
    delivered: Option<Vec<Delivered>>,
    /// The name on the wire of what is being sent.
    path: Vec<u8>,
    /// Whether a file grew: the other qube has its beginning only.
    grown: bool,
}

/// The header of a file as it is now.
fn header(name_length: usize, kind: Kind, found: &Stat, length: u64) -> Header {
    let seconds = |seconds: i64| u32::try_from(seconds.max(0)).unwrap_or(u32::MAX);
    let moment = |at, nanoseconds: u64| Moment { seconds: seconds(at), nanoseconds: nanoseconds as u32 };
    Header {
        name_length: name_length as u32 + 1,
        mode: kind.bits() | (found.st_mode & 0o7777),
        length,
        accessed: moment(found.st_atime, found.st_atime_nsec),
        modified: moment(found.st_mtime, found.st_mtime_nsec),
    }
}

impl<'a> Sender<'a> {
    /// Send through `output`; with `moves` note what was sent, to delete it.
    pub fn new(output: Output<'a>, moves: bool) -> Self {
        Self { output, delivered: moves.then(Vec::new), path: Vec::new(), grown: false }
    }

    /// Send an argument with all that is in it; where it lies, for its removal.
    pub fn argument(&mut self, argument: &[u8]) -> Result<OwnedFd, Stop> {
        let failed = |error| Stop::Source(cannot(argument, error));
        let start = listing::start(argument).map_err(failed)?;
        let found = listing::look(start.parent.as_fd(), start.name).map_err(failed)?;
        self.path.clear();
        walk::entry(self, start.parent.as_fd(), start.name, Kind::of_mode(found.st_mode), 1)?;
        Ok(start.parent)
    }

    /// How many entries were noted so far.
    pub fn noted(&self) -> usize {
        self.delivered.as_ref().map_or(0, Vec::len)
    }

    /// End the stream: the output to wait for its result, what was noted, whether a file grew.
    pub fn end(mut self) -> Result<(Output<'a>, Vec<Delivered>, bool), Stop> {
        self.output.write(&END)?;
        Ok((self.output, self.delivered.unwrap_or_default(), self.grown))
    }

    fn announce(&mut self, kind: Kind, found: &Stat, length: u64) -> Result<(), Stop> {
        let header = header(self.path.len(), kind, found, length);
        self.output.write(&header.encode())?;
        self.output.write(&self.path)?;
        Ok(self.output.write(b"\0")?)
    }

    fn note(&mut self, kind: Kind, found: &Stat) {
        if let Some(delivered) = &mut self.delivered {
            delivered.push(Delivered::new(&self.path, kind, found));
        }
    }

    /// Send `length` bytes; true where the file has more by now.
    fn content(&mut self, file: &OwnedFd, length: u64) -> Result<bool, Stop> {
        let mut left = length;
        while left > 0 {
            let room = self.output.room()?;
            // One byte more than announced shows a file that grew, at no cost.
            let most = room.len().min(usize::try_from(left.saturating_add(1)).unwrap_or(usize::MAX));
            match rustix::io::read(file, &mut room[..most]) {
                Ok(0) => {
                    let text = alloc::format!("`{}` became shorter while it was copied", Shown(&self.path));
                    return Err(Stop::Source(text));
                }
                Ok(count) if count as u64 > left => {
                    self.output.wrote(left as usize);
                    return Ok(true);
                }
                Ok(count) => {
                    self.output.wrote(count);
                    left -= count as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.unreadable(error)),
            }
        }
        Ok(false)
    }
}

impl Visitor for Sender<'_> {
    type Stop = Stop;

    fn path(&mut self) -> &mut Vec<u8> {
        &mut self.path
    }

    fn unreadable(&self, error: Errno) -> Stop {
        Stop::Source(cannot(&self.path, error))
    }

    fn uncopyable(&self) -> Stop {
        Stop::Source(uncopyable(&self.path))
    }

    fn file(&mut self, at: BorrowedFd<'_>, name: &[u8]) -> Result<(), Stop> {
        let file =
            listing::open_to_read(at, name, OFlags::empty()).map_err(|error| self.unreadable(error))?;
        let found = rustix::fs::fstat(&file).map_err(|error| self.unreadable(error))?;
        if Kind::of_mode(found.st_mode) != Some(Kind::File) {
            return Err(self.uncopyable());
        }
        let length = u64::try_from(found.st_size).unwrap_or(0);
        self.announce(Kind::File, &found, length)?;
        if self.content(&file, length)? {
            self.grown = true;
            say!("error: `{}` grew while it was copied: only its beginning was", Shown(&self.path));
        } else {
            self.note(Kind::File, &found);
        }
        Ok(())
    }

    fn link(&mut self, at: BorrowedFd<'_>, name: &[u8]) -> Result<(), Stop> {
        let found = listing::look(at, name).map_err(|error| self.unreadable(error))?;
        let target = rustix::fs::readlinkat(at, name, Vec::new()).map_err(|error| self.unreadable(error))?;
        self.announce(Kind::Link, &found, target.as_bytes().len() as u64)?;
        self.output.write(target.as_bytes())?;
        self.note(Kind::Link, &found);
        Ok(())
    }

    fn directory(&mut self, at: BorrowedFd<'_>, name: &[u8], depth: usize) -> Result<(), Stop> {
        let opened =
            listing::open_to_read(at, name, OFlags::DIRECTORY).map_err(|error| self.unreadable(error))?;
        let found = rustix::fs::fstat(&opened).map_err(|error| self.unreadable(error))?;
        self.announce(Kind::Directory, &found, 0)?;
        walk::content(self, &opened, depth)?;
        self.announce(Kind::Directory, &found, 0)?;
        self.note(Kind::Directory, &found);
        Ok(())
    }
}
