//! The program that speaks with a service in a client's place.

use alloc::string::ToString;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::Access;
use rustix::io::Errno;

use crate::environment::{self, Environment};
use crate::speak::{Reason, Shown};
use crate::sys::call;
use crate::text::{basename, c_string};
use crate::{code, say};

/// Say where there is no such program, or not one for us; the exit code then.
///
/// Asked before the call is made: no service is to start and find nobody at the other end.
pub fn missing(program: &CStr) -> Option<i32> {
    rustix::fs::access(program, Access::EXEC_OK).err().map(|error| cannot_start(program, error))
}

fn cannot_start(program: &CStr, error: Errno) -> i32 {
    let path = program.to_bytes();
    say!("error: cannot start `{}`: {error}", Shown(path), error = Reason(error));
    if error != Errno::NOENT {
        return code::PROBLEM;
    }
    if !path.contains(&b'/') {
        say!("hint: give its full path, as in `/bin/cat`");
    }
    code::NOT_FOUND
}

/// Become the program, whose arguments follow it, with these as its stdin and stdout.
///
/// Our own stdin and stdout come along under the numbers that `SAVED_FD_0` and `SAVED_FD_1` tell.
pub fn become_it(program: &[&'static CStr], given: &[&'static CStr], stdin: &OwnedFd, stdout: &OwnedFd) -> ! {
    let mut added = Environment::default();
    let mut save = |name: &[u8], which: u8| {
        if let Ok(saved) = rustix::io::dup(call::standard(which).as_fd()) {
            added.set(name, call::keep_open(saved).to_string().as_bytes());
        }
    };
    save(b"SAVED_FD_0", 0);
    save(b"SAVED_FD_1", 1);
    if environment::get(given, b"PASS_LOCAL_STDERR").is_some() {
        save(b"SAVED_FD_2", 2);
    }
    // The process that relays its call is the one that started it.
    let parent = rustix::process::getppid().map_or(0, |parent| parent.as_raw_nonzero().get());
    added.set(b"QREXEC_AGENT_PID", parent.to_string().as_bytes());
    if rustix::stdio::dup2_stdin(stdin).is_err() || rustix::stdio::dup2_stdout(stdout).is_err() {
        call::exit(code::PROBLEM);
    }
    call::default_broken_pipes();
    let kept = |entry: &&&CStr| {
        let name = entry.to_bytes();
        !(name.starts_with(b"SAVED_FD_") || name.starts_with(b"QREXEC_AGENT_PID="))
    };
    let mut environment: Vec<&CStr> = given.iter().filter(kept).copied().collect();
    environment.extend(added.entries());
    let path = program[0];
    let name = c_string(&[basename(path.to_bytes())]);
    let mut arguments: Vec<&CStr> = alloc::vec![&name];
    arguments.extend(&program[1..]);
    let error = call::execute(path, &arguments, &environment);
    call::exit(cannot_start(path, error))
}
