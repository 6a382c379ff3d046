//! The first process of a qube: prove the barriers, start services, reap, and leave in order.
//!
//! It trusts the broker at the other end of its socket, and only to start services here.
//! Whatever runs beside it may be hostile, so it reads no file of the qube itself (the children do)
//! and holds nothing that is worth taking.

use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::inotify;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::barriers;
use crate::children::Children;
use crate::connection::{Connection, Descriptors};
use crate::message::{self, ToAgent};
use crate::process::{self, exit_code};
use crate::service::{self, Request, Settings, Work};
use crate::setup::{self, Beginning, Gate};
use crate::speak::{Reason, Shown};
use crate::sys::call::{self, signal};
use crate::text::{basename, c_string};
use crate::{code, environment, say};

const SOCKET: &[u8] = b"/run/qubes/qrexec";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Services have this long to end by themselves.
const GRACE: i64 = 5_000;
const LONGEST_PAUSE: i64 = 1_000;
const UNADMITTED_PAUSE: i64 = 200;
/// Messages taken before the dead are looked after again.
const BATCH: usize = 64;

/// The way to the broker.
enum Link {
    /// Not there: try again when something changes beside the socket, or after a pause.
    Down { watch: Option<OwnedFd>, pause: i64, retry_at: i64 },
    /// Connected; the broker knows our report.
    Up { connection: Connection, admitted: bool },
}

/// What becomes of the qube's set-up.
enum SetUp {
    /// Before the first admission.
    Ahead,
    /// The process goes on.
    UnderWay(i32),
    /// Over; how many things failed is still to be told.
    Ended(usize),
    /// Nothing more to tell.
    Told,
}

struct Agent {
    socket: &'static [u8],
    first_process: bool,
    capabilities: Option<u64>,
    settings: Settings,
    signals: OwnedFd,
    link: Link,
    report: Option<Vec<u8>>,
    children: Children,
    /// What calls wait at; before the first admission, nobody has set the qube up.
    gate: Option<Gate>,
    set_up: SetUp,
    undelivered: bool,
    childless: bool,
    leave_at: Option<i64>,
    buffer: Vec<u8>,
}

/// Serve until asked to end.
pub fn run(environment: &[&'static CStr]) -> i32 {
    let first_process = rustix::process::getpid().is_init();
    let capabilities = environment::get(environment, b"CAISSON_CAPABILITIES").and_then(barriers::hexadecimal);
    let report = barriers::report(VERSION, capabilities, &[]);
    call::block_signals();
    call::default_signals();
    process::occupy_standard_descriptors();
    let signals = match call::signal_descriptor(&[signal::CHILD, signal::TERMINATE, signal::INTERRUPT]) {
        Ok(signals) => signals,
        Err(error) => {
            say!("error: cannot watch for signals: {error}", error = Reason(error));
            return code::FAILURE;
        }
    };
    if !first_process {
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    }
    if first_process {
        setup::show_services();
        // The qube's root must not trace us or look at what we have open.
        let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    }
    let mut agent = Agent {
        socket: environment::get(environment, b"CAISSON_SOCKET").unwrap_or(SOCKET),
        first_process,
        capabilities,
        settings: Settings::new(environment),
        signals,
        link: Link::Down { watch: None, pause: 0, retry_at: 0 },
        report,
        children: Children::default(),
        gate: None,
        set_up: SetUp::Ahead,
        undelivered: false,
        childless: true,
        leave_at: None,
        buffer: alloc::vec![0; message::LONGEST + 1],
    };
    loop {
        if let Some(code) = agent.turn() {
            return code;
        }
    }
}

impl Agent {
    /// One round: connect, deliver, wait, serve. The code to end with, if this is the end.
    fn turn(&mut self) -> Option<i32> {
        self.connect();
        self.deliver();
        if let Some(leave_at) = self.leave_at {
            if self.childless || call::milliseconds() >= leave_at {
                self.signal_all(signal::KILL);
                return Some(0);
            }
        }
        let (signalled, linked) = self.wait();
        if signalled {
            self.take_signals();
        }
        if linked {
            self.hear()
        } else {
            None
        }
    }

    /// Wait until there is something to do: a signal, and something on the way to the broker.
    fn wait(&self) -> (bool, bool) {
        let mut until = self.leave_at;
        let (other, mut flags) = match &self.link {
            Link::Down { watch, retry_at, .. } => {
                until = Some(until.map_or(*retry_at, |other| other.min(*retry_at)));
                (watch.as_ref().map(AsFd::as_fd), PollFlags::IN)
            }
            Link::Up { connection, .. } => (Some(connection.as_fd()), PollFlags::IN),
        };
        if self.undelivered && matches!(self.link, Link::Up { .. }) {
            flags |= PollFlags::OUT;
        }
        let timeout = until.map(|until| call::timeout(until - call::milliseconds()));
        let mut waiting = [
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::from_borrowed_fd(other.unwrap_or(self.signals.as_fd()), flags),
        ];
        match rustix::event::poll(&mut waiting, timeout.as_ref()) {
            Ok(_) => {
                let ready = |flags: PollFlags| !(flags - PollFlags::OUT).is_empty();
                (ready(waiting[0].revents()), other.is_some() && ready(waiting[1].revents()))
            }
            Err(_) => (false, false),
        }
    }

    fn connect(&mut self) {
        let Link::Down { watch, pause, retry_at } = &mut self.link else {
            return;
        };
        if call::milliseconds() < *retry_at {
            return;
        }
        if let Ok(connection) = Connection::open(self.socket) {
            let own = [
                self.signals.as_raw_fd(),
                connection.as_fd().as_raw_fd(),
                watch.as_ref().map_or(-1, AsRawFd::as_raw_fd),
                self.gate.as_ref().map_or(-1, Gate::descriptor),
            ];
            let fresh = || barriers::report(VERSION, self.capabilities, &own);
            let Some(report) = self.report.take().or_else(fresh) else {
                // The qube is full of processes: better late than with a report that says nothing.
                *retry_at = call::milliseconds() + UNADMITTED_PAUSE;
                return;
            };
            let heard = message::hello(&report).is_some_and(|hello| connection.send(&hello).is_ok());
            self.link = Link::Up { connection, admitted: false };
            if !heard {
                self.disconnect();
            }
            return;
        }
        // Watch before the next attempt, so that no change is missed.
        if watch.is_none() {
            *watch = self::watch(self.socket);
            *pause = 0;
        } else {
            *pause = (*pause * 2).clamp(1, LONGEST_PAUSE);
        }
        *retry_at = call::milliseconds() + *pause;
    }

    fn disconnect(&mut self) {
        // A broker that hangs up on us before it admits us will do so again: do not hurry it.
        let retry_at = match self.link {
            Link::Up { admitted: true, .. } => 0,
            _ => call::milliseconds() + UNADMITTED_PAUSE,
        };
        self.link = Link::Down { watch: None, pause: 0, retry_at };
    }

    /// Tell the broker of every end that it has not heard of, that of the set-up among them.
    fn deliver(&mut self) {
        let Link::Up { connection, admitted: true } = &self.link else {
            // Nothing can be sent yet, so do not wait for room to send it.
            self.undelivered = false;
            return;
        };
        let mut lost = false;
        self.undelivered =
            !self.children.deliver(|id, code| match connection.send(&message::ended(id, code)) {
                Ok(()) => true,
                Err(Errno::AGAIN) => false,
                Err(_) => {
                    lost = true;
                    false
                }
            });
        if let SetUp::Ended(failures) = self.set_up {
            match connection.send(&message::set_up(failures)) {
                Ok(()) => self.set_up = SetUp::Told,
                Err(Errno::AGAIN) => self.undelivered = true,
                Err(_) => lost = true,
            }
        }
        if lost {
            self.disconnect();
        }
    }

    fn take_signals(&mut self) {
        const RECORD: usize = 128;
        let mut record = [0; RECORD];
        while let Ok(RECORD) = rustix::io::read(&self.signals, &mut record) {
            let number = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
            if number != signal::CHILD {
                self.leave();
            }
        }
        self.reap();
    }

    fn reap(&mut self) {
        loop {
            match call::reap() {
                Ok(Some((pid, status))) => {
                    let code = exit_code(status);
                    self.children.ended(pid, code);
                    if matches!(self.set_up, SetUp::UnderWay(process) if process == pid) {
                        self.set_up = SetUp::Ended(setup::failures(code));
                    }
                }
                Ok(None) => {
                    self.childless = false;
                    return;
                }
                Err(_) => {
                    self.childless = true;
                    return;
                }
            }
        }
    }

    /// Begin to end: everybody is asked to, and has a while for it.
    fn leave(&mut self) {
        if self.leave_at.is_none() {
            self.leave_at = Some(call::milliseconds() + GRACE);
            self.signal_all(signal::TERMINATE);
            self.signal_all(signal::CONTINUE);
            self.reap();
        }
    }

    fn signal_all(&self, signal: u32) {
        if self.first_process {
            call::kill(-1, signal);
        } else {
            self.children.running().for_each(|pid| call::kill(-pid, signal));
        }
    }

    /// Something happened on the way to the broker. The code to end with, if this is the end.
    fn hear(&mut self) -> Option<i32> {
        if let Link::Down { watch, pause, retry_at } = &mut self.link {
            if let Some(watch) = watch {
                let mut events = [0; 4096];
                let _ = rustix::io::read(watch, &mut events);
            }
            // The socket appears before it listens: begin with short pauses again.
            (*pause, *retry_at) = (0, 0);
            return None;
        }
        let mut buffer = core::mem::take(&mut self.buffer);
        let mut end = None;
        for _ in 0..BATCH {
            let Link::Up { connection, .. } = &self.link else {
                break;
            };
            match connection.receive(&mut buffer, false) {
                Ok(received) if received.length > 0 => {
                    let datagram = &buffer[..received.length];
                    let understood =
                        if received.complete { ToAgent::parse(datagram) } else { Err(message::Malformed) };
                    match understood {
                        Ok(message) => end = self.obey(message, received.descriptors),
                        Err(_) => say!("malformed message of {} bytes ignored", received.length),
                    }
                    if end.is_some() {
                        break;
                    }
                }
                Err(Errno::AGAIN) => break,
                Ok(_) | Err(_) => {
                    self.disconnect();
                    break;
                }
            }
        }
        self.buffer = buffer;
        end
    }

    fn obey(&mut self, message: ToAgent<'_>, descriptors: Descriptors) -> Option<i32> {
        match message {
            ToAgent::Admitted => {
                if let Link::Up { admitted, .. } = &mut self.link {
                    *admitted = true;
                }
                if self.first_process {
                    self.let_go_of_standard_descriptors();
                    self.set_up();
                }
            }
            ToAgent::Rejected(reason) => {
                say!("error: the broker does not accept this qube: {}", Shown(reason));
                self.signal_all(signal::KILL);
                return Some(code::FAILURE);
            }
            ToAgent::ShutDown => self.leave(),
            ToAgent::Service { id, user, descriptor, source, just_start, with_session } => {
                let request = Request { with_session, ..Request::new(descriptor, source) };
                self.start(id, user, Work::Service(request), descriptors, just_start);
            }
            ToAgent::Command { id, user, line } => {
                self.start(id, user, Work::Command(line), descriptors, false);
            }
        }
        None
    }

    /// Once, at the first admission.
    fn set_up(&mut self) {
        if !matches!(self.set_up, SetUp::Ahead) {
            return;
        }
        self.set_up = match setup::begin() {
            Ok(Beginning { gate, pid }) => {
                self.gate = Some(gate);
                self.childless = false;
                SetUp::UnderWay(pid)
            }
            Err(failures) => SetUp::Ended(failures),
        };
    }

    fn let_go_of_standard_descriptors(&self) {
        if let Ok(null) =
            rustix::fs::open(c_string(&[b"/dev/null"]), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        {
            let _ = rustix::stdio::dup2_stdin(&null);
            let _ = rustix::stdio::dup2_stdout(&null);
            let _ = rustix::stdio::dup2_stderr(&null);
        }
    }

    fn start(&mut self, id: u64, user: &[u8], work: Work<'_>, descriptors: Descriptors, just_start: bool) {
        let refusal = if self.leave_at.is_some() {
            Some("this qube is shutting down")
        } else if !matches!(self.link, Link::Up { admitted: true, .. }) {
            Some("this qube has not been admitted yet")
        } else if self.children.full() {
            Some("too many services run in this qube")
        } else {
            None
        };
        if let Some(text) = refusal {
            return self.refuse(id, &descriptors, text);
        }
        if self.gate.as_ref().is_some_and(Gate::is_open) {
            self.gate = None;
        }
        match call::fork() {
            Ok(None) if self.gate.is_some() => self.start_behind_gate(work, user, descriptors, just_start),
            Ok(None) if just_start => service::start_and_leave(work, user, &self.settings, None),
            Ok(None) => service::become_service(work, user, descriptors, &self.settings),
            Ok(Some(pid)) => {
                self.childless = false;
                self.children.started(id, pid);
            }
            Err(error) => self.refuse(
                id,
                &descriptors,
                &alloc::format!("cannot make a process: {error}", error = Reason(error)),
            ),
        }
    }

    /// In the child: wait until the qube is set up, so that a service sees its paths.
    fn start_behind_gate(
        &self,
        work: Work<'_>,
        user: &[u8],
        descriptors: Descriptors,
        just_start: bool,
    ) -> ! {
        if let Some(gate) = &self.gate {
            gate.pass(descriptors[2].as_ref());
        }
        if just_start {
            service::start_and_leave(work, user, &self.settings, None)
        }
        service::become_service(work, user, descriptors, &self.settings)
    }

    fn refuse(&mut self, id: u64, descriptors: &Descriptors, text: &str) {
        if let [_, _, Some(stderr)] = descriptors {
            let _ = rustix::fs::fcntl_setfl(stderr, OFlags::NONBLOCK);
            let _ = rustix::io::write(stderr, alloc::format!("error: {text}\n").as_bytes());
        }
        self.children.failed(id, code::PROBLEM);
    }
}

/// Watch the directory of the socket for a new one.
fn watch(socket: &[u8]) -> Option<OwnedFd> {
    let directory = &socket[..socket.len() - basename(socket).len()];
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
    let events = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::ATTRIB;
    inotify::add_watch(&watch, directory, events).ok()?;
    Some(watch)
}
