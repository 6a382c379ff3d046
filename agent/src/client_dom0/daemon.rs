//! The local socket of a qrexec-daemon: HELLO, then one command for each connection.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};

use crate::exchange::{self, Refusal};
use crate::speak::{Reason, Shown};
use crate::sys::call;
use crate::wire::{self, ExecParams, Ident, Kind, Receiver, Version, Way};
use crate::{connection, vchan};

/// A daemon on this machine answers in this time, in milliseconds, or not at all.
const PATIENCE: i64 = 60_000;

/// A connection to a daemon that has been greeted.
pub struct Daemon {
    stream: OwnedFd,
    receiver: Receiver,
}

impl Daemon {
    /// Connect to the daemon whose socket lies at `path`.
    pub fn connect(path: &[u8]) -> Result<Self, String> {
        let stream = open(path).map_err(|error| {
            alloc::format!("cannot reach the daemon at `{}`: {error}", Shown(path), error = Reason(error))
        })?;
        let mut daemon = Self { stream, receiver: Receiver::new(Way::Opening) };
        let theirs = match daemon.receive()? {
            (Kind::Hello, body) => wire::parse_hello(&body).map_err(|wrong| wrong.to_string())?,
            _ => return Err("the daemon does not begin with HELLO".into()),
        };
        if theirs < Version::LOCAL.number() {
            return Err(alloc::format!("the daemon speaks version {theirs} of the protocol, expected 3"));
        }
        daemon.send(&wire::hello(Version::LOCAL))?;
        daemon.receiver.turn(Way::DaemonToClient);
        Ok(daemon)
    }

    /// Let the qube's agent run a command for `caller`; where it will connect to.
    pub fn execute(&mut self, just_start: bool, caller: u32, command: &[u8]) -> Result<ExecParams, String> {
        let params = ExecParams { domain: caller, port: 0 };
        let message =
            wire::command(just_start, params, command).ok_or("the command is longer than 65526 bytes")?;
        self.send(&message)?;
        self.answer(if just_start { Kind::JustExec } else { Kind::ExecCmdline })
    }

    /// Let the trigger `ident` be served at a place that is known.
    pub fn connect_trigger(&mut self, place: ExecParams, ident: &Ident) -> Result<(), String> {
        self.send(&wire::connect(place, ident))
    }

    /// Let the trigger `ident` be served by us; where its maker waits for us.
    pub fn serve_trigger(&mut self, ident: &Ident) -> Result<ExecParams, String> {
        self.send(&wire::connect(ExecParams::default(), ident))?;
        self.answer(Kind::ServiceConnect)
    }

    /// The connection, whose end is that of the call that we began.
    pub fn stream(&self) -> &OwnedFd {
        &self.stream
    }

    /// The same, for who outlives this.
    pub fn into_stream(self) -> OwnedFd {
        self.stream
    }

    /// Wait until the daemon closes: the call that we began has ended.
    pub fn wait_for_end(&self) {
        let mut waste = [0; 512];
        loop {
            match rustix::io::read(&self.stream, &mut waste) {
                Ok(0) => return,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let _ = rustix::event::poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], None);
                }
                Err(_) => return,
            }
        }
    }

    fn answer(&mut self, expected: Kind) -> Result<ExecParams, String> {
        let (kind, body) = self.receive()?;
        match ExecParams::split(&body) {
            Some((place, _)) if kind == expected && wire::DATA_PORTS.contains(&place.port) => Ok(place),
            _ => Err("the daemon's answer makes no sense".into()),
        }
    }

    fn send(&self, message: &[u8]) -> Result<(), String> {
        exchange::send(&self.stream, message, call::milliseconds() + PATIENCE).map_err(told)
    }

    fn receive(&mut self) -> Result<(Kind, Vec<u8>), String> {
        exchange::receive(&self.stream, &mut self.receiver, call::milliseconds() + PATIENCE).map_err(told)
    }
}

fn open(path: &[u8]) -> Result<OwnedFd, Errno> {
    let stream = vchan::new_socket()?;
    sockopt::set_socket_timeout(
        &stream,
        Timeout::Send,
        Some(core::time::Duration::from_millis(PATIENCE as u64)),
    )?;
    connection::connect(&stream, path)?;
    rustix::fs::fcntl_setfl(&stream, rustix::fs::OFlags::NONBLOCK)?;
    Ok(stream)
}

fn told(refusal: Refusal) -> String {
    match refusal {
        Refusal::Lost(Errno::CONNRESET) => "the daemon closed the connection without an answer".into(),
        Refusal::Lost(Errno::TIMEDOUT) => "the daemon does not answer".into(),
        Refusal::Lost(error) => alloc::format!("the connection to the daemon broke: {}", Reason(error)),
        Refusal::Malformed(malformed) => alloc::format!("the daemon sent a {malformed}"),
    }
}
