//! The calling side of a data link: our own streams or a local program at one end.

use core::ffi::CStr;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::ends::{Sink, Source};
use super::peer::Peer;
use super::rules::{Rules, Stream};
use super::run::{Link, Process};
use crate::local_program;
use crate::relay::End;
use crate::speak::Reason;
use crate::sys::call;
use crate::vchan::SEND_BUFFER;
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
        match call::fork()? {
            None => local_program::become_it(self.program, self.environment, &its_stdin, &its_stdout),
            Some(pid) => Ok((Process::of_child(pid)?, input, output)),
        }
    }
}

/// Two connected stream sockets that hold much.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    for end in [&pair.0, &pair.1] {
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(end, SEND_BUFFER);
    }
    Ok(pair)
}
