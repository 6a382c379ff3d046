//! Move bytes between our own stdin, stdout and stderr and the pipes of a call, until it has ended.
//!
//! Bytes are spliced from pipe to pipe without being copied; where a file cannot be spliced, or a
//! filter has to look at the bytes, they are read and written.

use alloc::vec::Vec;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::pipe::SpliceFlags;

use crate::code;
use crate::connection::Connection;
use crate::filter;
use crate::message::ToClient;
use crate::process::exit_code;
use crate::say;
use crate::speak;
use crate::sys::call;

/// Capacity of the pipes once a call turns out to move much.
const LARGE_PIPE: usize = 1 << 20;
/// A single move of this size makes us enlarge the pipes.
const MUCH: usize = 32 * 1024;
const CHUNK: usize = 64 * 1024;
/// What a pipe or terminal takes without blocking, once `poll` calls it writable.
const PAGE: usize = 4096;

/// One end of a stream.
pub enum End {
    /// Our own 0, 1 or 2, shared with who knows whom: its flags stay as they are.
    Standard(u8),
    /// A pipe of the call, ours alone.
    Pipe(OwnedFd),
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Standard(number) => call::standard(*number),
            Self::Pipe(fd) => fd.as_fd(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    ForSource,
    ForSink,
}

enum Method {
    Splice,
    /// Read into the buffer, write from it; `at` is what was written, `most` what one write takes.
    Copy {
        buffer: Vec<u8>,
        at: usize,
        most: usize,
    },
}

/// Why a stream came to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// Nothing more comes.
    SourceEnded,
    /// Nobody takes it any more.
    SinkClosed,
}

/// Bytes that flow one way.
pub struct Stream {
    source: End,
    sink: End,
    filtered: bool,
    large: bool,
    waiting: Waiting,
    method: Method,
    /// Why the sink takes no more, where its reader has not just gone.
    trouble: Option<Errno>,
}

impl Stream {
    /// A stream whose bytes pass a filter where `filtered`, after those of `prefix`.
    pub fn new(source: End, sink: End, filtered: bool, prefix: &[u8]) -> Self {
        let mut stream = Self {
            source,
            sink,
            filtered,
            large: false,
            waiting: Waiting::ForSource,
            method: Method::Splice,
            trouble: None,
        };
        if filtered || !prefix.is_empty() {
            stream.copy_from_now_on(prefix);
        }
        stream
    }

    /// A stream of many small writes, which share the sink's pages as those of one writer would.
    ///
    /// Spliced, each write takes a slot of the sink, and a pipe that nobody reads yet has 16.
    pub fn of_messages(source: End, sink: End, filtered: bool) -> Self {
        let mut stream = Self::new(source, sink, filtered, b"");
        stream.copy_from_now_on(b"");
        stream
    }

    fn copy_from_now_on(&mut self, prefix: &[u8]) {
        for end in [&self.source, &self.sink] {
            if let End::Pipe(pipe) = end {
                let _ = rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK);
            }
        }
        let whole = match &self.sink {
            End::Pipe(_) => true,
            End::Standard(_) => rustix::fs::fstat(&self.sink)
                .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::RegularFile),
        };
        self.waiting = if prefix.is_empty() { Waiting::ForSource } else { Waiting::ForSink };
        let most = if whole { CHUNK } else { PAGE };
        self.method = Method::Copy { buffer: prefix.to_vec(), at: 0, most };
    }

    /// True where there are bytes that the sink does not take yet.
    pub fn waits_for_sink(&self) -> bool {
        self.waiting == Waiting::ForSink
    }

    /// What to wait for before the next `advance`.
    pub fn poll_entry(&self) -> PollFd<'_> {
        match self.waiting {
            Waiting::ForSource => PollFd::new(&self.source, PollFlags::IN),
            Waiting::ForSink => PollFd::new(&self.sink, PollFlags::OUT),
        }
    }

    /// Move what can be moved now; called when `poll` says that the awaited end is ready.
    pub fn advance(&mut self) -> Option<Finish> {
        match self.method {
            Method::Splice => self.splice(),
            Method::Copy { .. } => self.copy(),
        }
    }

    fn splice(&mut self) -> Option<Finish> {
        if self.waiting == Waiting::ForSink && matches!(self.source, End::Standard(_)) {
            // Another reader may have been faster, and reading again could block.
            self.waiting = Waiting::ForSource;
            return None;
        }
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        match rustix::pipe::splice(&self.source, None, &self.sink, None, LARGE_PIPE, flags) {
            Ok(0) => return Some(Finish::SourceEnded),
            Ok(moved) => {
                self.waiting = Waiting::ForSource;
                if moved >= MUCH && !self.large {
                    self.enlarge();
                }
            }
            Err(Errno::AGAIN) => {
                self.waiting = match self.waiting {
                    Waiting::ForSource => Waiting::ForSink,
                    Waiting::ForSink => Waiting::ForSource,
                };
            }
            Err(Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Some(Finish::SinkClosed),
            // No splicing between these two, or trouble of which reading and writing tell whose it is.
            Err(_) => self.copy_from_now_on(b""),
        }
        None
    }

    /// Larger pipes mean fewer turns; where the kernel refuses, small ones will do.
    fn enlarge(&mut self) {
        self.large = true;
        let _ = rustix::pipe::fcntl_setpipe_size(&self.source, LARGE_PIPE);
        let _ = rustix::pipe::fcntl_setpipe_size(&self.sink, LARGE_PIPE);
    }

    fn copy(&mut self) -> Option<Finish> {
        let Method::Copy { buffer, at, most } = &mut self.method else {
            return None;
        };
        if *at == buffer.len() {
            buffer.resize(CHUNK, 0);
            *at = CHUNK;
            match rustix::io::read(&self.source, &mut buffer[..]) {
                Ok(0) => return Some(Finish::SourceEnded),
                Ok(count) => {
                    buffer.truncate(count);
                    *at = 0;
                    if self.filtered {
                        filter::clean(buffer);
                    }
                    self.waiting = Waiting::ForSink;
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return Some(Finish::SourceEnded),
            }
            return None;
        }
        let end = buffer.len().min(*at + *most);
        match rustix::io::write(&self.sink, &buffer[*at..end]) {
            Ok(count) => {
                *at += count;
                if *at == buffer.len() {
                    self.waiting = Waiting::ForSource;
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Some(Finish::SinkClosed),
            Err(error) => {
                self.trouble = Some(error);
                return Some(Finish::SinkClosed);
            }
        }
        None
    }
}

/// A program of ours that speaks with the service in our place.
pub struct Local {
    /// Its process id.
    pub pid: i32,
    /// Readable once it has ended.
    pub watch: OwnedFd,
}

/// A call in progress.
pub struct Relay {
    /// Closed once the service's end is known.
    pub connection: Option<Connection>,
    /// Our stdin to the service.
    pub input: Option<Stream>,
    /// The service's stdout to ours.
    pub output: Option<Stream>,
    /// The service's stderr to ours.
    pub errors: Option<Stream>,
    /// Where a local program has the pipes instead of us.
    pub local: Option<Local>,
    /// Our stdin is a socket that takes the output too.
    pub both_ways: bool,
}

impl Relay {
    /// Relay until the call has ended; the exit code.
    pub fn run(mut self) -> i32 {
        let mut remote = None;
        let mut local = 0;
        let mut lost = false;
        let mut unwritten = false;
        loop {
            if self.output.is_none() && self.errors.is_none() && self.local.is_none() {
                match remote {
                    Some(0) if unwritten => return code::FAILURE,
                    Some(0) => return local,
                    Some(code) => return code,
                    None if lost => return code::LOST,
                    None => {}
                }
            }
            let [connection, input, output, errors, program] = match self.wait(lost) {
                Some(ready) => ready,
                None if lost => return code::LOST,
                None => continue,
            };
            if input {
                self.advance_input();
            }
            if output {
                unwritten |= self.advance_output();
            }
            if errors && self.errors.as_mut().is_some_and(|stream| stream.advance().is_some()) {
                self.errors = None;
            }
            if program {
                local = self
                    .local
                    .take()
                    .map_or(0, |local| call::wait_for(local.pid).map_or(code::PROBLEM, exit_code));
            }
            if connection {
                remote = self.hear();
                lost = remote.is_none();
                // Nobody reads our input any more.
                self.input = None;
            }
        }
    }

    /// Wait for something to do; `None` where nothing is ready.
    fn wait(&self, lost: bool) -> Option<[bool; 5]> {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let entries = [
            self.connection.as_ref().map(|connection| PollFd::new(connection, PollFlags::IN)),
            self.input.as_ref().map(Stream::poll_entry),
            self.output.as_ref().map(Stream::poll_entry),
            self.errors.as_ref().map(Stream::poll_entry),
            self.local.as_ref().map(|local| PollFd::new(&local.watch, PollFlags::IN)),
        ];
        let present: [bool; 5] = core::array::from_fn(|at| entries[at].is_some());
        let mut waiting: Vec<PollFd<'_>> = entries.into_iter().flatten().collect();
        let timeout = if lost { Some(&at_once) } else { None };
        match rustix::event::poll(&mut waiting, timeout) {
            Ok(count) if count > 0 => {
                let mut found = waiting.iter();
                Some(
                    present
                        .map(|there| there && found.next().is_some_and(|entry| !entry.revents().is_empty())),
                )
            }
            _ => None,
        }
    }

    /// True where the output cannot be written, which is told.
    ///
    /// The service then loses its reader: it shall not go on for nobody.
    fn advance_output(&mut self) -> bool {
        if self.output.as_mut().and_then(Stream::advance).is_none() {
            return false;
        }
        let trouble = self.output.take().and_then(|stream| stream.trouble);
        if self.both_ways {
            let _ = rustix::net::shutdown(call::standard(0), Shutdown::Write);
        }
        let Some(error) = trouble else {
            return false;
        };
        speak::unwritten(error);
        true
    }

    fn advance_input(&mut self) {
        match self.input.as_mut().and_then(Stream::advance) {
            Some(Finish::SinkClosed) => {
                self.input = None;
                if !self.both_ways {
                    // Whoever writes to us learns it as it would from the service itself.
                    call::close_standard_input();
                }
            }
            Some(Finish::SourceEnded) => self.input = None,
            None => {}
        }
    }

    /// The service's end as the broker tells it; `None` where the broker is gone.
    fn hear(&mut self) -> Option<i32> {
        let connection = self.connection.take()?;
        let mut buffer = [0; 4096];
        let length = connection.receive(&mut buffer, true).map_or(0, |received| received.length);
        match ToClient::parse(&buffer[..length]) {
            Ok(ToClient::Ended(code)) => Some(code),
            Ok(ToClient::Failed { code, message }) => {
                speak::problem(message);
                Some(code)
            }
            _ => {
                say!("error: the qrexec broker went away during the call");
                None
            }
        }
    }
}
