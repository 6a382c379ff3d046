//! Find a service: along the search path, first the one made for this argument, then the general one.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::{problem, tcp, Attempt, Failure, Request, LONGEST_NAME};
use crate::code;
use crate::speak::{Reason, Shown};
use crate::text::{c_string, directories};

/// What serves a call.
pub enum Found {
    /// A file to execute.
    Program(CString),
    /// A Unix socket to connect to.
    Socket {
        /// Where it lies.
        path: CString,
        /// True where nobody but root can have put it there.
        placed_by_root: bool,
    },
    /// A link whose text names a TCP service.
    Tcp(Vec<u8>),
}

/// Find what serves the call; anything unusable on the way ends the search.
pub fn find(request: &Request<'_>, path: &[u8]) -> Attempt<Found> {
    let specific = match request.argument() {
        Some(_) => request.descriptor.to_vec(),
        None => [request.descriptor, b"+"].concat(),
    };
    for file in [&specific[..], request.name()] {
        if file.len() > LONGEST_NAME {
            continue;
        }
        for directory in directories(path) {
            if let Some(found) = look_at(directory, file)? {
                return Ok(found);
            }
        }
    }
    let name = Shown(request.descriptor);
    Err(Failure(code::NOT_FOUND, alloc::format!("the called qube has no service `{name}`")))
}

fn look_at(directory: &[u8], file: &[u8]) -> Attempt<Option<Found>> {
    let path = c_string(&[directory, b"/", file]);
    let unreachable = |error: Errno| {
        let shown = Shown(path.as_bytes());
        problem(alloc::format!("cannot look at `{shown}`: {error}", error = Reason(error)))
    };
    let entry = match rustix::fs::lstat(&path) {
        Ok(entry) => entry,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return unreachable(error),
    };
    let mut kind = FileType::from_raw_mode(entry.st_mode);
    if kind == FileType::Symlink {
        let text = match rustix::fs::readlink(&path, Vec::new()) {
            Ok(text) => text.into_bytes(),
            Err(error) => return unreachable(error),
        };
        if tcp::is_tcp(&text) {
            return Ok(Some(Found::Tcp(text)));
        }
        kind = match rustix::fs::stat(&path) {
            Ok(found) => FileType::from_raw_mode(found.st_mode),
            // A link that leads nowhere is no service.
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return unreachable(error),
        };
    }
    match kind {
        FileType::RegularFile => Ok(Some(Found::Program(path))),
        FileType::Socket => {
            let placed_by_root = placed_by_root(directory, &entry);
            Ok(Some(Found::Socket { path, placed_by_root }))
        }
        _ => problem(alloc::format!("`{}` is neither a program nor a socket", Shown(path.as_bytes()))),
    }
}

fn placed_by_root(directory: &[u8], entry: &Stat) -> bool {
    const OTHERS_WRITE: u32 = 0o022;
    let directory: &CStr = &c_string(&[directory]);
    entry.st_uid == 0
        && rustix::fs::stat(directory)
            .is_ok_and(|found| found.st_uid == 0 && found.st_mode & OTHERS_WRITE == 0)
}
