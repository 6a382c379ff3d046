//! Programs along PATH: find one, become one, start one and wait for it.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags, CWD};
use rustix::io::Errno;

use crate::speak::{Reason, Shown};
use crate::sys::call;
use crate::text::{c_string, literal};
use crate::{code, environment, process, say};

/// The shell's code for a program that is there and cannot be started.
pub const NOT_STARTED: i32 = 126;

/// Become a program, looked for along PATH where its name has no slash; returns only on failure.
pub fn execute(command: &[&CStr], environment: &[&CStr]) -> Errno {
    let name = command[0].to_bytes();
    if name.contains(&b'/') || name.is_empty() {
        return try_path(command[0], command, environment);
    }
    let mut worst = Errno::NOENT;
    for path in along_path(name, environment) {
        let error = try_path(&path, command, environment);
        if error != Errno::NOENT && error != Errno::NOTDIR {
            worst = error;
        }
    }
    worst
}

/// Become a program, or say why not and end with the code that a shell would give.
pub fn become_or_exit(command: &[&CStr], environment: &[&CStr]) -> ! {
    let error = execute(command, environment);
    say!("error: cannot run `{}`: {error}", Shown(command[0].to_bytes()), error = Reason(error));
    call::exit(if error == Errno::NOENT { code::NOT_FOUND } else { NOT_STARTED })
}

/// True where a program of this name (or path) can be run.
pub fn installed(name: &[u8], environment: &[&CStr]) -> bool {
    if name.contains(&b'/') {
        return runnable(&c_string(&[name]));
    }
    !name.is_empty() && along_path(name, environment).any(|path| runnable(&path))
}

/// The first of `names` that is installed.
pub fn first_installed<'a>(names: &[&'a [u8]], environment: &[&CStr]) -> Option<&'a [u8]> {
    names.iter().copied().find(|name| installed(name, environment))
}

/// What a started program gets as its stdin and stdout; its stderr is ours unless it is quiet.
#[derive(Default)]
pub struct Streams<'a> {
    /// Its stdin, nothing (`/dev/null`) where `None`.
    pub stdin: Option<&'a OwnedFd>,
    /// Its stdout, nothing where `None`.
    pub stdout: Option<&'a OwnedFd>,
    /// What it says on its stderr is of no interest.
    pub quiet: bool,
}

/// Start a program; its process id.
pub fn start(command: &[&CStr], streams: &Streams<'_>, environment: &[&CStr]) -> Result<i32, Errno> {
    if let Some(pid) = call::fork()? {
        return Ok(pid);
    }
    let null = match rustix::fs::open(literal(b"/dev/null\0"), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
    {
        Ok(null) => null,
        Err(_) => call::exit(code::PROBLEM),
    };
    let stdin = streams.stdin.unwrap_or(&null).as_fd();
    let stdout = streams.stdout.unwrap_or(&null).as_fd();
    if rustix::stdio::dup2_stdin(stdin).is_err() || rustix::stdio::dup2_stdout(stdout).is_err() {
        call::exit(code::PROBLEM);
    }
    if streams.quiet {
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    call::default_broken_pipes();
    become_or_exit(command, environment)
}

/// Wait for a program that was started; its exit code.
pub fn code_of(pid: i32) -> i32 {
    call::wait_for(pid).map_or(code::PROBLEM, process::exit_code)
}

fn along_path<'a>(name: &'a [u8], environment: &[&'a CStr]) -> impl Iterator<Item = CString> + 'a {
    let path = environment::get(environment, b"PATH").unwrap_or(environment::PATH);
    path.split(|&byte| byte == b':').map(move |directory| {
        let directory = if directory.is_empty() { b"." } else { directory };
        c_string(&[directory, b"/", name])
    })
}

fn runnable(path: &CStr) -> bool {
    rustix::fs::stat(path).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::RegularFile)
        && rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::empty()).is_ok()
}

fn try_path(path: &CStr, command: &[&CStr], environment: &[&CStr]) -> Errno {
    let error = call::execute(path, command, environment);
    if error != Errno::NOEXEC {
        return error;
    }
    let mut arguments: Vec<&CStr> = alloc::vec![literal(b"/bin/sh\0"), path];
    arguments.extend(&command[1..]);
    call::execute(literal(b"/bin/sh\0"), &arguments, environment)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only a file that may be run is a program: neither a directory nor a plain file.
    #[test]
    fn what_is_installed() {
        let environment = [literal(b"PATH=/nonexistent:/bin\0")];
        assert!(installed(b"sh", &environment));
        assert!(installed(b"/bin/sh", &[]));
        for wrong in [&b""[..], b"/", b"/etc/passwd", b"..", b"no-such-program"] {
            assert!(!installed(wrong, &environment), "{wrong:?}");
        }
        assert_eq!(first_installed(&[b"no-such-program", b"sh", b"cat"], &environment), Some(&b"sh"[..]));
    }
}
