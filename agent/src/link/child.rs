//! A process behind our side of a data link, made by a fork, and our ends of its standard streams.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::ends::{Sink, Source};
use super::peer::Peer;
use super::rules::{Rules, Stream};
use super::run::{Link, Process, Watch};
use crate::relay::End;
use crate::sys::call::{self, signal};
use crate::vchan::SEND_BUFFER;

/// A process of ours that speaks at our side of a link.
pub struct Child {
    /// It, while it runs.
    pub process: Process,
    /// Takes what it reads.
    pub stdin: OwnedFd,
    /// Gives what it writes.
    pub stdout: OwnedFd,
}

/// Which of two processes we are after a fork.
pub enum Forked {
    /// The new one, with nothing of the other's ends.
    New {
        /// What it is to read.
        stdin: OwnedFd,
        /// Where it is to write.
        stdout: OwnedFd,
    },
    /// The one that was there before.
    Ours(Child),
}

/// Make a process that is connected to us.
pub fn fork() -> Result<Forked, Errno> {
    let (stdin, its_stdin) = pair()?;
    let (stdout, its_stdout) = pair()?;
    Ok(match call::fork()? {
        None => Forked::New { stdin: its_stdin, stdout: its_stdout },
        Some(pid) => Forked::Ours(Child { process: Process::of_child(pid)?, stdin, stdout }),
    })
}

/// Two connected stream sockets that hold much.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    for end in [&pair.0, &pair.1] {
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(end, SEND_BUFFER);
    }
    Ok(pair)
}

/// Hold back the signals that the process of a link takes; where they arrive.
pub fn watch_signals() -> Result<OwnedFd, Errno> {
    call::block_signals();
    call::signal_descriptor(&[signal::USER_1, signal::TERMINATE, signal::INTERRUPT])
}

impl Child {
    /// The link of a call that it serves; what it says on its stderr is still to be seen to.
    pub fn serving(self, signals: OwnedFd, peer: Peer) -> Link {
        let mut link = Link::new(Rules::of_service(), peer);
        link.both_ways = rustix::io::fcntl_dupfd_cloexec(&self.stdin, 3).ok();
        link.sources.push((Stream::Output, Source::new(End::Pipe(self.stdout))));
        link.sinks.push((Stream::Input, Sink::new(End::Pipe(self.stdin))));
        link.process = self.process;
        link.signals = Some(Watch(signals));
        link
    }
}
