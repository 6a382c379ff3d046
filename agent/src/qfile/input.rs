//! Read a stream through a buffer, with a checksum of what was used and a bound on silence.

use alloc::vec::Vec;

use crc32fast::Hasher;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;

use super::codes;

/// What a pipe holds; more never arrives at once.
const BUFFER: usize = 64 * 1024;

/// A source of bytes.
pub struct Input<'a> {
    source: BorrowedFd<'a>,
    buffer: Vec<u8>,
    /// `buffer[hashed..start]` was used and is not in the checksum yet.
    hashed: usize,
    start: usize,
    end: usize,
    checksum: Hasher,
    patience: Timespec,
}

impl<'a> Input<'a> {
    /// Read from `source`; wait so many seconds for a byte.
    pub fn new(source: BorrowedFd<'a>, silence: u64) -> Self {
        Self {
            source,
            buffer: alloc::vec![0; BUFFER],
            hashed: 0,
            start: 0,
            end: 0,
            checksum: Hasher::new(),
            patience: Timespec { tv_sec: i64::try_from(silence).unwrap_or(i64::MAX), tv_nsec: 0 },
        }
    }

    /// CRC-32 of all bytes that were used.
    pub fn checksum(&mut self) -> u32 {
        self.hash();
        self.checksum.clone().finalize()
    }

    fn hash(&mut self) {
        self.checksum.update(&self.buffer[self.hashed..self.start]);
        self.hashed = self.start;
    }

    /// Get more bytes; false at the end of the stream. The error is a code of a result.
    fn fill(&mut self) -> Result<bool, u32> {
        self.hash();
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        (self.start, self.hashed) = (0, 0);
        loop {
            let mut poll = [PollFd::new(&self.source, PollFlags::IN)];
            match rustix::event::poll(&mut poll, Some(&self.patience)) {
                Ok(0) => return Err(codes::SILENCE),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(codes::of(error)),
            }
            match rustix::io::read(self.source, &mut self.buffer[self.end..]) {
                Ok(count) => {
                    self.end += count;
                    return Ok(count > 0);
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(codes::of(error)),
            }
        }
    }

    /// Use `count` bytes, at most 16,384; the stream may not end within them.
    pub fn take(&mut self, count: usize) -> Result<&[u8], u32> {
        while self.end - self.start < count {
            if !self.fill()? {
                return Err(codes::NO_END);
            }
        }
        let from = self.start;
        self.start += count;
        Ok(&self.buffer[from..self.start])
    }

    /// Use some bytes of a file's content, at least one and at most `most`.
    pub fn take_some(&mut self, most: u64) -> Result<&[u8], u32> {
        if self.start == self.end && !self.fill()? {
            return Err(codes::SENDER_ENDED);
        }
        let from = self.start;
        self.start += usize::try_from(most).unwrap_or(BUFFER).min(self.end - from);
        Ok(&self.buffer[from..self.start])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;
    use std::vec::Vec;

    /// Whatever pieces a stream is cut into, the same bytes and the same checksum come out.
    #[test]
    fn pieces_do_not_matter() {
        let bytes: Vec<u8> = (0..300_000_u32).map(|at| (at * 7 % 251) as u8).collect();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let sent = bytes.clone();
        let sender = std::thread::spawn(move || {
            let mut rest = &sent[..];
            for size in [1, 31, 4096, 65_536, 100_000, 7].iter().cycle() {
                let (now, later) = rest.split_at(rest.len().min(*size));
                let mut now = now;
                while !now.is_empty() {
                    let count = rustix::io::write(&writer, now).unwrap();
                    now = &now[count..];
                }
                rest = later;
                if rest.is_empty() {
                    return;
                }
            }
        });
        let mut input = Input::new(reader.as_fd(), 60);
        let mut got = input.take(16_384).unwrap().to_vec();
        while got.len() < bytes.len() {
            let most = (bytes.len() - got.len()).min(40_000) as u64;
            got.extend_from_slice(input.take_some(most).unwrap());
            if bytes.len() - got.len() > 32 {
                got.extend_from_slice(input.take(32).unwrap());
            }
        }
        sender.join().unwrap();
        assert!(got == bytes);
        assert_eq!(input.checksum(), crc32fast::hash(&bytes));
        assert_eq!(input.take(1), Err(codes::NO_END));
        assert_eq!(input.take_some(1), Err(codes::SENDER_ENDED));
    }

    /// A sender that says nothing is not waited for without end.
    #[test]
    fn silence_is_bounded() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(Input::new(reader.as_fd(), 0).take(1), Err(codes::SILENCE));
    }
}
