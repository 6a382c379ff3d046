//! The socket at which programs of this machine ask for calls.

use alloc::vec::Vec;

use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::control::Control;
use crate::say;
use crate::speak::Reason;
use crate::sys::call;
use crate::text::{basename, c_string};
use crate::vchan::{bind, new_socket};
use crate::wire::{ExecParams, Ident, Receiver, Trigger, Way};

/// Clients at once; one beyond that is refused.
const MOST: usize = 512;
/// A client has so long to say what it wants, in milliseconds.
const PATIENCE: i64 = 10_000;
/// A pause after a connection that could not be taken.
const PAUSE: i64 = 100;
const BACKLOG: i32 = 128;
const PIECE: usize = 4096;

enum State {
    /// It says what it wants.
    Asking { receiver: Receiver, until: i64 },
    /// The daemon was asked.
    Asked,
    /// It has its call.
    Calling(ExecParams),
}

struct Client {
    /// Never used again for another client, so that no late answer reaches the wrong one.
    number: u64,
    socket: OwnedFd,
    state: State,
    ready: bool,
    hung_up: bool,
}

/// The clients of this machine.
pub struct Clients {
    listener: OwnedFd,
    knocking: bool,
    /// Whether somebody was refused for want of room, this was said, and there is not much room yet.
    full: bool,
    retry_at: i64,
    clients: Vec<Client>,
    next: u64,
}

impl Clients {
    /// Listen at `path`, in the place of a socket that was left there; everybody may connect.
    pub fn listen(path: &[u8]) -> Result<Self, Errno> {
        let name = basename(path);
        if let Some(directory) =
            path[..path.len() - name.len()].strip_suffix(b"/").filter(|path| !path.is_empty())
        {
            match rustix::fs::mkdir(directory, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        match rustix::fs::unlink(c_string(&[path])) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        let listener = new_socket()?;
        rustix::io::ioctl_fionbio(&listener, true)?;
        let mask = rustix::process::umask(Mode::empty());
        let bound = bind(&listener, path);
        rustix::process::umask(mask);
        bound?;
        rustix::net::listen(&listener, BACKLOG)?;
        Ok(Self { listener, knocking: false, full: false, retry_at: 0, clients: Vec::new(), next: 1 })
    }

    /// For `poll`: the listener where `open`, then all clients.
    pub fn poll_entries(&self, open: bool) -> impl Iterator<Item = PollFd<'_>> {
        let listens = open && self.retry_at <= call::milliseconds();
        let listener = PollFd::new(&self.listener, if listens { PollFlags::IN } else { PollFlags::empty() });
        let of_client = move |client: &Client| match client.state {
            // They wait while the daemon does not listen.
            State::Asking { .. } if !open => PollFlags::empty(),
            _ => PollFlags::IN,
        };
        let entries = self.clients.iter().map(move |client| PollFd::new(&client.socket, of_client(client)));
        core::iter::once(listener).chain(entries)
    }

    /// What `poll` told of `poll_entries`.
    pub fn wake(&mut self, told: &[PollFlags], open: bool) {
        self.knocking = open && told.first().is_some_and(|flags| flags.contains(PollFlags::IN));
        for (client, flags) in self.clients.iter_mut().zip(told.iter().skip(1)) {
            client.ready = !flags.is_empty();
            client.hung_up = flags.intersects(PollFlags::HUP | PollFlags::ERR);
        }
    }

    /// When to come back whatever `poll` says.
    pub fn retry_at(&self) -> Option<i64> {
        let patience = self.clients.iter().filter_map(|client| match client.state {
            State::Asking { until, .. } => Some(until),
            _ => None,
        });
        let pause = Some(self.retry_at).filter(|&at| at > call::milliseconds());
        patience.chain(pause).min()
    }

    /// Take new clients, what they ask for, and their ends.
    pub fn serve(&mut self, control: &mut Control, ended: &mut Vec<ExecParams>) {
        if core::mem::take(&mut self.knocking) {
            self.accept();
        }
        let now = call::milliseconds();
        let listens = control.has_room();
        let mut at = 0;
        while at < self.clients.len() {
            let client = &mut self.clients[at];
            if let (State::Asking { until, .. }, false) = (&mut client.state, listens) {
                // It is the daemon that makes it wait. One that left meanwhile wants nothing more.
                *until = if client.hung_up { now } else { now + PATIENCE };
            }
            let late = matches!(client.state, State::Asking { until, .. } if until <= now);
            let ready = core::mem::take(&mut client.ready);
            if !late && (!ready || client.advance(control)) {
                at += 1;
                continue;
            }
            if let State::Calling(params) = self.clients.swap_remove(at).state {
                ended.push(params);
            }
        }
    }

    fn accept(&mut self) {
        loop {
            match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(_) if self.clients.len() >= MOST => {
                    if !core::mem::replace(&mut self.full, true) {
                        say!("error: clients are refused: {MOST} are here already");
                    }
                }
                Ok(socket) => {
                    let until = call::milliseconds() + PATIENCE;
                    let state = State::Asking { receiver: Receiver::new(Way::ClientToAgent), until };
                    self.clients.push(Client {
                        number: self.next,
                        socket,
                        state,
                        ready: true,
                        hung_up: false,
                    });
                    self.next += 1;
                    self.full &= self.clients.len() > MOST / 2;
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    say!("cannot take a client's connection: {error}", error = Reason(error));
                    self.retry_at = call::milliseconds() + PAUSE;
                    return;
                }
            }
        }
    }

    /// The daemon allowed a client's call.
    pub fn connect(&mut self, params: ExecParams, ident: &Ident, ended: &mut Vec<ExecParams>) {
        let number = ident.client();
        let known = self.clients.iter_mut().find(|client| Some(client.number) == number);
        match known {
            Some(client) if matches!(client.state, State::Asked) => {
                // Its socket is empty, so that this fits; a client that is gone is noticed later.
                let _ = rustix::io::write(&client.socket, &params.bytes());
                client.state = State::Calling(params);
            }
            Some(_) => say!("an answer of the daemon to a client that was answered is ignored"),
            // It left while the daemon thought; the connection that it was given is done with.
            None if number.is_some_and(|number| number < self.next && number > 0) => ended.push(params),
            None => say!("an answer of the daemon to a client that never was is ignored"),
        }
    }

    /// The daemon refused a client's call: its socket closes.
    pub fn refuse(&mut self, ident: &Ident) {
        let number = ident.client();
        let refused = |client: &Client| Some(client.number) == number && matches!(client.state, State::Asked);
        if let Some(at) = self.clients.iter().position(refused) {
            self.clients.swap_remove(at);
        }
    }

    /// The daemon went away without an answer to these.
    pub fn drop_unanswered(&mut self) {
        self.clients.retain(|client| !matches!(client.state, State::Asked));
    }
}

impl Client {
    /// Read what it says; false where it is done with.
    fn advance(&mut self, control: &mut Control) -> bool {
        let State::Asking { receiver, .. } = &mut self.state else {
            // It has nothing more to say: this is its end, or it does not keep to the protocol.
            return matches!(rustix::io::read(&self.socket, &mut [0; 1]), Err(Errno::AGAIN | Errno::INTR));
        };
        while control.has_room() {
            let mut piece = [0; PIECE];
            let wanted = receiver.wanted().min(PIECE);
            let count = match rustix::io::read(&self.socket, &mut piece[..wanted]) {
                Ok(0) => return false,
                Ok(count) => count,
                Err(Errno::AGAIN | Errno::INTR) => return true,
                Err(_) => return false,
            };
            match receiver.take(&piece[..count]) {
                Ok(None) => {}
                Ok(Some((kind, body))) => {
                    let Ok(trigger) = Trigger::parse(kind, &body) else { return false };
                    let ident = Ident::of_client(self.number).bytes();
                    self.state = State::Asked;
                    return control.trigger(&Trigger { ident, ..trigger });
                }
                Err(_) => return false,
            }
        }
        true
    }
}
