//! A call from its request to its exit code, for both clients.

use alloc::vec::Vec;

use rustix::event::Timespec;
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::caller::Caller;
use crate::connection::{Connection, Descriptors};
use crate::local_program;
use crate::message::{self, ToClient};
use crate::relay::{End, Local, Relay, Stream};
use crate::speak::{self, Reason, Shown};
use crate::sys::call as system;
use crate::{code, process, say};

/// The broker may be restarting: so long it may be away, in milliseconds.
const PATIENCE: i64 = 5_000;
/// After so long the caller is told what it waits for, in milliseconds.
const SILENCE: i64 = 1_000;

/// How to make a call.
pub struct Call<'a> {
    /// The broker's socket.
    pub socket: &'a [u8],
    /// The request, encoded; `None` where it is too long for one.
    pub request: Option<Vec<u8>>,
    /// What speaks with the service.
    pub caller: Caller<'a>,
}

impl Call<'_> {
    /// Make the call; its exit code.
    pub fn run(&self) -> i32 {
        self.run_at_broker().unwrap_or_else(|| self.unreachable(Errno::PROTOTYPE))
    }

    fn unreachable(&self, error: Errno) -> i32 {
        let error = Reason(error);
        say!("error: cannot reach the qrexec broker at `{}`: {error}", Shown(self.socket));
        code::FAILURE
    }

    /// Make the call; `None` where a socket of another protocol is in the broker's place.
    pub fn run_at_broker(&self) -> Option<i32> {
        system::ignore_broken_pipes();
        let Some(request) = &self.request else {
            say!("error: the request is longer than {} bytes or contains a NUL", message::LONGEST);
            return Some(code::FAILURE);
        };
        match connect(self.socket) {
            Ok(connection) => Some(self.make(connection, request)),
            Err(Errno::PROTOTYPE) => None,
            Err(error) => Some(self.unreachable(error)),
        }
    }

    fn make(&self, connection: Connection, request: &[u8]) -> i32 {
        // A peer that closed at once may have answered before.
        let sent = connection.send(request);
        let mut buffer = [0; 4096];
        let received = match connection.receive(&mut buffer, true) {
            Ok(received) if received.length > 0 => received,
            _ => return lost(sent.err()),
        };
        match ToClient::parse(&buffer[..received.length]) {
            Ok(ToClient::Accepted) => self.relay(connection, received.descriptors),
            Ok(ToClient::Refused) => {
                say!("Request refused");
                code::REFUSED
            }
            Ok(ToClient::Failed { code, message }) => {
                speak::problem(message);
                code
            }
            Ok(ToClient::Ended(code)) => code,
            Err(message::Malformed) => {
                say!("error: the broker sent a message that makes no sense");
                code::LOST
            }
        }
    }

    fn relay(&self, connection: Connection, descriptors: Descriptors) -> i32 {
        let [Some(stdin), Some(stdout), Some(stderr)] = descriptors else {
            say!("error: the broker accepted the call without its three pipes");
            return code::LOST;
        };
        let errors = Stream::of_messages(End::Pipe(stderr), End::Standard(2), self.caller.filter_stderr);
        let mut relay = Relay {
            connection: Some(connection),
            input: None,
            output: None,
            errors: Some(errors),
            local: None,
            both_ways: self.caller.both_ways,
        };
        if self.caller.program.is_empty() {
            let output = if self.caller.both_ways { 0 } else { 1 };
            relay.input = Some(Stream::new(End::Standard(0), End::Pipe(stdin), false, self.caller.prefix));
            relay.output =
                Some(Stream::new(End::Pipe(stdout), End::Standard(output), self.caller.filter_stdout, b""));
        } else {
            match self.start_program(stdin, stdout) {
                Ok(local) => relay.local = Some(local),
                Err(error) => {
                    say!("error: cannot start the local program: {error}", error = Reason(error));
                    return code::FAILURE;
                }
            }
        }
        relay.run()
    }

    /// Start the local program with the pipes of the call as its stdin and stdout.
    fn start_program(&self, stdin: OwnedFd, stdout: OwnedFd) -> Result<Local, Errno> {
        if !self.caller.prefix.is_empty() {
            // The service may read it late: it has to fit into the pipe, which is made larger for that.
            let _ = rustix::pipe::fcntl_setpipe_size(&stdin, self.caller.prefix.len());
            rustix::fs::fcntl_setfl(&stdin, rustix::fs::OFlags::NONBLOCK)?;
            if rustix::io::write(&stdin, self.caller.prefix)? < self.caller.prefix.len() {
                return Err(Errno::TOOBIG);
            }
            rustix::fs::fcntl_setfl(&stdin, rustix::fs::OFlags::empty())?;
        }
        match system::fork()? {
            None => local_program::become_it(self.caller.program, self.caller.environment, &stdout, &stdin),
            Some(pid) => Ok(Local { pid, watch: process::watch(pid)? }),
        }
    }
}

fn lost(error: Option<Errno>) -> i32 {
    match error {
        Some(error) => say!("error: the qrexec broker went away: {error}", error = Reason(error)),
        None => say!("error: the qrexec broker went away before it answered"),
    }
    code::LOST
}

/// Connect, with patience for a broker that is just not there.
fn connect(socket: &[u8]) -> Result<Connection, Errno> {
    const LONGEST_PAUSE: i64 = 50;
    let mut pause = 1;
    let mut since = None;
    let mut told = false;
    loop {
        match Connection::open(socket) {
            Err(error @ (Errno::NOENT | Errno::CONNREFUSED)) => {
                let now = system::milliseconds();
                let waited = now - *since.get_or_insert(now);
                if waited >= PATIENCE {
                    return Err(error);
                }
                if waited >= SILENCE && !told {
                    say!("waiting for the qrexec broker at `{}`", Shown(socket));
                    told = true;
                }
                let timeout = Timespec { tv_sec: 0, tv_nsec: pause * 1_000_000 };
                let _ = rustix::event::poll(&mut [], Some(&timeout));
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            other => return other,
        }
    }
}
