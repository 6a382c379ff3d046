//! Wait until the user's session has come up, for services whose settings ask for it.
//!
//! `qubes.WaitForSession` runs once for all calls that wait at the same time: the first one holds a
//! lock while it runs, the others wait for the lock. A session that never comes delays the waiting
//! services of its own qube and user, and nobody else.

use alloc::vec::Vec;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::{start, take_descriptors, Begin, Request, Settings, Work};
use crate::code;
use crate::sys::call;
use crate::text::c_string;
use crate::users::User;

/// Between two looks at the lock, in milliseconds: first and longest.
const FIRST_PAUSE: i64 = 5;
const LONGEST_PAUSE: i64 = 100;
const SERVICE: &[u8] = b"qubes.WaitForSession";

/// Return once the session of `user` is there, or cannot be waited for.
pub fn wait(user: &User<'_>, source: &[u8], settings: &Settings) {
    let Some(lock) = open_lock(user, settings) else {
        // Without a place for the lock every call waits by itself.
        return run(user, source, settings);
    };
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
        run(user, source, settings);
    } else {
        wait_for(&lock, settings.callers);
    }
}

/// Wait until the first one has let go of the lock. Who waits for a caller that has gone ends: a
/// session that never comes would else collect a process for each call.
fn wait_for(lock: &OwnedFd, callers: &[u8]) {
    let mut pause = FIRST_PAUSE;
    while rustix::fs::flock(lock, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK) {
        if caller_left(callers, pause) {
            call::exit(code::PROBLEM);
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether nobody reads what the service would say to its caller, after so many milliseconds at
/// most for each way to say it.
fn caller_left(callers: &[u8], pause: i64) -> bool {
    let timeout = Timespec { tv_sec: 0, tv_nsec: pause * 1_000_000 };
    if callers.is_empty() {
        let _ = rustix::event::poll(&mut [], Some(&timeout));
        return false;
    }
    // A caller may close its output early; it has gone where its errors are closed as well.
    callers.iter().all(|&number| {
        let mut told = [PollFd::from_borrowed_fd(call::standard(number), PollFlags::empty())];
        let heard = rustix::event::poll(&mut told, Some(&timeout));
        heard.is_ok() && told[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    })
}

/// A file of our own to lock; whatever else lies there is left alone.
fn open_lock(user: &User<'_>, settings: &Settings) -> Option<OwnedFd> {
    let name = alloc::format!("/qubes-session.{}.lock", user.uid);
    let path = c_string(&[settings.locks, name.as_bytes()]);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let lock = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).ok()?;
    let found = rustix::fs::fstat(&lock).ok()?;
    let ours = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
        && found.st_uid == rustix::process::geteuid().as_raw();
    ours.then_some(lock)
}

/// Run the service that waits, with the user's name as its input; how it ends does not matter.
fn run(user: &User<'_>, source: &[u8], settings: &Settings) {
    let Ok((reader, writer)) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC) else { return };
    let line: Vec<u8> = [user.name, b"\n"].concat();
    // A name that a pipe does not hold is none of a user.
    let _ = rustix::fs::fcntl_setfl(&writer, OFlags::NONBLOCK);
    let _ = rustix::io::write(&writer, &line);
    drop(writer);
    match call::fork() {
        Ok(None) => {
            take_descriptors(&[Some(reader), None, None]);
            call::unblock_signals();
            let request = Request { with_session: false, ..Request::new(SERVICE, source) };
            let failure = start(Work::Service(request), user.name, settings, Begin::AndServe);
            call::exit(failure.0)
        }
        Ok(Some(pid)) => {
            let _ = call::wait_for(pid);
        }
        Err(_) => {}
    }
}
