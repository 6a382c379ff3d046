//! What a qube does once when it begins: keep chosen paths, run its owner's scripts.
//!
//! The agent starts this when it is admitted, in a child, and only where a few looks at directories
//! say that there is something to do. Calls wait for the paths (`bind`), not for the scripts. All of
//! it is the qube's own business: whatever its files say, the agent goes on.

mod bind;
mod config;

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;
use core::mem::MaybeUninit;

use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::code;
use crate::environment::{self, Environment};
use crate::forward::{self, Way};
use crate::program;
use crate::say;
use crate::speak::{Reason, Shown};
use crate::sys::call;
use crate::text::c_string;

/// The services that are on, a file each.
const SERVICES: &[u8] = b"/run/qubesdb/services";
/// Calls wait so long for the paths, in milliseconds.
const PATIENCE: i64 = 10_000;
const SCRIPT: &[u8] = b"/rw/config/rc.local";
const SCRIPTS: &[u8] = b"/rw/config/rc.local.d";
const LOG_DIRECTORY: &[u8] = b"/var/log/qubes";
const LOG: &[u8] = b"/var/log/qubes/setup.log";
/// Updates of a template go to another qube's proxy through a port of its own.
const UPDATES_CLIENT: &[u8] = b"/run/qubes-service/updates-proxy-setup";
const UPDATES_PORT: u16 = 8082;
/// dnf has no way to ask at each run where to send requests: its settings are rewritten.
const DNF: &[u8] = b"/etc/dnf/dnf.conf";
const DNF_PROGRAM: &[u8] = b"/usr/lib/qubes/updates-proxy-dnf";
/// A network qube offers that proxy.
const UPDATES_PROXY: &[u8] = b"/run/qubes-service/qubes-updates-proxy";
const UPDATES_PROXY_PROGRAM: &[u8] = b"/usr/lib/qubes/qubes-updates-proxy";
/// Of a directory with settings or scripts, no more is looked at.
const MOST_ENTRIES: usize = 256;

/// More failures are told as so many; beyond it, an exit code says that a signal ended the set-up.
pub const MOST_FAILURES: usize = 100;

/// A set-up that goes on beside the agent.
pub struct Beginning {
    /// What calls wait at.
    pub gate: Gate,
    /// The process; its exit code is how many things failed.
    pub pid: i32,
}

/// How many things failed, from the exit code of the process: one that was killed counts as one.
pub fn failures(code: i32) -> usize {
    usize::try_from(code).ok().filter(|&count| count <= MOST_FAILURES).unwrap_or(1)
}

/// What calls wait at while the paths are made ready.
pub struct Gate {
    reader: OwnedFd,
    until: i64,
}

impl Gate {
    /// True when nobody has to wait any more, or for too long.
    pub fn is_open(&self) -> bool {
        call::milliseconds() >= self.until || self.opened(0)
    }

    /// Wait until it opens; after a while a warning goes to `stderr`, and the call goes on.
    pub fn pass(&self, stderr: Option<&OwnedFd>) {
        let left = (self.until - call::milliseconds()).max(0);
        if !self.opened(left) {
            const TEXT: &[u8] = b"warning: the paths that this qube keeps are not ready yet\n";
            if let Some(stderr) = stderr {
                let _ = rustix::io::write(stderr, TEXT);
            }
        }
    }

    /// The descriptor, which is the agent's own.
    pub fn descriptor(&self) -> i32 {
        self.reader.as_raw_fd()
    }

    /// The other end closes when the paths are ready, or whoever makes them has ended.
    fn opened(&self, milliseconds: i64) -> bool {
        let until = call::milliseconds() + milliseconds;
        loop {
            let timeout = call::timeout(until - call::milliseconds());
            match rustix::event::poll(&mut [PollFd::new(&self.reader, PollFlags::IN)], Some(&timeout)) {
                Err(Errno::INTR) => {}
                Ok(0) => return false,
                _ => return true,
            }
        }
    }
}

/// Put the services that are on where programs look for them: a link to the facts, which follow
/// every change. A link costs the start of a qube less than one more mount.
pub fn show_services() {
    if exists(SERVICES) {
        let _ = rustix::fs::symlink(SERVICES, b"/run/qubes-service".as_slice());
    }
}

/// Begin, where there is something to do; else, or where it cannot begin, how many things failed.
pub fn begin() -> Result<Beginning, usize> {
    if !needed() {
        return Err(0);
    }
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|_| 1_usize)?;
    match call::fork() {
        Ok(None) => {
            // The child lives long. With the agent's connection in its hands, the broker would
            // believe that one which the agent gave up is still there.
            let writer = call::keep_only(writer);
            enter_background();
            let lost = bind::all();
            drop(writer);
            let failures = (lost + run_scripts()).min(MOST_FAILURES);
            call::exit(i32::try_from(failures).unwrap_or(1))
        }
        Ok(Some(pid)) => Ok(Beginning { gate: Gate { reader, until: call::milliseconds() + PATIENCE }, pid }),
        Err(error) => {
            say!("error: the qube is not set up: {error}", error = Reason(error));
            Err(1)
        }
    }
}

/// `qubes-setup`: make the paths ready by hand, with messages on standard error; the exit code.
pub fn run() -> i32 {
    if bind::all() == 0 {
        0
    } else {
        code::FAILURE
    }
}

fn needed() -> bool {
    bind::needed()
        || exists(SCRIPT)
        || !entries(SCRIPTS, b".rc").is_empty()
        || exists(UPDATES_CLIENT)
        || exists(DNF)
        || exists(UPDATES_PROXY)
}

fn exists(path: &[u8]) -> bool {
    rustix::fs::stat(path).is_ok()
}

fn is_program(path: &[u8]) -> bool {
    rustix::fs::stat(path).is_ok_and(|found| {
        FileType::from_raw_mode(found.st_mode) == FileType::RegularFile && found.st_mode & 0o111 != 0
    })
}

/// The paths in a directory that end so, sorted by name; hidden ones are left out.
fn entries(directory: &[u8], ending: &[u8]) -> Vec<CString> {
    let mut found = Vec::new();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(opened) = rustix::fs::open(directory, flags, Mode::empty()) else {
        return found;
    };
    let mut space = [MaybeUninit::uninit(); 2048];
    let mut read = RawDir::new(&opened, &mut space);
    while let Some(Ok(entry)) = read.next() {
        let name = entry.file_name().to_bytes();
        if name.ends_with(ending) && !name.starts_with(b".") {
            found.push(c_string(&[directory, b"/", name]));
        }
        if found.len() >= MOST_ENTRIES {
            break;
        }
    }
    found.sort_unstable();
    found
}

/// A session of our own, no input, and the log for output.
fn enter_background() {
    let _ = rustix::process::setsid();
    call::unblock_signals();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let null = rustix::fs::open(c_string(&[b"/dev/null"]), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    if let Ok(null) = &null {
        let _ = rustix::stdio::dup2_stdin(null);
    }
    if let Some(out) = open_log().or(null.ok()) {
        let _ = rustix::stdio::dup2_stdout(&out);
        let _ = rustix::stdio::dup2_stderr(&out);
    }
}

/// The log, unless something else lies in its place: a pipe would make everything wait.
fn open_log() -> Option<OwnedFd> {
    let _ = rustix::fs::mkdir(LOG_DIRECTORY, Mode::from_raw_mode(0o755));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let log = rustix::fs::open(LOG, flags, Mode::from_raw_mode(0o644)).ok()?;
    let found = rustix::fs::fstat(&log).ok()?;
    (FileType::from_raw_mode(found.st_mode) == FileType::RegularFile).then_some(log)
}

/// Run what there is; how many failed.
fn run_scripts() -> usize {
    let variables = variables();
    let environment: Vec<&CStr> = variables.entries();
    let mut done = Vec::new();
    if exists(UPDATES_CLIENT) {
        done.push(forward_updates());
    }
    if exists(DNF) {
        done.push(run_to_its_end(&c_string(&[DNF_PROGRAM]), &environment));
    }
    if exists(UPDATES_PROXY) {
        done.push(launch(&c_string(&[UPDATES_PROXY_PROGRAM]), &environment).is_some());
    }
    for script in entries(SCRIPTS, b".rc").into_iter().chain([c_string(&[SCRIPT])]) {
        if is_program(script.to_bytes()) {
            done.push(run_to_its_end(&script, &environment));
        } else if exists(script.to_bytes()) {
            say!("warning: `{}` is not run: it is no executable file", Shown(script.to_bytes()));
            say!("hint: `chmod +x` lets it run at the next start");
            done.push(false);
        }
    }
    done.iter().filter(|&&done| !done).count()
}

/// Run a program; whether it succeeded.
fn run_to_its_end(path: &CStr, environment: &[&CStr]) -> bool {
    let Some(pid) = launch(path, environment) else {
        return false;
    };
    let code = program::code_of(pid);
    if code != 0 {
        say!("warning: `{}` failed with exit code {code}", Shown(path.to_bytes()));
    }
    code == 0
}

fn variables() -> Environment {
    let mut variables = Environment::default();
    variables.set(b"HOME", b"/root");
    variables.set(b"USER", b"root");
    variables.set(b"LOGNAME", b"root");
    variables.set(b"SHELL", b"/bin/sh");
    variables.set(b"PATH", environment::PATH);
    variables.set(b"LANG", b"C.UTF-8");
    variables
}

/// Begin to lead updates to another qube; whether there is a process for it.
fn forward_updates() -> bool {
    match call::fork() {
        Ok(None) => {
            let way = Way { port: UPDATES_PORT, target: b"", service: b"qubes.UpdatesProxy", socket: None };
            if let Err(error) = forward::serve(&way, &[], || ()) {
                say!("error: updates find no way: {error}", error = Reason(error));
            }
            call::exit(0)
        }
        Ok(Some(_)) => true,
        Err(error) => {
            say!("error: updates find no way: {error}", error = Reason(error));
            false
        }
    }
}

/// Start a program as root; one without `#!` is a script of the shell.
fn launch(path: &CStr, environment: &[&CStr]) -> Option<i32> {
    match call::fork() {
        Ok(None) => {
            let _ = rustix::process::chdir(&b"/"[..]);
            let mut error = call::execute(path, &[path], environment);
            if error == Errno::NOEXEC {
                let shell = c_string(&[b"/bin/sh"]);
                error = call::execute(&shell, &[&shell, path], environment);
            }
            say!("error: cannot start `{}`: {error}", Shown(path.to_bytes()), error = Reason(error));
            call::exit(127)
        }
        Ok(pid) => pid,
        Err(error) => {
            say!("error: cannot start `{}`: {error}", Shown(path.to_bytes()), error = Reason(error));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(until: i64) -> (Gate, OwnedFd) {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
        (Gate { reader, until }, writer)
    }

    fn said(act: impl FnOnce(&OwnedFd)) -> std::string::String {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
        act(&writer);
        drop(writer);
        let mut text = [0; 200];
        let length = rustix::io::read(&reader, &mut text).unwrap();
        std::string::String::from_utf8_lossy(&text[..length]).into_owned()
    }

    /// A gate opens when its other end closes, whoever held it; nothing is said then.
    #[test]
    fn a_gate_opens() {
        let (closed, writer) = gate(i64::MAX);
        assert!(!closed.is_open());
        drop(writer);
        assert!(closed.is_open());
        assert_eq!(said(|stderr| closed.pass(Some(stderr))), "");
    }

    /// Nobody waits longer than the bound; a call that goes on before it should is told.
    #[test]
    fn a_gate_that_stays_shut_is_passed_with_a_warning() {
        let (shut, _writer) = gate(call::milliseconds());
        assert!(said(|stderr| shut.pass(Some(stderr))).starts_with("warning: the paths"));
        assert!(shut.is_open());
        shut.pass(None);
    }

    /// A count is a count; an exit code that a signal makes is one failure, not a hundred.
    #[test]
    fn failures_of_an_exit_code() {
        assert_eq!([0, 1, 100, 101, 137, 255, -1].map(failures), [0, 1, 100, 1, 1, 1, 1]);
    }

    /// Entries are those that end so, in order; hidden ones and other directories do not count.
    #[test]
    fn entries_of_a_directory() {
        let found = entries(b"/proc/self", b"statm");
        assert_eq!(found, [c_string(&[b"/proc/self/statm"])]);
        assert!(entries(b"/nonexistent", b"").is_empty());
        assert!(entries(b"/proc/self/status", b"").is_empty());
        assert!(is_program(b"/proc/self/exe") && !is_program(b"/proc/self") && !is_program(b"/dev/null"));
    }
}
