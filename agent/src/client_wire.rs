//! A call over a wire agent: ask at its trigger socket, then be the caller on a data link.

use core::ffi::CStr;

use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::caller::Caller;
use crate::connection;
use crate::flow;
use crate::link::Peer;
use crate::speak::{Reason, Shown};
use crate::sys::call;
use crate::vchan::{new_socket, Place, PATIENCE};
use crate::wire::{ExecParams, Ident, Trigger};
use crate::{code, say};

/// What an agent's client calls itself; the agent puts its own name for it in the place.
const IDENT: &[u8] = b"SOCKET";

/// A call to make.
pub struct Call<'a> {
    /// The agent's trigger socket.
    pub socket: &'a [u8],
    /// In whose name, where we are a relay; empty otherwise.
    pub source: &'a [u8],
    /// The target.
    pub target: &'a [u8],
    /// `name` or `name+argument`.
    pub service: &'a [u8],
    /// What speaks with the service.
    pub caller: Caller<'a>,
}

impl Call<'_> {
    /// Make the call; its exit code.
    pub fn run(&self, environment: &[&'static CStr]) -> i32 {
        call::ignore_broken_pipes();
        let ident = Ident::new(IDENT).map_or([0; Ident::SIZE], |ident| ident.bytes());
        let trigger = Trigger { source: self.source, target: self.target, ident, service: self.service };
        let Some(request) = trigger.message() else {
            say!(
                "error: the service with its argument is longer than {} bytes",
                crate::wire::LONGEST_SERVICE - 1
            );
            return code::FAILURE;
        };
        let place = match Place::of_qube(environment) {
            Ok(place) => place,
            Err(text) => {
                say!("error: {text}");
                return code::FAILURE;
            }
        };
        let agent = match self.ask(&request) {
            Ok(agent) => agent,
            Err(error) => {
                say!("error: cannot ask the agent at `{}`: {}", Shown(self.socket), Reason(error));
                return code::FAILURE;
            }
        };
        let params = match answer(&agent) {
            Ok(Some(params)) => params,
            Ok(None) => {
                say!("Request refused");
                return code::REFUSED;
            }
            Err(error) => {
                say!("error: the agent went away within its answer: {}", Reason(error));
                return code::LOST;
            }
        };
        let code = self.serve(params, &place);
        // The agent takes the end of this connection for the end of the call.
        drop(agent);
        code
    }

    fn ask(&self, request: &[u8]) -> Result<OwnedFd, Errno> {
        let agent = new_socket()?;
        connection::connect(&agent, self.socket)?;
        match flow::write_all(&agent, request) {
            // An agent that refuses at once may close before it has read everything.
            Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(agent),
            Err(error) => Err(error),
        }
    }

    /// Be the server of the data link, and the caller on it.
    fn serve(&self, params: ExecParams, place: &Place) -> i32 {
        let until = call::milliseconds() + PATIENCE;
        let ExecParams { domain, port } = params;
        let stream = match place.accept(domain, port, until, None) {
            Ok(stream) => stream,
            Err(error) => {
                say!("error: domain {domain} did not come to port {port}: {}", Reason(error));
                return code::FAILURE;
            }
        };
        match Peer::open(stream, until) {
            Ok(peer) => self.caller.run(peer),
            Err(refusal) => {
                say!("error: the link to domain {domain} at port {port} did not come up: {refusal}");
                refusal.code()
            }
        }
    }
}

/// The agent's answer: where the data link is, or none where the call is refused.
fn answer(agent: &OwnedFd) -> Result<Option<ExecParams>, Errno> {
    let mut bytes = [0; ExecParams::SIZE];
    let first = match flow::read(agent, &mut bytes) {
        Ok(0) | Err(Errno::CONNRESET) => return Ok(None),
        Ok(count) => count,
        Err(error) => return Err(error),
    };
    let rest = &mut bytes[first..];
    if flow::read_full(agent, rest)? < rest.len() {
        return Err(Errno::CONNRESET);
    }
    Ok(ExecParams::split(&bytes).map(|(params, _)| params))
}
