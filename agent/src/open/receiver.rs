//! Service `qubes.OpenInVM`, the side that opens: `vm-file-editor`.
//!
//! In: the name's field (`name`), then the content to the end. Out: the content where it was changed,
//! otherwise nothing.

use core::ffi::CStr;

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::flow::{self, Trouble};
use crate::open::folder::Folder;
use crate::open::name::{self, Wanted, Wrong};
use crate::open::opener::{self, Kind};
use crate::open::say_limit;
use crate::speak::{Reason, Shown};
use crate::sys::call;
use crate::{code, environment, say};

/// Run the service, with files of `bound` bytes at most; its exit code. 0 is an edit that ended well, whether it changed the file or not.
pub fn run(bound: u64, environment: &[&CStr]) -> i32 {
    call::ignore_broken_pipes();
    let wanted = match read_name() {
        Ok(wanted) => wanted,
        Err(text) => return failed(text),
    };
    let Some(program) = opener::find(Kind::File, environment) else {
        opener::say_missing(Kind::File);
        return code::FAILURE;
    };
    let source = environment::get(environment, b"QREXEC_REMOTE_DOMAIN").unwrap_or(b"unknown");
    let folder = match Folder::fresh(b"/tmp", &name::harmless(source)) {
        Ok(folder) => folder,
        Err(error) => return failed_because("cannot make a directory below `/tmp`", error),
    };
    let code = serve(&folder, &wanted, program, bound, environment);
    if let Err(error) = folder.remove() {
        say!("warning: the directory of the file stays: {}", Reason(error));
    }
    code
}

fn read_name() -> Result<Wanted, &'static str> {
    let mut field = [0; name::FIELD];
    match flow::read_full(call::standard(0), &mut field) {
        Ok(name::FIELD) => {}
        _ => return Err("the stream ended within the file's name"),
    }
    name::decode(&field).map_err(|wrong| match wrong {
        Wrong::Endless => "the file's name has no end",
        Wrong::Empty => "the file has no name",
        Wrong::Slash => "the file's name contains a `/`",
    })
}

fn serve(folder: &Folder, wanted: &Wanted, program: &[u8], bound: u64, environment: &[&CStr]) -> i32 {
    let before = match store(folder, wanted, bound) {
        Ok(before) => before,
        Err(Trouble::TooMuch) => return say_limit(bound),
        Err(Trouble::Reading(error)) => return failed_because("cannot read the file's content", error),
        Err(Trouble::Writing(error)) => return failed_because("cannot store the file", error),
    };
    let code = match opener::run(program, &folder.path_of(&wanted.name), environment) {
        Ok(code) => code,
        Err(error) => return failed_because("cannot start the program that opens files", error),
    };
    if code != 0 {
        say!("error: `{}` ended with code {code}", Shown(program));
    }
    if !wanted.view_only {
        // Also after an error: the caller keeps what a crashed editor saved, but not in the file's place.
        if let Err(code) = send_back(folder, wanted, &before, bound) {
            return code;
        }
    }
    if code == 0 {
        0
    } else {
        code::FAILURE
    }
}

/// Store the content; the file as it was when nobody had touched it.
fn store(folder: &Folder, wanted: &Wanted, bound: u64) -> Result<Stat, Trouble> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let file = rustix::fs::openat(&folder.fd, &wanted.name[..], flags, mode).map_err(Trouble::Writing)?;
    flow::copy(call::standard(0), &file, bound)?;
    if wanted.view_only {
        rustix::fs::fchmod(&file, Mode::RUSR).map_err(Trouble::Writing)?;
    }
    rustix::fs::fstat(&file).map_err(Trouble::Writing)
}

fn send_back(folder: &Folder, wanted: &Wanted, before: &Stat, bound: u64) -> Result<(), i32> {
    let file = match open_edited(folder, wanted) {
        Ok(Some(file)) => file,
        Ok(None) => return Err(failed("the edited file is no regular file any more")),
        Err(error) => return Err(failed_because("cannot read the edited file", error)),
    };
    match rustix::fs::fstat(&file) {
        Ok(after) if !changed(before, &after) => return Ok(()),
        Ok(_) => {}
        Err(error) => return Err(failed_because("cannot look at the edited file", error)),
    }
    match flow::copy(&file, call::standard(1), bound) {
        Ok(_) => Ok(()),
        Err(Trouble::TooMuch) => Err(say_limit(bound)),
        Err(Trouble::Reading(error)) => Err(failed_because("cannot read the edited file", error)),
        Err(Trouble::Writing(error)) => Err(failed_because("cannot send the edited file", error)),
    }
}

/// Open what has the file's name now, unless it is a link or no regular file.
///
/// A document that makes its program swap the file for a link gets no other file sent.
fn open_edited(folder: &Folder, wanted: &Wanted) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(&folder.fd, &wanted.name[..], flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::LOOP | Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error),
    };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    Ok((kind == FileType::RegularFile).then_some(file))
}

fn changed(before: &Stat, after: &Stat) -> bool {
    (before.st_mtime, before.st_mtime_nsec, before.st_size)
        != (after.st_mtime, after.st_mtime_nsec, after.st_size)
}

fn failed(text: &str) -> i32 {
    say!("error: {text}");
    code::FAILURE
}

fn failed_because(text: &str, error: Errno) -> i32 {
    say!("error: {text}: {error}", error = Reason(error));
    code::FAILURE
}
