//! The ends of streams on our own side: read and write what is possible now, never block.
//!
//! Descriptors 0, 1 and 2 are shared with who knows whom, so their flags stay as they are; how not
//! to block on them depends on what they are.

use rustix::event::{PollFd, PollFlags};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{FileType, OFlags};
use rustix::io::{Errno, IoSlice, IoSliceMut, ReadWriteFlags};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendFlags, Shutdown};

use crate::relay::End;

/// What a terminal takes without blocking, once `poll` calls it writable.
const PAGE: usize = 4096;
/// The offset that means "where the file is".
const HERE: u64 = u64::MAX;
/// Capacity of our pipes once a stream turns out to move much.
const LARGE_PIPE: usize = 1 << 20;
/// A single move of this size makes us enlarge the pipe.
const MUCH: usize = 32 * 1024;

/// How not to block on a descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// It is ours and says AGAIN.
    Own,
    /// A shared socket: each call asks not to wait.
    Socket,
    /// A shared pipe: likewise, where the kernel knows how.
    Pipe,
    /// A regular file never waits.
    File,
    /// Anything else: one small step each time that `poll` allows it.
    Polled,
}

fn manner(end: &End) -> Manner {
    if let End::Pipe(own) = end {
        let flags = rustix::fs::fcntl_getfl(own).unwrap_or(OFlags::empty());
        if rustix::fs::fcntl_setfl(own, flags | OFlags::NONBLOCK).is_ok() {
            return Manner::Own;
        }
    }
    let kind = rustix::fs::fstat(end).map(|found| FileType::from_raw_mode(found.st_mode));
    match kind {
        Ok(FileType::Socket) => Manner::Socket,
        Ok(FileType::Fifo) => Manner::Pipe,
        Ok(FileType::RegularFile) => Manner::File,
        _ if is_memory_device(end) => Manner::File,
        _ => Manner::Polled,
    }
}

/// `/dev/null` and its kin never wait either.
fn is_memory_device(end: &End) -> bool {
    const MEMORY: u32 = 1;
    rustix::fs::fstat(end).is_ok_and(|found| {
        FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice
            && rustix::fs::major(found.st_rdev) == MEMORY
    })
}

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing now; `poll` tells when.
    Nothing,
    /// Nothing ever again.
    Over,
    /// Nothing ever again, and what was to be written is lost: no reader has gone, the sink failed.
    Failed(Errno),
}

fn enlarge(large: &mut bool, end: &End, moved: usize) {
    if moved >= MUCH && !*large {
        *large = true;
        // Fewer turns; where it is no pipe or the kernel refuses, it does without.
        let _ = rustix::pipe::fcntl_setpipe_size(end, LARGE_PIPE);
    }
}

/// Something to read from.
pub struct Source {
    end: End,
    manner: Manner,
    ready: bool,
    large: bool,
}

impl Source {
    /// Read from this descriptor.
    pub fn new(end: End) -> Self {
        let manner = manner(&end);
        Self { end, manner, ready: false, large: false }
    }

    /// True where an attempt makes sense without asking `poll`.
    pub fn ready(&self) -> bool {
        self.ready || self.manner == Manner::File
    }

    /// `poll` says that there is something.
    pub fn wake(&mut self) {
        self.ready = true;
    }

    /// For `poll`.
    pub fn poll_entry(&self) -> PollFd<'_> {
        PollFd::new(&self.end, PollFlags::IN)
    }

    /// Read what is there.
    pub fn read(&mut self, buffers: &mut [IoSliceMut<'_>]) -> Moved {
        let result = match self.manner {
            Manner::Own | Manner::File | Manner::Polled => rustix::io::readv(&self.end, buffers),
            Manner::Socket => {
                let mut none = RecvAncillaryBuffer::default();
                rustix::net::recvmsg(&self.end, buffers, &mut none, RecvFlags::DONTWAIT)
                    .map(|found| found.bytes)
            }
            Manner::Pipe => match rustix::io::preadv2(&self.end, buffers, HERE, ReadWriteFlags::NOWAIT) {
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::SPIPE) => {
                    self.manner = Manner::Polled;
                    rustix::io::readv(&self.end, buffers)
                }
                other => other,
            },
        };
        self.ready &= self.manner != Manner::Polled;
        match result {
            Ok(0) => Moved::Over,
            Ok(count) => {
                enlarge(&mut self.large, &self.end, count);
                Moved::Bytes(count)
            }
            Err(Errno::AGAIN) => {
                self.ready = false;
                Moved::Nothing
            }
            Err(Errno::INTR) => Moved::Nothing,
            Err(_) => Moved::Over,
        }
    }
}

/// Something to write to.
pub struct Sink {
    end: End,
    manner: Manner,
    blocked: bool,
    large: bool,
    /// Whether control characters are replaced on the way.
    pub filtered: bool,
}

impl Sink {
    /// Write to this descriptor.
    pub fn new(end: End) -> Self {
        let manner = manner(&end);
        Self { end, manner, blocked: manner == Manner::Polled, large: false, filtered: false }
    }

    /// As `new`, with control characters replaced where `filtered`.
    pub fn filtered(end: End, filtered: bool) -> Self {
        Self { filtered, ..Self::new(end) }
    }

    /// True where only `poll` can tell when to try again.
    pub fn blocked(&self) -> bool {
        self.blocked
    }

    /// `poll` says that there is room.
    pub fn wake(&mut self) {
        self.blocked = false;
    }

    /// For `poll`.
    pub fn poll_entry(&self) -> PollFd<'_> {
        PollFd::new(&self.end, PollFlags::OUT)
    }

    /// The descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    /// Write what there is room for.
    pub fn write(&mut self, bytes: &[u8]) -> Moved {
        let small = &bytes[..bytes.len().min(PAGE)];
        let result = match self.manner {
            Manner::Own | Manner::File => rustix::io::write(&self.end, bytes),
            Manner::Polled => rustix::io::write(&self.end, small),
            Manner::Socket => rustix::net::send(&self.end, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            Manner::Pipe => {
                let slices = [IoSlice::new(bytes)];
                match rustix::io::pwritev2(&self.end, &slices, HERE, ReadWriteFlags::NOWAIT) {
                    Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::SPIPE) => {
                        // From now on `poll` is asked before each step.
                        self.manner = Manner::Polled;
                        Err(Errno::AGAIN)
                    }
                    other => other,
                }
            }
        };
        match result {
            Ok(count) => {
                self.blocked = self.manner == Manner::Polled;
                enlarge(&mut self.large, &self.end, count);
                Moved::Bytes(count)
            }
            Err(Errno::AGAIN) => {
                self.blocked = true;
                Moved::Nothing
            }
            Err(Errno::INTR) => Moved::Nothing,
            Err(Errno::PIPE | Errno::CONNRESET) => Moved::Over,
            Err(error) => Moved::Failed(error),
        }
    }

    /// Let the reader see the end, and leave to others what we share with them: whoever started us
    /// may go on writing to its standard output.
    pub fn close(self) {
        match &self.end {
            End::Standard(0) => drop(rustix::net::shutdown(&self.end, Shutdown::Write)),
            End::Standard(1) => crate::process::let_go_of_standard_output(),
            End::Standard(_) => {}
            // A socket may have another holder on our side, for the other direction.
            End::Pipe(own) => drop(rustix::net::shutdown(own, Shutdown::Write)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    fn read(source: &mut Source, most: usize) -> (Moved, std::vec::Vec<u8>) {
        let mut buffer = std::vec![0; most];
        let moved = source.read(&mut [IoSliceMut::new(&mut buffer)]);
        if let Moved::Bytes(count) = moved {
            buffer.truncate(count);
        }
        (moved, buffer)
    }

    /// A shared pipe keeps its flags and still never blocks, in both directions.
    #[test]
    fn shared_pipes_do_not_block() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut source = Source { end: End::Pipe(reader), manner: Manner::Pipe, ready: true, large: false };
        let end = End::Pipe(writer);
        let mut sink = Sink { end, manner: Manner::Pipe, blocked: false, large: false, filtered: false };
        assert_eq!(sink.write(b"abc"), Moved::Bytes(3));
        assert_eq!(read(&mut source, 9), (Moved::Bytes(3), b"abc".to_vec()));
        source.wake();
        if source.manner == Manner::Pipe {
            assert_eq!(read(&mut source, 9).0, Moved::Nothing);
            assert!(!source.ready());
        }
        let mut total = 0;
        while sink.manner == Manner::Pipe && !sink.blocked() {
            if let Moved::Bytes(count) = sink.write(&[b'x'; 50_000]) {
                total += count;
            }
        }
        assert!(total == 0 || total >= 4096);
        drop(sink);
        while total > 0 {
            total -= read(&mut source, 9000).1.len();
        }
        assert_eq!(read(&mut source, 9).0, Moved::Over);
    }

    /// The reader of a socket sees the end although the other direction stays open.
    #[test]
    fn sockets_are_closed_one_way() {
        let pair =
            || rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair().unwrap();
        let both = rustix::io::dup(&ours).unwrap();
        let (mut source, mut sink) = (Source::new(End::Pipe(ours)), Sink::new(End::Pipe(both)));
        assert_eq!(sink.write(b"x"), Moved::Bytes(1));
        sink.close();
        let mut theirs = Source::new(End::Pipe(theirs));
        assert_eq!(read(&mut theirs, 9), (Moved::Bytes(1), b"x".to_vec()));
        assert_eq!(read(&mut theirs, 9).0, Moved::Over);
        assert_eq!(read(&mut source, 9).0, Moved::Nothing);
    }
}
