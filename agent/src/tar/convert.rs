//! Turn an archive into a stream of files, member by member, in bounded memory.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use rustix::io::Errno;

use super::header::{self, Block, Header, Type, BLOCK};
use super::records::{self, Records};
use crate::qfile::codes;
use crate::qfile::input::Input;
use crate::qfile::names;
use crate::qfile::output::{Halt, Output};
use crate::qfile::wire::{self, Kind, Moment, END};
use crate::speak::{Reason, Shown};

/// A header about the next member (long names, records) is no longer.
const LONGEST_EXTENSION: u64 = 32 * 1024;
/// The names of all directories take no more memory.
const MOST_DIRECTORY_BYTES: usize = 16 << 20;
/// What a directory needs beside its name, about.
const DIRECTORY_COST: usize = 128;
const IMPLIED_MODE: u32 = 0o700;

/// Why the conversion ends early.
pub enum Stop {
    /// The receiver's side.
    Halted(Halt),
    /// The archive's side, in words for a person.
    Archive(String),
}

impl From<Halt> for Stop {
    fn from(halt: Halt) -> Self {
        Self::Halted(halt)
    }
}

fn broken<T>(text: &str) -> Result<T, Stop> {
    Err(Stop::Archive(text.into()))
}

fn unread(code: u32) -> Stop {
    match code {
        codes::NO_END | codes::SENDER_ENDED => Stop::Archive("the archive ends too early".into()),
        other => {
            let error = Errno::from_raw_os_error(other as i32);
            Stop::Archive(format!("cannot read the archive: {error}", error = Reason(error)))
        }
    }
}

/// The path of a member without what says nothing: `/` around it, `.` within it.
fn normal(name: &[u8]) -> Vec<u8> {
    let says_something = |part: &&[u8]| !matches!(*part, b"" | b".");
    let parts: Vec<&[u8]> = names::components(name).filter(says_something).collect();
    parts.join(&b'/')
}

/// Whether `path` is `above` or lies below it.
fn lies_in(path: &[u8], above: &[u8]) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Converts one archive.
pub struct Converter<'a> {
    input: Input<'a>,
    output: Output<'a>,
    /// Which members are wanted, with all below them; all where none is named.
    wanted: Vec<Vec<u8>>,
    /// The directories that we are in, each with the header that closes it.
    open: Vec<(Vec<u8>, wire::Header)>,
    made: BTreeSet<Vec<u8>>,
    made_bytes: usize,
}

impl<'a> Converter<'a> {
    /// Convert what `input` brings, as far as `wanted` names it.
    pub fn new(input: Input<'a>, output: Output<'a>, wanted: &[&[u8]]) -> Self {
        let wanted = wanted.iter().map(|name| normal(name)).collect();
        Self { input, output, wanted, open: Vec::new(), made: BTreeSet::new(), made_bytes: 0 }
    }

    /// Convert all members; the end mark is not sent yet.
    pub fn members(&mut self) -> Result<(), Stop> {
        let mut about = Records::default();
        loop {
            let mut block = [0; BLOCK];
            block.copy_from_slice(self.input.take(BLOCK).map_err(unread)?);
            let header = match header::parse(&block) {
                Block::Header(header) => header,
                Block::Malformed => return broken("the archive is no tar archive, or damaged"),
                Block::End => break,
            };
            match header.kind {
                Type::Records => {
                    let content = self.extension(header.size)?;
                    let Some(found) = records::parse(content) else {
                        return broken("the archive has records that make no sense");
                    };
                    about = Records {
                        name: found.name.or(about.name),
                        target: found.target.or(about.target),
                        ..found
                    };
                }
                Type::GlobalRecords => drop(self.extension(header.size)?),
                Type::LongName => about.name = Some(self.long_text(header.size)?),
                Type::LongTarget => about.target = Some(self.long_text(header.size)?),
                _ => self.member(header, core::mem::take(&mut about))?,
            }
        }
        self.leave(0)
    }

    /// Read to the end of the input; what follows the archive says nothing.
    pub fn drain(&mut self) {
        while self.input.take_some(u64::MAX).is_ok() {}
    }

    /// Send the end mark.
    pub fn end(mut self) -> Result<Output<'a>, Stop> {
        self.output.write(&END)?;
        Ok(self.output)
    }

    fn extension(&mut self, size: u64) -> Result<&[u8], Stop> {
        if size > LONGEST_EXTENSION {
            return broken("the archive has a name or record that is too long");
        }
        let size = size as usize;
        let padded = size.next_multiple_of(BLOCK);
        self.input.take(padded).map(|content| &content[..size]).map_err(unread)
    }

    fn long_text(&mut self, size: u64) -> Result<Vec<u8>, Stop> {
        self.extension(size).map(|text| names::c_text(text).to_vec())
    }

    fn member(&mut self, header: Header, about: Records) -> Result<(), Stop> {
        let name = normal(about.name.as_deref().unwrap_or(&header.name));
        let size = about.size.unwrap_or(header.size);
        let kind = match header.kind {
            Type::File => Some(Kind::File),
            Type::Directory => Some(Kind::Directory),
            Type::Link => Some(Kind::Link),
            _ => None,
        };
        let wanted = self.wanted.is_empty() || self.wanted.iter().any(|above| lies_in(&name, above));
        if name.is_empty() || !wanted {
            return self.skip(size, size);
        }
        if names::check(&name, true).is_err() {
            return Err(Stop::Archive(format!("the archive has a member `{}`", Shown(&name))));
        }
        let (Some(kind), false) = (kind, about.sparse) else {
            let text = format!("`{}` is no plain file, directory or link", Shown(&name));
            return Err(Stop::Archive(text));
        };
        let (seconds, nanoseconds) = about.modified.unwrap_or((header.modified, 0));
        let modified = Moment { seconds: u32::try_from(seconds).unwrap_or(u32::MAX), nanoseconds };
        let entry = wire::Header {
            name_length: name.len() as u32 + 1,
            mode: kind.bits() | header.mode,
            length: if kind == Kind::File { size } else { 0 },
            accessed: modified,
            modified,
        };
        self.enter(&name, modified)?;
        match kind {
            Kind::Directory => {
                self.directory(name, entry)?;
                self.skip(size, size)
            }
            Kind::File => self.file(&name, &entry),
            Kind::Link => {
                let target = about.target.unwrap_or(header.target);
                let entry = wire::Header { length: target.len() as u64, ..entry };
                self.announce(&name, &entry)?;
                self.output.write(&target)?;
                self.skip(size, size)
            }
        }
    }

    /// Close the directories that `name` is not in, and make those above it that were never named.
    fn enter(&mut self, name: &[u8], modified: Moment) -> Result<(), Stop> {
        let stays = |(path, _): &&(Vec<u8>, wire::Header)| path.len() < name.len() && lies_in(name, path);
        self.leave(self.open.iter().take_while(stays).count())?;
        for (at, _) in name.iter().enumerate().filter(|(_, &byte)| byte == b'/') {
            let above = &name[..at];
            if !self.made.contains(above) {
                let entry = wire::Header {
                    name_length: at as u32 + 1,
                    mode: Kind::Directory.bits() | IMPLIED_MODE,
                    length: 0,
                    accessed: modified,
                    modified,
                };
                self.directory(above.to_vec(), entry)?;
            }
        }
        Ok(())
    }

    /// Close all directories but the outermost `stay`.
    fn leave(&mut self, stay: usize) -> Result<(), Stop> {
        while self.open.len() > stay {
            if let Some((path, entry)) = self.open.pop() {
                self.announce(&path, &entry)?;
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: Vec<u8>, entry: wire::Header) -> Result<(), Stop> {
        self.announce(&path, &entry)?;
        if self.made.contains(&path) {
            return Ok(()); // told again: the receiver sets mode and times
        }
        self.made_bytes += path.len() + DIRECTORY_COST;
        if self.made_bytes > MOST_DIRECTORY_BYTES {
            return broken("the archive has too many directories");
        }
        self.made.insert(path.clone());
        self.open.push((path, entry));
        Ok(())
    }

    fn announce(&mut self, name: &[u8], entry: &wire::Header) -> Result<(), Stop> {
        self.output.write(&entry.encode())?;
        self.output.write(name)?;
        Ok(self.output.write(b"\0")?)
    }

    fn file(&mut self, name: &[u8], entry: &wire::Header) -> Result<(), Stop> {
        self.announce(name, entry)?;
        let mut left = entry.length;
        while left > 0 {
            let content = self.input.take_some(left).map_err(unread)?;
            left -= content.len() as u64;
            self.output.write(content)?;
        }
        self.skip(entry.length, 0)
    }

    /// Pass over what is left of a member of `size` bytes, and over its padding.
    fn skip(&mut self, size: u64, left: u64) -> Result<(), Stop> {
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        for mut left in [left, padding] {
            while left > 0 {
                left -= self.input.take_some(left).map_err(unread)?.len() as u64;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paths without what says nothing.
    #[test]
    fn paths() {
        assert_eq!(normal(b"./a//b/./c/"), b"a/b/c");
        assert_eq!(normal(b"/a"), b"a");
        assert_eq!(normal(b"./"), b"");
        assert_eq!(normal(b"a/../b"), b"a/../b");
        assert!(lies_in(b"a/b", b"a") && lies_in(b"a", b"a"));
        assert!(!lies_in(b"ab", b"a") && !lies_in(b"a", b"a/b"));
    }
}
