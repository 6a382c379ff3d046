//! Write a stream through a buffer, with a checksum, and listen for an early result.

use alloc::vec::Vec;

use crc32fast::Hasher;
use rustix::event::{PollFd, PollFlags};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;

use super::progress::Progress;
use super::wire::{Outcome, LONGEST_NAME, RESULT};

/// What a pipe holds.
const BUFFER: usize = 64 * 1024;
/// So much room is worth a read into the buffer.
const WORTHWHILE: usize = 4096;

/// Why sending ends before the end.
pub enum Halt {
    /// The receiver has answered.
    Answered(Outcome),
    /// The receiver is gone without an answer.
    Gone,
}

/// A sink of bytes, and where its receiver answers.
pub struct Output<'a> {
    sink: BorrowedFd<'a>,
    answers: BorrowedFd<'a>,
    buffer: Vec<u8>,
    used: usize,
    checksum: Hasher,
    progress: Progress,
}

impl<'a> Output<'a> {
    /// Write to `sink`; the result comes from `answers`.
    pub fn new(sink: BorrowedFd<'a>, answers: BorrowedFd<'a>, progress: Progress) -> Self {
        let buffer = alloc::vec![0; BUFFER];
        Self { sink, answers, buffer, used: 0, checksum: Hasher::new(), progress }
    }

    /// Write some bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), Halt> {
        while !bytes.is_empty() {
            if self.used == BUFFER {
                self.flush()?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER - self.used));
            self.buffer[self.used..self.used + now.len()].copy_from_slice(now);
            self.used += now.len();
            bytes = later;
        }
        Ok(())
    }

    /// Free room of the buffer, to read into; `wrote` says how much of it counts.
    pub fn room(&mut self) -> Result<&mut [u8], Halt> {
        if BUFFER - self.used < WORTHWHILE {
            self.flush()?;
        }
        Ok(&mut self.buffer[self.used..])
    }

    /// So many bytes were put into `room`.
    pub fn wrote(&mut self, count: usize) {
        self.used += count;
    }

    fn flush(&mut self) -> Result<(), Halt> {
        self.checksum.update(&self.buffer[..self.used]);
        let mut from = 0;
        while from < self.used {
            self.listen()?;
            match rustix::io::write(self.sink, &self.buffer[from..self.used]) {
                Ok(count) => from += count,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(_) => return Err(self.answer().map_or(Halt::Gone, Halt::Answered)),
            }
        }
        self.progress.sent(self.used as u64);
        self.used = 0;
        Ok(())
    }

    /// Wait until the sink takes bytes, or the receiver has answered.
    fn listen(&self) -> Result<(), Halt> {
        let mut poll = [PollFd::new(&self.answers, PollFlags::IN), PollFd::new(&self.sink, PollFlags::OUT)];
        match rustix::event::poll(&mut poll, None) {
            Ok(_) if !poll[0].revents().is_empty() => Err(self.answer().map_or(Halt::Gone, Halt::Answered)),
            _ => Ok(()),
        }
    }

    /// Send the rest and wait for the result; with it, the checksum of what was sent.
    pub fn finish(mut self) -> Result<(Outcome, u32), Halt> {
        self.flush()?;
        self.progress.finish();
        let outcome = self.answer().ok_or(Halt::Gone)?;
        Ok((outcome, self.checksum.finalize()))
    }

    fn answer(&self) -> Option<Outcome> {
        let mut head = [0; RESULT];
        if self.read(&mut head) < RESULT {
            return None;
        }
        let mut outcome = Outcome::parse(&head);
        let mut length = [0; 4];
        if self.read(&mut length) == length.len() {
            let length = u32::from_le_bytes(length).min(LONGEST_NAME) as usize;
            outcome.last_name.resize(length, 0);
            let got = self.read(&mut outcome.last_name);
            outcome.last_name.truncate(got);
        }
        Some(outcome)
    }

    /// Read until the buffer is full or the stream has ended; how much was read.
    fn read(&self, buffer: &mut [u8]) -> usize {
        let mut used = 0;
        while used < buffer.len() {
            match rustix::io::read(self.answers, &mut buffer[used..]) {
                Ok(0) => break,
                Ok(count) => used += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut poll = [PollFd::new(&self.answers, PollFlags::IN)];
                    let _ = rustix::event::poll(&mut poll, None);
                }
                Err(_) => break,
            }
        }
        used
    }
}
