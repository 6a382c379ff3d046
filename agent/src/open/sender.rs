//! Services `qubes.OpenInVM` and `qubes.OpenURL`, the side that asks.

use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::conversation::Conversation;
use crate::flow::{self, Trouble};
use crate::open::name;
use crate::open::place::{Place, Put};
use crate::open::say_limit;
use crate::open::url;
use crate::speak::{Reason, Shown};
use crate::text::basename;
use crate::{code, say};

/// Where something is opened, and how.
pub struct Wish<'a> {
    /// The qube, or a keyword as `@dispvm`.
    pub target: &'a [u8],
    /// The file is only looked at.
    pub view_only: bool,
    /// It has so many bytes at most, and so has what comes back.
    pub bound: u64,
    /// Our own environment.
    pub environment: &'a [&'a CStr],
}

/// Open an address; the exit code of the call.
pub fn open_address(wish: &Wish<'_>, address: &[u8]) -> i32 {
    let address = match url::check(address) {
        Ok(address) => address,
        Err(wrong) => {
            say!("error: the address `{}` is not sent: {}", Shown(address), wrong.text());
            return code::FAILURE;
        }
    };
    let mut call = match Conversation::start(wish.target, b"qubes.OpenURL", wish.environment) {
        Ok(call) => call,
        Err(error) => return no_call(error),
    };
    if let Some(to) = call.to.take() {
        // Where nobody reads any more, the code will say why.
        let _ = flow::write_all(&to, &[&address[..], b"\n"].concat());
    }
    call.finish()
}

/// Open a file, and take what was made of it; the exit code of the call, 1 for trouble of our own.
pub fn open_file(wish: &Wish<'_>, path: &[u8]) -> i32 {
    let bound = wish.bound;
    let (file, before) = match open_regular(path) {
        Ok(found) => found,
        Err(error) => return failed("cannot open", path, error),
    };
    if before.st_size as u64 > bound {
        return say_limit(bound);
    }
    let place = match find_place(wish, path, &file, before) {
        Ok(place) => place,
        Err(error) => return failed("cannot find the place of", path, error),
    };
    let mut call = match Conversation::start(wish.target, b"qubes.OpenInVM", wish.environment) {
        Ok(call) => call,
        Err(error) => return no_call(error),
    };
    let Some(to) = call.to.take() else { return code::FAILURE };
    let field = name::encode(basename(path), place.is_none());
    let sent =
        flow::write_all(&to, &field).map_err(Trouble::Writing).and_then(|()| flow::copy(&file, &to, bound));
    if matches!(sent, Err(Trouble::Reading(_) | Trouble::TooMuch)) {
        // What is open over there is not the whole file: nothing of it may come back.
        call.abandon();
        say!("error: `{}` could not be read to its end", Shown(path));
        return code::FAILURE;
    }
    drop(to);
    match place {
        Some(place) => take_back(call, &place, path, bound),
        None => {
            // What comes back of a file that is only looked at is of no interest.
            let _ = flow::read(&call.from, &mut [0]);
            call.finish()
        }
    }
}

fn open_regular(path: &[u8]) -> Result<(OwnedFd, Stat), Errno> {
    // A pipe without a writer must not make us wait.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let found = rustix::fs::fstat(&file)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => Ok((file, found)),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::INVAL),
    }
}

/// Where the new content will go; nowhere where the file is only looked at.
fn find_place(wish: &Wish<'_>, path: &[u8], file: &OwnedFd, before: Stat) -> Result<Option<Place>, Errno> {
    if wish.view_only {
        return Ok(None);
    }
    let place = Place::of(file, before)?;
    if place.is_writable() {
        return Ok(Some(place));
    }
    say!("note: you may not change `{}` here, so it is opened for viewing only", Shown(path));
    Ok(None)
}

/// Receive to the end, learn the code, and only then let the content replace the file.
fn take_back(call: Conversation, place: &Place, path: &[u8], bound: u64) -> i32 {
    let received = match receive(&call, place, bound) {
        Ok(received) => received,
        Err(trouble) => {
            call.finish();
            if trouble == Trouble::TooMuch {
                say_limit(bound);
            } else {
                say!("error: what the other qube sent could not be stored");
            }
            say!("error: `{}` is unchanged", Shown(path));
            return code::FAILURE;
        }
    };
    let code = call.finish();
    let Some(spool) = received else { return code };
    let put = if code == 0 {
        place.replace(&spool, bound)
    } else {
        place.put_beside(&spool, bound).map(Put::Beside)
    };
    match put {
        Ok(Put::InPlace) => 0,
        Ok(Put::Beside(name)) => {
            let why =
                if code == 0 { "it has changed here meanwhile" } else { "the edit ended with an error" };
            say!("error: `{}` is not replaced: {why}", Shown(path));
            say!("hint: what came from the other qube lies beside it as `{}`", Shown(&name));
            if code == 0 {
                code::FAILURE
            } else {
                code
            }
        }
        Err(_) => {
            say!("error: `{}` could not be replaced and is unchanged", Shown(path));
            code::FAILURE
        }
    }
}

/// What came back; `None` where nothing did, which means that nothing was changed.
fn receive(call: &Conversation, place: &Place, bound: u64) -> Result<Option<OwnedFd>, Trouble> {
    let mut first: Vec<u8> = alloc::vec![0; 4096];
    let count = flow::read(&call.from, &mut first).map_err(Trouble::Reading)?;
    if count == 0 {
        return Ok(None);
    }
    let spool = place.spool().map_err(Trouble::Writing)?;
    flow::write_all(&spool, &first[..count]).map_err(Trouble::Writing)?;
    flow::copy(&call.from, &spool, bound.saturating_sub(count as u64))?;
    Ok(Some(spool))
}

fn failed(what: &str, path: &[u8], error: Errno) -> i32 {
    say!("error: {what} `{}`: {error}", Shown(path), error = Reason(error));
    code::FAILURE
}

fn no_call(error: Errno) -> i32 {
    say!("error: cannot start `qrexec-client-vm`: {error}", error = Reason(error));
    code::FAILURE
}
