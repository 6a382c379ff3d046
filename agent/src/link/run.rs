//! The loop of a data link.

use alloc::vec::Vec;

use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;

use super::ends::{Moved, Sink, Source};
use super::log::Log;
use super::peer::{Next, Peer};
use super::rules::{Due, Ending, Heard, Rules, Side, Stream};
use crate::filter;
use crate::process::{self, exit_code};
use crate::speak;
use crate::sys::call;
use crate::wire;
use crate::{code, say};

/// Steps after which others are looked at, though the last one did something.
const MOVES: u32 = 64;

/// What tells how the process of our side ended.
pub enum Process {
    /// There is none.
    None,
    /// A child of ours; the descriptor becomes readable when it has ended.
    Child {
        /// Its id.
        pid: i32,
        /// Its pidfd.
        watch: OwnedFd,
    },
    /// Its exit code comes as decimal text; up to the end of this stream.
    Told {
        /// The stream.
        source: Source,
        /// What has come of it.
        text: Vec<u8>,
    },
}

impl Process {
    /// Watch a child that was forked just now.
    pub fn of_child(pid: i32) -> Result<Self, rustix::io::Errno> {
        Ok(Self::Child { pid, watch: process::watch(pid)? })
    }
}

/// Signals that a data process takes; see `Link::signals`.
pub struct Watch(pub OwnedFd);

/// One end of a call with everything that hangs on it.
pub struct Link {
    /// The decisions.
    pub rules: Rules,
    /// The stream.
    pub peer: Peer,
    /// What we say: Input; or Output and Errors.
    pub sources: Vec<(Stream, Source)>,
    /// What we are told: Output and Errors; or Input.
    pub sinks: Vec<(Stream, Sink)>,
    /// The process behind them.
    pub process: Process,
    /// Where the service's own input takes its output too, once it asks for that by SIGUSR1: a
    /// second descriptor of that socket.
    pub both_ways: Option<OwnedFd>,
    /// USR1 and signals to end by.
    pub signals: Option<Watch>,
    /// Where the service's errors are copied to.
    pub log: Option<Log>,
    /// The stream whose bytes are being handed on; none where they are dropped.
    current: Option<Stream>,
    /// The beginning of an exit code.
    code: Option<Vec<u8>>,
    turn: usize,
    remarked: bool,
    /// Whether the service's output could not be written on our side.
    unwritten: bool,
}

enum Stop {
    Ended(Ending),
    Malformed(wire::Malformed),
    Asked,
}

impl Link {
    /// A link of a peer, with nothing hanging on it.
    pub fn new(rules: Rules, peer: Peer) -> Self {
        Self {
            rules,
            peer,
            sources: Vec::new(),
            sinks: Vec::new(),
            process: Process::None,
            both_ways: None,
            signals: None,
            log: None,
            current: None,
            code: None,
            turn: 0,
            remarked: false,
            unwritten: false,
        }
    }

    /// Run the link to its end; the exit code of the call, `LOST` where it was lost.
    pub fn run(self) -> i32 {
        self.run_to_ending().unwrap_or_else(|code| code)
    }

    /// Run the link to its end: the call's exit code, or ours where the call was cut short.
    pub fn run_to_ending(mut self) -> Result<i32, i32> {
        let mut moves: u32 = 0;
        let stop = loop {
            let moved = match self.step() {
                Err(stop) => break stop,
                Ok(moved) => moved,
            };
            moves = moves.wrapping_add(1);
            // A peer that sends all the time does not keep us from signals, sources and the process.
            if moved && moves % MOVES != 0 {
                continue;
            }
            if let Err(stop) = self.wait(moved) {
                break stop;
            }
        };
        // Readers on our side see their ends before we are gone.
        self.sinks.drain(..).for_each(|(_, sink)| sink.close());
        match stop {
            Stop::Ended(Ending::Complete(code)) => {
                match self.rules.side() {
                    Side::Caller => self.peer.close(),
                    Side::Service => self.peer.close_when_heard(self.signals.as_ref().map(|Watch(fd)| fd)),
                }
                Ok(if code == 0 && self.unwritten { code::FAILURE } else { code })
            }
            Stop::Ended(Ending::Lost) => {
                if self.rules.side() == Side::Caller {
                    say!("error: the connection to the other qube was lost");
                }
                Err(code::LOST)
            }
            Stop::Malformed(malformed) => {
                say!("error: the peer of the call breaks the protocol: {malformed}");
                Err(code::FAILURE)
            }
            Stop::Asked => Err(code::PROBLEM),
        }
    }

    /// Do what can be done without waiting; false where that was nothing.
    fn step(&mut self) -> Result<bool, Stop> {
        let mut moved = self.peer.flush();
        if self.peer.all_sent() {
            moved |= self.fill()?;
            moved |= self.peer.flush();
        }
        // Who has said everything hears nothing more: the next may be the peer's farewell.
        self.stop_if_over()?;
        moved |= self.peer.receive();
        moved |= self.deliver().map_err(Stop::Malformed)?;
        moved |= self.say_what_is_due();
        if self.peer.deaf() && self.rules.side() == Side::Service && self.rules.ending().is_none() {
            // Whatever the service says from now on would fill a pipe that nobody empties.
            self.rules.peer_gone();
        }
        self.stop_if_over()?;
        Ok(moved)
    }

    fn stop_if_over(&self) -> Result<(), Stop> {
        if let Some(ending) = self.rules.ending() {
            // A lost peer, and one that has said its last word, are owed nothing that they do not take.
            let owed = ending != Ending::Lost && self.rules.side() == Side::Service;
            if !owed || self.peer.all_sent() || self.peer.deaf() {
                return Err(Stop::Ended(ending));
            }
        }
        Ok(())
    }

    /// Send ends and codes, once everything before them is sent.
    fn say_what_is_due(&mut self) -> bool {
        let mut said = false;
        while self.peer.all_sent() {
            let Some(due) = self.rules.due() else { break };
            match due {
                Due::End(stream) => self.peer.queue(&wire::Header { kind: stream.kind(), length: 0 }.bytes()),
                Due::Code(code) => self.peer.queue(&wire::exit_code(code)),
            }
            self.peer.flush();
            said = true;
        }
        said
    }

    /// Read one of the sources into messages.
    fn fill(&mut self) -> Result<bool, Stop> {
        if self.peer.deaf() {
            return Ok(false);
        }
        for _ in 0..self.sources.len() {
            self.turn = (self.turn + 1) % self.sources.len();
            let (stream, source) = &mut self.sources[self.turn];
            let stream = *stream;
            if !source.ready() || !self.rules.says(stream) {
                continue;
            }
            match self.peer.fill(stream, source) {
                Moved::Bytes(_) => {
                    if let (Stream::Errors, Some(log)) = (stream, &mut self.log) {
                        self.peer.filled_bodies().for_each(|body| log.add(body));
                    }
                    return Ok(true);
                }
                Moved::Nothing => {}
                Moved::Over | Moved::Failed(_) => {
                    // The service may have asked to go on elsewhere just before.
                    if self.take_signals()? && stream == Stream::Output {
                        return Ok(true);
                    }
                    self.rules.ended(stream);
                    self.sources.remove(self.turn);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Hand what was received to whom it is for.
    fn deliver(&mut self) -> Result<bool, wire::Malformed> {
        let mut moved = false;
        loop {
            match self.peer.head()? {
                Next::Message(kind, length) => {
                    moved = true;
                    self.begin(kind, length);
                }
                Next::Bytes(bytes) => {
                    let count = bytes.len();
                    if let Some(code) = &mut self.code {
                        let missing = 4_usize.saturating_sub(code.len());
                        code.extend_from_slice(&bytes[..count.min(missing)]);
                        self.peer.consume(count);
                        // Before another one takes its place.
                        self.settle_code();
                        continue;
                    }
                    let stream = self.current.filter(|stream| self.rules.reads(*stream));
                    let sink = stream.and_then(|stream| find(&mut self.sinks, stream));
                    let (Some(stream), Some(sink)) = (stream, sink) else {
                        self.peer.consume(count);
                        moved = true;
                        continue;
                    };
                    if sink.blocked() {
                        return Ok(moved);
                    }
                    if sink.filtered {
                        filter::clean(bytes);
                    }
                    match sink.write(bytes) {
                        Moved::Bytes(count) => self.peer.consume(count),
                        Moved::Nothing => return Ok(moved),
                        end @ (Moved::Over | Moved::Failed(_)) => {
                            if let (Moved::Failed(error), Stream::Output) = (end, stream) {
                                speak::unwritten(error);
                                self.unwritten = true;
                            }
                            self.rules.unread(stream);
                            self.close_sink(stream);
                        }
                    }
                    moved = true;
                }
                Next::Nothing => break,
            }
            self.settle_code();
        }
        self.settle_code();
        if self.peer.ended() && !self.rules.lost() {
            self.rules.peer_gone();
            moved = true;
        }
        Ok(moved)
    }

    /// A message begins.
    fn begin(&mut self, kind: wire::Kind, length: u32) {
        self.current = None;
        if let Some(remark) = self.rules.remark(kind).filter(|_| !self.remarked) {
            // Once a call: a peer must not be able to fill our log.
            self.remarked = true;
            say!("a call's peer breaks the protocol: {remark}");
        }
        match self.rules.hear(kind, length) {
            Heard::Bytes(stream) => self.current = Some(stream),
            Heard::End(stream) => self.close_sink(stream),
            Heard::Code => self.code = Some(Vec::new()),
            Heard::Nothing => {}
        }
    }

    /// The exit code is known once its message is complete.
    fn settle_code(&mut self) {
        if self.peer.within_message() {
            return;
        }
        if let Some(body) = self.code.take() {
            self.rules.hear_code(wire::parse_exit_code(&body));
            self.close_sink(Stream::Output);
            self.close_sink(Stream::Errors);
        }
    }

    fn close_sink(&mut self, stream: Stream) {
        if let Some(at) = self.sinks.iter().position(|(told, _)| *told == stream) {
            self.sinks.remove(at).1.close();
        }
    }

    /// Wait until something can be done, and take note of it; only take note where we are `busy`.
    fn wait(&mut self, busy: bool) -> Result<(), Stop> {
        let (peer, rules) = (&self.peer, &self.rules);
        let filling = peer.all_sent() && !peer.deaf();
        let blocked = peer.has_bytes();
        let none = || None;
        let mut entries: Vec<Option<PollFd<'_>>> = alloc::vec![
            peer.poll_entry(),
            self.signals.as_ref().map(|Watch(fd)| PollFd::new(fd, PollFlags::IN)),
            match &self.process {
                Process::None => none(),
                Process::Child { watch, .. } => Some(PollFd::new(watch, PollFlags::IN)),
                Process::Told { source, .. } => Some(source.poll_entry()),
            },
            peer.announcer_entry(),
        ];
        let fixed = entries.len();
        entries.extend(
            self.sources
                .iter()
                .map(|(stream, source)| (filling && rules.says(*stream)).then(|| source.poll_entry())),
        );
        entries.extend(self.sinks.iter().map(|(stream, sink)| {
            (blocked && sink.blocked() && self.current == Some(*stream)).then(|| sink.poll_entry())
        }));
        if peer.hung_up() && rules.side() == Side::Service && blocked && !busy {
            // Nobody is left to hear what the service makes of what it does not read.
            return Err(Stop::Ended(Ending::Lost));
        }
        let present: Vec<bool> = entries.iter().map(Option::is_some).collect();
        let mut waiting: Vec<PollFd<'_>> = entries.into_iter().flatten().collect();
        let patience = if busy { Some(0) } else { peer.patience() };
        if rustix::event::poll(&mut waiting, patience.map(call::timeout).as_ref()).is_err() {
            return Ok(());
        }
        let mut found = waiting.iter().map(PollFd::revents);
        let told: Vec<PollFlags> = present
            .into_iter()
            .map(|there| if there { found.next().unwrap_or(PollFlags::empty()) } else { PollFlags::empty() })
            .collect();
        drop(waiting);
        self.peer.wake(told[0]);
        let sources = self.sources.len();
        for ((_, source), flags) in self.sources.iter_mut().zip(&told[fixed..]) {
            if !flags.is_empty() {
                source.wake();
            }
        }
        for ((_, sink), flags) in self.sinks.iter_mut().zip(&told[fixed + sources..]) {
            if !flags.is_empty() {
                sink.wake();
            }
        }
        if !told[1].is_empty() {
            self.take_signals()?;
        }
        if !told[2].is_empty() {
            self.take_process();
        }
        if !told[3].is_empty() {
            self.peer.announced();
        }
        if told[0].is_empty() && !busy {
            self.peer.give_up_if_late();
        }
        Ok(())
    }

    /// The process of our side has ended, or something of its code has come.
    fn take_process(&mut self) {
        let ended = match &mut self.process {
            Process::None => None,
            Process::Child { pid, .. } => Some(call::wait_for(*pid).map_or(code::PROBLEM, exit_code)),
            Process::Told { source, text } => read_code(source, text),
        };
        if let Some(code) = ended {
            self.process = Process::None;
            self.rules.exited(code);
            if self.rules.side() == Side::Service {
                self.close_sink(Stream::Input);
            }
        }
    }

    /// Take signals; true where the service's input now takes its output too.
    fn take_signals(&mut self) -> Result<bool, Stop> {
        const RECORD: usize = 128;
        let mut record = [0; RECORD];
        let mut turned = false;
        loop {
            let Some(Watch(signals)) = &self.signals else {
                return Ok(turned);
            };
            let Ok(RECORD) = rustix::io::read(signals, &mut record) else {
                return Ok(turned);
            };
            let number = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
            if number != call::signal::USER_1 {
                return Err(Stop::Asked);
            }
            turned |= self.turn_both_ways();
        }
    }

    fn turn_both_ways(&mut self) -> bool {
        let Some(both) = self.both_ways.take() else {
            return false;
        };
        let Some((_, source)) = self.sources.iter_mut().find(|(stream, _)| *stream == Stream::Output) else {
            say!("the service asked for its input to take its output after that had ended");
            return false;
        };
        *source = Source::new(crate::relay::End::Pipe(both));
        source.wake();
        true
    }
}

fn find(sinks: &mut [(Stream, Sink)], stream: Stream) -> Option<&mut Sink> {
    sinks.iter_mut().find(|(told, _)| *told == stream).map(|(_, sink)| sink)
}

/// Read on in the text of an exit code; the code at its end, 255 where it is none.
fn read_code(source: &mut Source, text: &mut Vec<u8>) -> Option<i32> {
    const LONGEST: usize = 16;
    loop {
        let mut bytes = [0; 64];
        match source.read(&mut [rustix::io::IoSliceMut::new(&mut bytes)]) {
            Moved::Bytes(count) => {
                let room = LONGEST.saturating_sub(text.len());
                text.extend_from_slice(&bytes[..count.min(room)]);
            }
            Moved::Nothing => return None,
            Moved::Over | Moved::Failed(_) => return Some(told_code(text)),
        }
    }
}

fn told_code(text: &[u8]) -> i32 {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let code = core::str::from_utf8(text).ok().and_then(|text| text.parse::<i32>().ok());
    code.unwrap_or_else(|| {
        say!("error: `{}` is no exit code", crate::speak::Shown(text));
        code::LOST
    })
}
