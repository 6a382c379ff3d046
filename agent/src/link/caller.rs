//! The calling side of a data link: our own streams or a local program at one end.

use alloc::string::ToString;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::ends::{Sink, Source};
use super::peer::Peer;
use super::rules::{Rules, Stream};
use super::run::{Link, Process};
use crate::environment::{self, Environment};
use crate::relay::End;
use crate::speak::{Reason, Shown};
use crate::sys::call;
use crate::text::{basename, c_string};
use crate::{code, say};

/// What hangs on the calling side.
pub struct Caller<'a> {
    /// Replace control characters on stdout.
    pub filter_stdout: bool,
    /// Replace control characters on stderr.
    pub filter_stderr: bool,
    /// Bytes to send before our stdin.
    pub prefix: &'a [u8],
    /// Stdin is a socket that takes the output too.
    pub both_ways: bool,
    /// A program, with its arguments, that speaks with the service in our place.
    pub program: &'a [&'static CStr],
    /// Our own environment, for that program.
    pub environment: &'a [&'static CStr],
}

impl Caller<'_> {
    /// Relay the call to its end; the exit code.
    pub fn run(&self, peer: Peer) -> i32 {
        let mut link = Link::new(Rules::of_caller(!self.program.is_empty()), peer);
        link.peer.queue_data(Stream::Input, self.prefix);
        let errors = Sink::filtered(End::Standard(2), self.filter_stderr);
        if self.program.is_empty() {
            let output = if self.both_ways { 0 } else { 1 };
            link.sources.push((Stream::Input, Source::new(End::Standard(0))));
            let output = Sink::filtered(End::Standard(output), self.filter_stdout);
            link.sinks.push((Stream::Output, output));
        } else {
            match self.start_program() {
                Ok((process, input, output)) => {
                    link.process = process;
                    link.sources.push((Stream::Input, Source::new(End::Pipe(input))));
                    link.sinks.push((Stream::Output, Sink::filtered(End::Pipe(output), self.filter_stdout)));
                }
                Err(error) => {
                    say!("error: cannot start the local program: {error}", error = Reason(error));
                    return code::FAILURE;
                }
            }
        }
        link.sinks.push((Stream::Errors, errors));
        link.run()
    }

    /// Start the local program; what it writes, and where what it reads is written.
    fn start_program(&self) -> Result<(Process, OwnedFd, OwnedFd), Errno> {
        let (input, its_stdout) = pair()?;
        let (output, its_stdin) = pair()?;
        let caller = rustix::process::getpid().as_raw_nonzero().get();
        match call::fork()? {
            None => self.become_program(&its_stdin, &its_stdout, caller),
            Some(pid) => Ok((Process::of_child(pid)?, input, output)),
        }
    }

    fn become_program(&self, stdin: &OwnedFd, stdout: &OwnedFd, caller: i32) -> ! {
        let mut added = Environment::default();
        let mut save = |name: &[u8], which: u8| {
            if let Ok(saved) = rustix::io::dup(call::standard(which).as_fd()) {
                added.set(name, call::keep_open(saved).to_string().as_bytes());
            }
        };
        save(b"SAVED_FD_0", 0);
        save(b"SAVED_FD_1", 1);
        if environment::get(self.environment, b"PASS_LOCAL_STDERR").is_some() {
            save(b"SAVED_FD_2", 2);
        }
        added.set(b"QREXEC_AGENT_PID", caller.to_string().as_bytes());
        if rustix::stdio::dup2_stdin(stdin).is_err() || rustix::stdio::dup2_stdout(stdout).is_err() {
            call::exit(code::PROBLEM);
        }
        call::default_broken_pipes();
        let kept = |entry: &&&CStr| {
            let name = entry.to_bytes();
            !(name.starts_with(b"SAVED_FD_") || name.starts_with(b"QREXEC_AGENT_PID="))
        };
        let mut environment: Vec<&CStr> = self.environment.iter().filter(kept).copied().collect();
        environment.extend(added.entries());
        let path = self.program[0];
        let name = c_string(&[basename(path.to_bytes())]);
        let mut arguments: Vec<&CStr> = alloc::vec![&name];
        arguments.extend(&self.program[1..]);
        let error = call::execute(path, &arguments, &environment);
        say!("error: cannot start `{}`: {error}", Shown(path.to_bytes()), error = Reason(error));
        call::exit(if error == Errno::NOENT { code::NOT_FOUND } else { code::PROBLEM })
    }
}

/// Two connected stream sockets.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}
