//! Meeting and parting on a stream that has no beginning and no end.
//!
//! A port of a virtual machine outlives the processes that use it. What one of them did not read
//! may reach the next, and what was said to one that is about to go is lost. So both sides skip
//! everything until they have heard a number of their own, which nobody could have said before:
//!
//! | step | who says it | number of the one that comes | number of the one that waits |
//! |---|---|---|---|
//! | 1 | who comes, again and again | fresh | zeros |
//! | 2 | who waits, once for each number | as heard | fresh |
//! | 3 | who comes, once | its own | as heard |
//! | 4 | who waits, when it has heard everything | as heard | its own |
//!
//! Each side's own bytes begin right behind the step, of the first three, that it says last. Until
//! the fourth, who comes stays: when it closes the stream, a port may drop what was not read yet.
//! A record is `MAGIC`, the step as one byte, and the two numbers.

use alloc::vec::Vec;

use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::rand::GetRandomFlags;

use super::Line;
use crate::exchange;
use crate::sys::call;

const MAGIC: [u8; 7] = *b"\xffqrexec";
const NUMBER: usize = 16;
/// Bytes of a record.
pub const RECORD: usize = MAGIC.len() + 1 + 2 * NUMBER;
/// Between two times of saying the first step, in milliseconds: the other side may not be there yet.
const AGAIN: i64 = 100;
/// Readings in one go: a peer that sends all the time is not to keep us from our deadline.
const READINGS: usize = 1024;

const FAREWELL: u8 = 4;

type Number = [u8; NUMBER];

/// Which of the two sides we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Connects, as the service's side of a data link does.
    Coming,
    /// Is connected to.
    Waiting,
}

/// A stream on which the other side has not been met yet.
pub struct Rendezvous {
    stream: OwnedFd,
    side: Side,
    own: Number,
    /// The other side's number, when it is known.
    theirs: Option<Number>,
    window: Window,
    /// What is still to be said of the record that has been begun.
    outbox: Vec<u8>,
    /// A step is to be said as soon as there is room.
    due: bool,
    say_again_at: i64,
}

impl Rendezvous {
    /// Begin; the stream must not block.
    pub fn new(stream: OwnedFd, side: Side) -> Result<Self, Errno> {
        let mut own = [0; NUMBER];
        // So few bytes come at once or not at all.
        if rustix::rand::getrandom(&mut own, GetRandomFlags::empty())? != NUMBER {
            return Err(Errno::IO);
        }
        Ok(Self {
            stream,
            side,
            own,
            theirs: None,
            window: Window::default(),
            outbox: Vec::new(),
            due: side == Side::Coming,
            say_again_at: call::milliseconds() + AGAIN,
        })
    }

    /// For `poll`.
    pub fn poll_entry(&self) -> PollFd<'_> {
        let out = if self.outbox.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        PollFd::new(&self.stream, PollFlags::IN | out)
    }

    /// When to call `advance` whatever `poll` says.
    pub fn retry_at(&self) -> Option<i64> {
        (self.side == Side::Coming).then_some(self.say_again_at)
    }

    /// Do what can be done now: true where both sides have met. `CONNRESET` where the other side
    /// has gone.
    pub fn advance(&mut self) -> Result<bool, Errno> {
        if self.side == Side::Coming && call::milliseconds() >= self.say_again_at {
            self.due = true;
        }
        for _ in 0..READINGS {
            self.say()?;
            if self.side == Side::Coming && self.theirs.is_some() {
                // Nothing more is read: it is the other side's own.
                return Ok(!self.due && self.outbox.is_empty());
            }
            match self.window.read(&self.stream) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => return Err(error),
            }
            while self.window.is_whole() {
                if self.hear() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The stream, when both sides have met.
    pub fn into_line(self) -> Line {
        let (coming, waiting) = match self.side {
            Side::Coming => (self.own, self.theirs.unwrap_or_default()),
            Side::Waiting => (self.theirs.unwrap_or_default(), self.own),
        };
        let farewell = Farewell { record: record(FAREWELL, coming, waiting), window: Window::default() };
        Line { stream: self.stream, farewell: Some(farewell) }
    }

    /// Take a whole record; true where it is the last step.
    fn hear(&mut self) -> bool {
        let (step, coming, waiting) = self.window.record();
        match (self.side, step) {
            (Side::Waiting, 1) => {
                // Said twice, it is answered once: what follows an answer is our own.
                self.due |= self.theirs != Some(coming);
                self.theirs = Some(coming);
            }
            (Side::Waiting, 3) if waiting == self.own && self.theirs == Some(coming) => return true,
            (Side::Coming, 2) if coming == self.own => {
                self.theirs = Some(waiting);
                self.due = true;
            }
            _ => {
                self.window.skip();
                return false;
            }
        }
        self.window.held = 0;
        false
    }

    /// Say what is to be said, as far as there is room.
    fn say(&mut self) -> Result<(), Errno> {
        loop {
            if self.outbox.is_empty() {
                if !core::mem::take(&mut self.due) {
                    return Ok(());
                }
                self.outbox = self.step();
                self.say_again_at = call::milliseconds() + AGAIN;
            }
            match rustix::io::write(&self.stream, &self.outbox) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Our next step.
    fn step(&self) -> Vec<u8> {
        let (step, coming, waiting) = match (self.side, self.theirs) {
            (Side::Coming, None) => (1, self.own, [0; NUMBER]),
            (Side::Coming, Some(theirs)) => (3, self.own, theirs),
            (Side::Waiting, theirs) => (2, theirs.unwrap_or_default(), self.own),
        };
        record(step, coming, waiting).to_vec()
    }
}

fn record(step: u8, coming: Number, waiting: Number) -> [u8; RECORD] {
    let mut record = [step; RECORD];
    record[..MAGIC.len()].copy_from_slice(&MAGIC);
    record[MAGIC.len() + 1..RECORD - NUMBER].copy_from_slice(&coming);
    record[RECORD - NUMBER..].copy_from_slice(&waiting);
    record
}

/// What two that have met say last.
pub struct Farewell {
    record: [u8; RECORD],
    window: Window,
}

impl Farewell {
    /// One that nobody says.
    #[cfg(test)]
    pub fn of_nobody() -> Self {
        Self { record: record(FAREWELL, [0; NUMBER], [0; NUMBER]), window: Window::default() }
    }

    /// Tell the other side, who came, that everything of it was heard.
    pub fn say(&self, stream: &OwnedFd, until: i64) {
        // Who does not take it is gone.
        let _ = exchange::send(stream, &self.record, until);
    }

    /// Whether the other side, who waited, has said so as far as it can be read now; or is gone.
    pub fn heard(&mut self, stream: &OwnedFd) -> bool {
        for _ in 0..READINGS {
            match self.window.read(stream) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(_) => return true,
            }
            while self.window.is_whole() {
                if self.window.bytes == self.record {
                    return true;
                }
                self.window.skip();
            }
        }
        false
    }
}

/// The beginning of what may be a record.
struct Window {
    bytes: [u8; RECORD],
    held: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { bytes: [0; RECORD], held: 0 }
    }
}

impl Window {
    /// Read on, not behind the record's end; false where there is nothing now, `CONNRESET` where
    /// the other side has gone.
    fn read(&mut self, stream: &OwnedFd) -> Result<bool, Errno> {
        match rustix::io::read(stream, &mut self.bytes[self.held..]) {
            Ok(0) => return Err(Errno::CONNRESET),
            Ok(count) => self.held += count,
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        self.align(0);
        Ok(true)
    }

    fn is_whole(&self) -> bool {
        self.held == RECORD
    }

    /// The step, and the numbers of the one that comes and of the one that waits.
    fn record(&self) -> (u8, Number, Number) {
        let (mut coming, mut waiting) = ([0; NUMBER], [0; NUMBER]);
        coming.copy_from_slice(&self.bytes[MAGIC.len() + 1..RECORD - NUMBER]);
        waiting.copy_from_slice(&self.bytes[RECORD - NUMBER..]);
        (self.bytes[MAGIC.len()], coming, waiting)
    }

    /// Leave out a record that is another's, or cut off: a whole one may begin within it.
    fn skip(&mut self) {
        self.align(1);
    }

    /// Begin where a record may begin, at `from` or behind it.
    fn align(&mut self, from: usize) {
        let begins = |bytes: &[u8]| bytes.iter().zip(MAGIC).all(|(&byte, magic)| byte == magic);
        let found = (from..self.held).find(|&at| begins(&self.bytes[at..self.held]));
        let start = found.unwrap_or(self.held);
        self.bytes.copy_within(start..self.held, 0);
        self.held -= start;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    fn pair() -> (OwnedFd, OwnedFd) {
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap()
    }

    fn write(stream: &OwnedFd, bytes: &[u8]) {
        assert_eq!(rustix::io::write(stream, bytes), Ok(bytes.len()));
    }

    fn read(stream: &OwnedFd) -> Result<Vec<u8>, Errno> {
        let mut found = std::vec![0; 4096];
        rustix::io::read(stream, &mut found).map(|count| found[..count].to_vec())
    }

    fn record(step: u8, coming: u8, waiting: u8) -> Vec<u8> {
        super::record(step, [coming; NUMBER], [waiting; NUMBER]).to_vec()
    }

    /// Let both sides do what they can, until they have met.
    fn meet(coming: &mut Rendezvous, waiting: &mut Rendezvous) {
        let (mut come, mut waited) = (false, false);
        for _ in 0..16 {
            come = come || coming.advance().unwrap();
            waited = waited || waiting.advance().unwrap();
        }
        assert!(come && waited);
    }

    /// Each side reads the other's bytes from the first on, and nothing else.
    fn talk(coming: Rendezvous, waiting: Rendezvous) {
        let (coming, waiting) = (coming.into_line(), waiting.into_line());
        write(&coming.stream, b"hello");
        write(&waiting.stream, b"there");
        assert_eq!(read(&waiting.stream).unwrap(), b"hello");
        assert_eq!(read(&coming.stream).unwrap(), b"there");
        assert!(read(&coming.stream).is_err() && read(&waiting.stream).is_err());
        // What was said before the farewell and cut off does not hide it.
        let (mut awaited, farewell) = (coming.farewell.unwrap(), waiting.farewell.unwrap());
        // Another's is none.
        write(&waiting.stream, &[&record(FAREWELL, 9, 9), &farewell.record[..30]].concat());
        assert!(!awaited.heard(&coming.stream));
        farewell.say(&waiting.stream, call::milliseconds() + 20_000);
        assert!(awaited.heard(&coming.stream));
    }

    /// Whatever lies in the stream from before, in each direction, no byte of it is heard: noise,
    /// beginnings of records, and steps of others wherever they may be cut off.
    #[test]
    fn nothing_from_before_is_heard() {
        let mut former = std::vec![b"".to_vec(), MAGIC.to_vec(), MAGIC.repeat(9), std::vec![0xff; 300]];
        for step in 0..5 {
            let whole = record(step, 7, 0);
            former.extend((1..=RECORD).map(|cut| whole[..cut].to_vec()));
            former.push([&whole[..20], &whole].concat());
        }
        for former in former {
            let (ours, theirs) = pair();
            write(&ours, &former);
            write(&theirs, &former);
            let mut coming = Rendezvous::new(ours, Side::Coming).unwrap();
            let mut waiting = Rendezvous::new(theirs, Side::Waiting).unwrap();
            // What was cut off may swallow the first step: it is said again.
            coming.advance().unwrap();
            waiting.advance().unwrap();
            coming.say_again_at = 0;
            meet(&mut coming, &mut waiting);
            talk(coming, waiting);
        }
    }

    /// Who comes says so again, until somebody hears it; being heard twice changes nothing.
    #[test]
    fn the_first_step_is_said_again() {
        let (ours, theirs) = pair();
        let mut coming = Rendezvous::new(ours, Side::Coming).unwrap();
        assert_eq!(coming.advance(), Ok(false));
        assert_eq!(read(&theirs).unwrap().len(), RECORD);
        for _ in 0..3 {
            coming.say_again_at = 0;
            assert_eq!(coming.advance(), Ok(false));
        }
        let mut waiting = Rendezvous::new(theirs, Side::Waiting).unwrap();
        meet(&mut coming, &mut waiting);
        talk(coming, waiting);
    }

    /// An answer to another one is none; neither is another's last step.
    #[test]
    fn numbers_of_others_do_not_count() {
        let (ours, theirs) = pair();
        let mut coming = Rendezvous::new(ours, Side::Coming).unwrap();
        write(&theirs, &record(2, 1, 1));
        assert_eq!(coming.advance(), Ok(false));
        assert_eq!(coming.theirs, None);
        let (ours, theirs) = pair();
        let mut waiting = Rendezvous::new(ours, Side::Waiting).unwrap();
        for step in [1, 3] {
            write(&theirs, &record(step, 1, 2));
            assert_eq!(waiting.advance(), Ok(false));
        }
        assert_eq!(read(&theirs).unwrap().len(), RECORD);
    }

    /// A peer that never stops sending does not keep us for ever: we look at the clock in between.
    #[test]
    fn a_flood_is_read_in_parts() {
        for side in [Side::Coming, Side::Waiting] {
            let (ours, theirs) = pair();
            for noise in [record(1, 7, 0), record(2, 7, 0), std::vec![b'x'; RECORD]] {
                write(&theirs, &noise.repeat(READINGS));
            }
            let mut rendezvous = Rendezvous::new(ours, side).unwrap();
            assert_eq!(rendezvous.advance(), Ok(false));
            assert!(rustix::io::ioctl_fionread(&rendezvous.stream).unwrap() > 0);
        }
    }

    /// A stream whose other end has gone is given up.
    #[test]
    fn an_end_is_told() {
        let (ours, theirs) = pair();
        let mut waiting = Rendezvous::new(ours, Side::Waiting).unwrap();
        drop(theirs);
        assert_eq!(waiting.advance(), Err(Errno::CONNRESET));
    }
}
