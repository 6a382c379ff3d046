//! What hangs on our side of a data link: our own streams, a local command, or a service.

use alloc::ffi::CString;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::options::Wishes;
use crate::environment;
use crate::link::{Link, Peer, Process, Rules, Sink, Source, Stream, Watch};
use crate::relay::End;
use crate::service::{self, command, Request, Settings, Work};
use crate::speak::{Reason, Shown};
use crate::sys::call::{self, signal};
use crate::text::c_string;
use crate::{code, run_service, say};

/// A process of ours, and our ends of its standard streams.
pub struct Child {
    process: Process,
    /// Takes what it reads.
    stdin: OwnedFd,
    /// Gives what it writes.
    stdout: OwnedFd,
}

/// Our side where a call begins.
pub fn caller(wishes: &Wishes, local: Option<Child>, peer: Peer) -> Link {
    let mut link = Link::new(Rules::of_caller(local.is_some()), peer);
    let errors = Sink::filtered(End::Standard(2), wishes.filter_stderr);
    if wishes.just_start {
        // Nothing is said, and nothing but the code is told.
        link.rules.ended(Stream::Input);
        return link;
    }
    link.peer.queue_data(Stream::Input, wishes.prefix);
    let (input, output) = match local {
        Some(child) => {
            link.process = child.process;
            (End::Pipe(child.stdout), End::Pipe(child.stdin))
        }
        None => (End::Standard(0), End::Standard(if wishes.both_ways { 0 } else { 1 })),
    };
    link.sources.push((Stream::Input, Source::new(input)));
    link.sinks.push((Stream::Output, Sink::filtered(output, wishes.filter_stdout)));
    link.sinks.push((Stream::Errors, errors));
    link
}

/// Our side where a service of ours is called. Its errors stay here: no qube is to read them.
pub fn service(child: Child, signals: OwnedFd, peer: Peer) -> Link {
    let mut link = Link::new(Rules::of_service(), peer);
    link.rules.ended(Stream::Errors);
    link.both_ways = rustix::io::fcntl_dupfd_cloexec(&child.stdin, 3).ok();
    link.sources.push((Stream::Output, Source::new(End::Pipe(child.stdout))));
    link.sinks.push((Stream::Input, Sink::new(End::Pipe(child.stdin))));
    link.process = child.process;
    link.signals = Some(Watch(signals));
    link
}

/// The signals that a data process takes.
pub fn watch_signals() -> Result<OwnedFd, Errno> {
    call::block_signals();
    call::signal_descriptor(&[signal::USER_1, signal::TERMINATE, signal::INTERRUPT])
}

/// Start what `-l` names: a service of ours, or a line for the shell.
pub fn start_local(line: &'static [u8], environment: &'static [&'static CStr]) -> Result<Child, String> {
    match command::parse_work(line)? {
        Work::Service(request) => start_service(request, b"DEFAULT", environment),
        Work::Command(line) => spawn(|descriptors| run_shell(line, descriptors, environment)),
    }
}

/// Start a service of ours.
pub fn start_service(
    request: Request<'_>,
    user: &[u8],
    environment: &'static [&'static CStr],
) -> Result<Child, String> {
    let user = local_user(user)?;
    let settings = local_settings(environment);
    spawn(|[stdin, stdout]| {
        let stderr = rustix::io::fcntl_dupfd_cloexec(call::standard(2), 3).ok();
        let descriptors = [Some(stdin), Some(stdout), stderr];
        service::become_service(Work::Service(request), &user, descriptors, &settings)
    })
}

/// What services of the admin qube are started with.
pub fn local_settings(environment: &'static [&'static CStr]) -> Settings {
    Settings { inherited: Some(environment), ..Settings::new(environment) }
}

/// Services of the admin qube are run by whoever we are, unless another user is named.
pub fn local_user(user: &[u8]) -> Result<Vec<u8>, String> {
    match user {
        b"" | b"DEFAULT" => run_service::own_name(),
        named => Ok(named.to_vec()),
    }
}

fn spawn(run: impl FnOnce([OwnedFd; 2])) -> Result<Child, String> {
    let start = || -> Result<Child, Errno> {
        let pair =
            || rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let (stdin, its_stdin) = pair()?;
        let (stdout, its_stdout) = pair()?;
        match call::fork()? {
            None => {
                run([its_stdin, its_stdout]);
                call::exit(code::PROBLEM)
            }
            Some(pid) => Ok(Child { process: Process::of_child(pid)?, stdin, stdout }),
        }
    };
    start().map_err(|error| alloc::format!("cannot make a process: {}", Reason(error)))
}

/// Become the user's shell with this line; returns where that fails.
fn run_shell(line: &[u8], [stdin, stdout]: [OwnedFd; 2], environment: &[&CStr]) {
    if rustix::stdio::dup2_stdin(stdin.as_fd()).is_err()
        || rustix::stdio::dup2_stdout(stdout.as_fd()).is_err()
    {
        return;
    }
    call::unblock_signals();
    call::default_broken_pipes();
    let mut own = environment::Environment::inherited(environment);
    let caller = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    own.set(b"QREXEC_AGENT_PID", caller.to_string().as_bytes());
    let line = c_string(&[line]);
    // Bash takes a socket as its input for a remote shell, and would read its rc file.
    for (shell, options) in [(&b"/bin/bash"[..], &[&b"--norc"[..], b"-c"][..]), (b"/bin/sh", &[b"-c"])] {
        let shell = c_string(&[shell]);
        let options: Vec<CString> = options.iter().map(|option| c_string(&[option])).collect();
        let mut words: Vec<&CStr> = alloc::vec![&shell];
        words.extend(options.iter().map(CString::as_c_str));
        words.push(&line);
        let error = call::execute(&shell, &words, &own.entries());
        if error != Errno::NOENT {
            say!("error: cannot start `{}`: {error}", Shown(shell.as_bytes()), error = Reason(error));
            return;
        }
    }
    say!("error: there is no shell");
}
