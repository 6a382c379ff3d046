//! The stream to the daemon.

use alloc::vec::Vec;

use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::say;
use crate::speak::Reason;
use crate::vchan::{Place, Server};
use crate::wire::{self, ExecParams, Ident, Kind, Malformed, Receiver, Trigger, Version, Way, CONTROL_PORT};

/// Whoever is not a client but the daemon has this domain.
const DAEMON: u32 = 0;
/// What may wait for the daemon before nobody may ask for more.
const FULL: usize = 256 * 1024;
/// Between two attempts at a stream that ends before anybody greets, in milliseconds.
const UNGREETED_PAUSE: i64 = 200;
/// Messages taken before others get their turn.
const BATCH: usize = 64;
/// What one reading takes at most.
const PIECE: usize = 64 * 1024;

/// What the daemon wants.
pub enum Order {
    /// It is there, and speaks the protocol.
    Ready,
    /// It went away.
    Gone,
    /// A client's call was allowed.
    Connect(ExecParams, Ident),
    /// A client's call was refused.
    Refuse(Ident),
    /// Serve a call.
    Execute {
        /// Nobody waits for its end.
        just_start: bool,
        /// Where the caller is.
        params: ExecParams,
        /// `USER:COMMAND`.
        line: Vec<u8>,
    },
}

/// The way to the daemon.
pub enum Control {
    /// It has not come.
    Waiting(Server),
    /// It is there.
    Up(Link),
}

/// A daemon that is there.
pub struct Link {
    stream: OwnedFd,
    receiver: Receiver,
    version: Option<Version>,
    outbox: Vec<u8>,
    sent: usize,
    lost: bool,
}

impl Control {
    /// Wait for the daemon to come.
    pub fn wait_for_daemon(place: &Place) -> Result<Self, Errno> {
        place.serve(DAEMON, CONTROL_PORT).map(Self::Waiting)
    }

    /// Wait for it to come again.
    pub fn wait_anew(&mut self, place: &Place) -> Result<(), Errno> {
        let mut server = place.serve(DAEMON, CONTROL_PORT)?;
        if !matches!(self, Self::Up(Link { version: Some(_), .. })) {
            // What ends before it greets will do so again: do not hurry it.
            server.pause(UNGREETED_PAUSE);
        }
        *self = Self::Waiting(server);
        Ok(())
    }

    /// For `poll`.
    pub fn poll_entry(&self) -> Option<PollFd<'_>> {
        match self {
            Self::Waiting(server) => server.poll_entry(),
            Self::Up(link) => {
                let waiting = link.sent < link.outbox.len();
                let flags = if waiting { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
                Some(PollFd::new(&link.stream, flags))
            }
        }
    }

    /// When to call `hear` whatever `poll` says.
    pub fn retry_at(&self) -> Option<i64> {
        match self {
            Self::Waiting(server) => server.retry_at(),
            Self::Up(_) => None,
        }
    }

    /// True where the daemon listens and is not behind.
    pub fn has_room(&self) -> bool {
        matches!(self, Self::Up(link) if link.version.is_some() && link.outbox.len() - link.sent < FULL)
    }

    /// Send what the daemon takes now.
    pub fn flush(&mut self) {
        let Self::Up(link) = self else { return };
        while link.sent < link.outbox.len() {
            match rustix::io::write(&link.stream, &link.outbox[link.sent..]) {
                Ok(count) => link.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    // What it said before is still heard.
                    link.lost = true;
                    link.sent = link.outbox.len();
                }
            }
        }
        if link.sent == link.outbox.len() || link.sent > FULL {
            link.outbox.drain(..link.sent);
            link.sent = 0;
        }
    }

    fn send(&mut self, message: &[u8]) {
        match self {
            Self::Up(link) if !link.lost => link.outbox.extend_from_slice(message),
            _ => {}
        }
    }

    /// Tell the daemon that a connection is done with.
    pub fn terminated(&mut self, params: ExecParams) {
        self.send(&wire::terminated(params));
    }

    /// Ask the daemon for a call; false where its version cannot express it.
    pub fn trigger(&mut self, trigger: &Trigger<'_>) -> bool {
        let Self::Up(Link { version: Some(version), .. }) = self else {
            return false;
        };
        let message = match version.number() {
            2 => trigger.message_2(),
            3 => trigger.message_3(),
            _ => trigger.message(),
        };
        match message {
            Some(message) => {
                self.send(&message);
                true
            }
            None => false,
        }
    }

    /// Hear the daemon: what it wants, in order; an error where it breaks the protocol.
    pub fn hear(&mut self) -> Result<Vec<Order>, Malformed> {
        match self {
            Self::Waiting(server) => match server.take() {
                Ok(None) => Ok(Vec::new()),
                Ok(Some(line)) => {
                    *self = Self::Up(Link::new(line.stream));
                    Ok(Vec::new())
                }
                Err(error) => {
                    say!("cannot take the daemon's connection: {error}", error = Reason(error));
                    Ok(alloc::vec![Order::Gone])
                }
            },
            Self::Up(link) => link.hear(),
        }
    }
}

impl Link {
    fn new(stream: OwnedFd) -> Self {
        Self {
            stream,
            receiver: Receiver::new(Way::Opening),
            version: None,
            outbox: wire::hello(Version::NEWEST),
            sent: 0,
            lost: false,
        }
    }

    fn hear(&mut self) -> Result<Vec<Order>, Malformed> {
        let mut orders = Vec::new();
        let mut piece = alloc::vec![0; PIECE];
        while orders.len() < BATCH {
            let wanted = self.receiver.wanted().min(PIECE);
            match rustix::io::read(&self.stream, &mut piece[..wanted]) {
                Ok(count) if count > 0 => {
                    if let Some((kind, body)) = self.receiver.take(&piece[..count])? {
                        orders.extend(self.order(kind, body)?);
                    }
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => {
                    orders.push(Order::Gone);
                    break;
                }
            }
        }
        Ok(orders)
    }

    fn order(&mut self, kind: Kind, body: Vec<u8>) -> Result<Option<Order>, Malformed> {
        Ok(Some(match kind {
            Kind::Hello => {
                self.version = Some(Version::negotiate(wire::parse_hello(&body)?)?);
                self.receiver.turn(Way::DaemonToAgent);
                Order::Ready
            }
            Kind::ServiceConnect => match wire::parse_connect(&body) {
                Ok((params, ident)) => Order::Connect(params, ident),
                Err(_) => return Ok(ignored()),
            },
            Kind::ServiceRefused => {
                match <[u8; Ident::SIZE]>::try_from(&body[..]).ok().and_then(|raw| Ident::parse(&raw)) {
                    Some(ident) => Order::Refuse(ident),
                    None => return Ok(ignored()),
                }
            }
            _ => {
                let (params, line) = wire::parse_command(&body)?;
                Order::Execute { just_start: kind == Kind::JustExec, params, line: line.to_vec() }
            }
        }))
    }
}

fn ignored() -> Option<Order> {
    say!("an answer of the daemon that names no client is ignored");
    None
}

/// Send READY=1 to a service manager; `@` begins a name that is no path.
pub fn notify(path: &[u8]) -> Result<(), Errno> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let address = match path {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
        _ => SocketAddrUnix::new(path)?,
    };
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendto(&socket, b"READY=1", flags, &address).map(|_| ())
}
