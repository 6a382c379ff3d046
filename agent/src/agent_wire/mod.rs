//! `qrexec-agent` towards a qrexec daemon: the wire protocol on a control stream, and a socket at
//! which this machine's clients ask for calls.
//!
//! It trusts the daemon to start services here. Clients are any program of this machine: what they
//! send is bounded in size, time and number, and rewritten before it goes on. Nothing here waits for
//! one peer only, so that a daemon that is stuck stops neither signals nor the burying of children.
//! There is no PAM: a program without libc cannot load its modules.

mod clients;
mod control;
mod data_process;
mod fork_server;

use alloc::ffi::CString;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use self::clients::Clients;
use self::control::{Control, Order};
use self::data_process::DataProcess;
use crate::arguments::{Known, Options};
use crate::environment;
use crate::process;
use crate::speak::{self, Reason, Shown};
use crate::sys::call::{self, signal};
use crate::text::{c_string, decimal};
use crate::users::read_file;
use crate::vchan::Place;
use crate::wire::ExecParams;
use crate::{code, say};

/// Data processes at once; the daemon of one qube has 256 ports.
const MOST_CHILDREN: usize = 1024;
/// Ends of connections that the daemon has not been told of; more are forgotten.
const MOST_ENDED: usize = 4096;
const SOCKET: &[u8] = b"/run/qubes/qrexec-agent";
const MEMINFO_WRITER: &[u8] = b"/var/run/meminfo-writer.pid";
const VARIABLES: [&[u8]; 3] = [b"VCHAN_DOMAIN", b"VCHAN_SOCKET_DIR", b"CAISSON_VCHAN_STREAMS"];
const KNOWN: [Known; 4] = [
    Known::value(b'a', "agent-socket"),
    Known::value(b's', "fork-server-socket"),
    Known::flag(b'S', "no-fork-server"),
    Known::flag(b'h', "help"),
];
const USAGE: &str = "\
usage: qrexec-agent [OPTIONS]

Serve a qrexec daemon over the wire protocol.

  -a, --agent-socket=PATH          where clients of this machine call (default /run/qubes/qrexec-agent)
  -s, --fork-server-socket=PATH    a user's session server, %s stands for the user
                                   (default /run/qubes/qrexec-server.%s.sock)
  -S, --no-fork-server             start everything ourselves
  -h, --help                       show this

Environment: VCHAN_DOMAIN, VCHAN_SOCKET_DIR, CAISSON_VCHAN_STREAMS, NOTIFY_SOCKET,
QREXEC_SERVICE_PATH, QUBES_RPC_CONFIG_PATH.
";

/// Whether the agent was started for a daemon, rather than for our broker.
pub fn is_wanted(arguments: &[&'static CStr], environment: &[&'static CStr]) -> bool {
    !arguments.is_empty() || VARIABLES.iter().any(|name| environment::get(environment, name).is_some())
}

/// Serve until asked to end; the exit code.
pub fn run(arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    let wishes = match wishes(arguments) {
        Ok(Some(wishes)) => wishes,
        Ok(None) => {
            let _ = rustix::io::write(call::standard(2), USAGE.as_bytes());
            return code::USAGE;
        }
        Err(text) => return speak::wrong_usage("qrexec-agent", &text),
    };
    call::block_signals();
    call::default_signals();
    process::occupy_standard_descriptors();
    let mut agent = match Agent::start(&wishes, environment) {
        Ok(agent) => agent,
        Err(text) => {
            say!("error: {text}");
            return code::FAILURE;
        }
    };
    let end = loop {
        match agent.turn() {
            Turn::On => {}
            Turn::End(code) => break code,
            Turn::Serve(params, process) => {
                // The child: what the agent holds is closed before anything of the call happens.
                let place = agent.place;
                drop(agent);
                return process.run(params, &place, wishes.fork_server, environment);
            }
        }
    };
    let _ = rustix::fs::unlink(agent.socket.as_c_str());
    end
}

struct Wishes {
    socket: &'static [u8],
    /// The pattern of the session servers' sockets; none where they are not wanted.
    fork_server: Option<&'static [u8]>,
}

/// `None` where help is asked for.
fn wishes(arguments: &[&'static CStr]) -> Result<Option<Wishes>, String> {
    let mut options = Options::new(&KNOWN, arguments);
    let mut wishes = Wishes { socket: SOCKET, fork_server: Some(fork_server::PATTERN) };
    let mut without = false;
    while let Some((name, value)) = options.take()? {
        match name {
            "agent-socket" => wishes.socket = value,
            "fork-server-socket" => wishes.fork_server = Some(value),
            "no-fork-server" => without = true,
            _ => return Ok(None),
        }
    }
    if let Some(operand) = options.operands().first() {
        return Err(alloc::format!("unexpected argument `{}`", Shown(operand.to_bytes())));
    }
    if without {
        wishes.fork_server = None;
    }
    Ok(Some(wishes))
}

enum Turn {
    On,
    End(i32),
    /// We are the new process that serves a call.
    Serve(ExecParams, DataProcess),
}

struct Child {
    pid: i32,
    params: ExecParams,
}

struct Agent {
    place: Place,
    socket: CString,
    notify: Option<&'static [u8]>,
    signals: OwnedFd,
    control: Control,
    clients: Clients,
    children: Vec<Child>,
    /// Connections that are done with and that the daemon has not been told of.
    ended: Vec<ExecParams>,
    worked: bool,
}

impl Agent {
    fn start(wishes: &Wishes, environment: &[&'static CStr]) -> Result<Self, String> {
        let signals = call::signal_descriptor(&[signal::CHILD, signal::TERMINATE, signal::INTERRUPT])
            .map_err(|error| alloc::format!("cannot watch for signals: {}", Reason(error)))?;
        let place = Place::of(environment)?;
        let control = Control::wait_for_daemon(&place).map_err(|error| no_control(&place, error))?;
        let clients = Clients::listen(wishes.socket).map_err(|error| {
            alloc::format!(
                "cannot listen at `{}`: {}\nhint: `--agent-socket=PATH` names another place",
                Shown(wishes.socket),
                Reason(error)
            )
        })?;
        Ok(Self {
            place,
            socket: c_string(&[wishes.socket]),
            notify: environment::get(environment, b"NOTIFY_SOCKET"),
            signals,
            control,
            clients,
            children: Vec::new(),
            ended: Vec::new(),
            worked: false,
        })
    }

    /// One round: tell, wait, hear.
    fn turn(&mut self) -> Turn {
        self.tell_ends();
        self.control.flush();
        let (signalled, heard) = self.wait();
        if signalled && self.take_signals() {
            return Turn::End(0);
        }
        self.clients.serve(&mut self.control, &mut self.ended);
        if heard {
            self.hear()
        } else {
            Turn::On
        }
    }

    /// Tell the daemon of connections that are done with, as far as it listens.
    fn tell_ends(&mut self) {
        let overflow = self.ended.len().saturating_sub(MOST_ENDED);
        self.ended.drain(..overflow);
        while self.control.has_room() {
            let Some(params) = self.ended.pop() else { return };
            self.control.terminated(params);
        }
    }

    /// Wait for something to do: whether there are signals, and whether the daemon has something.
    fn wait(&mut self) -> (bool, bool) {
        let mut entries = alloc::vec![PollFd::new(&self.signals, PollFlags::IN)];
        let control = self.control.poll_entry();
        let has_control = control.is_some();
        entries.extend(control);
        let fixed = entries.len();
        let open = self.control.has_room();
        entries.extend(self.clients.poll_entries(open));
        let until = [self.control.retry_at(), self.clients.retry_at()].into_iter().flatten().min();
        let timeout = until.map(|until| call::timeout(until - call::milliseconds()));
        if rustix::event::poll(&mut entries, timeout.as_ref()).is_err() {
            return (false, false);
        }
        let told: Vec<PollFlags> = entries.iter().map(PollFd::revents).collect();
        drop(entries);
        self.clients.wake(&told[fixed..], open);
        let timed = self.control.retry_at().is_some_and(|at| at <= call::milliseconds());
        (!told[0].is_empty(), timed || (has_control && !told[1].is_empty()))
    }

    /// Take signals and bury children; true where it is time to end.
    fn take_signals(&mut self) -> bool {
        const RECORD: usize = 128;
        let mut record = [0; RECORD];
        let mut end = false;
        while let Ok(RECORD) = rustix::io::read(&self.signals, &mut record) {
            let number = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
            end |= number != signal::CHILD;
        }
        while let Ok(Some((pid, _))) = call::reap() {
            if let Some(at) = self.children.iter().position(|child| child.pid == pid) {
                self.ended.push(self.children.swap_remove(at).params);
            }
        }
        end
    }

    /// Hear the daemon.
    fn hear(&mut self) -> Turn {
        let orders = match self.control.hear() {
            Ok(orders) => orders,
            Err(malformed) => {
                say!("error: the daemon breaks the protocol: {malformed}");
                return Turn::End(code::FAILURE);
            }
        };
        for order in orders {
            match order {
                Order::Ready => self.notify(),
                Order::Gone => {
                    // Nobody will answer them any more.
                    self.clients.drop_unanswered();
                    if let Err(error) = self.control.wait_anew(&self.place) {
                        say!("error: {}", no_control(&self.place, error));
                        return Turn::End(code::FAILURE);
                    }
                }
                Order::Connect(params, ident) => self.clients.connect(params, &ident, &mut self.ended),
                Order::Refuse(ident) => self.clients.refuse(&ident),
                Order::Execute { just_start, params, line } => {
                    if let Some(process) = self.execute(params, DataProcess { line, just_start }) {
                        return Turn::Serve(params, process);
                    }
                }
            }
        }
        Turn::On
    }

    /// Start the process that serves a call; it is given back in that process.
    fn execute(&mut self, params: ExecParams, process: DataProcess) -> Option<DataProcess> {
        if !core::mem::replace(&mut self.worked, true) {
            wake_meminfo_writer();
        }
        if self.children.len() >= MOST_CHILDREN {
            say!("error: a call from domain {} is refused: {MOST_CHILDREN} run already", params.domain);
            self.ended.push(params);
            return None;
        }
        match call::fork() {
            Ok(None) => return Some(process),
            Ok(Some(pid)) => self.children.push(Child { pid, params }),
            Err(error) => {
                say!("error: cannot make a process for a call: {error}", error = Reason(error));
                self.ended.push(params);
            }
        }
        None
    }

    /// Tell who started us that we are of use.
    fn notify(&self) {
        let Some(path) = self.notify else { return };
        if let Err(error) = control::notify(path) {
            say!("cannot tell `{}` that the agent is ready: {}", Shown(path), Reason(error));
        }
    }
}

fn no_control(place: &Place, error: Errno) -> String {
    alloc::format!("cannot wait for the daemon at `{}`: {}", Shown(place.directory()), Reason(error))
}

/// The first call is when memory may be taken from this machine; its reporter waits for that.
fn wake_meminfo_writer() {
    let Ok(content) = read_file(MEMINFO_WRITER) else { return };
    let text = content.split(|&byte| byte == b'\n').next().unwrap_or(&[]);
    if let Some(pid) = decimal(text).and_then(|pid| i32::try_from(pid).ok()).filter(|&pid| pid > 1) {
        call::kill(pid, signal::USER_1);
    }
}
