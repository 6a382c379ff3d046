//! The stream to the peer of a data link: HELLO, then messages in and out through two buffers.

use alloc::vec::Vec;

use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, IoSliceMut};

use super::ends::{Moved, Source};
use super::rules::Stream;
use crate::exchange::{self, Refusal};
use crate::sys::call;
use crate::vchan::{Farewell, Line};
use crate::wire::{self, Header, Kind, Malformed, Receiver, Version, Way, HEADER};

/// Messages that one reading of a source fills at most.
const BATCH: usize = 4;
/// How long a peer whose process has ended may be silent, in milliseconds: the last of what it said
/// may be on its way.
const SILENCE: i64 = 5_000;
/// What one reading of the peer takes at most.
const INBOX: usize = 4 * (wire::CHUNK + HEADER);

/// What is next in the inbox.
pub enum Next<'a> {
    /// A message begins.
    Message(Kind, u32),
    /// Bytes of the message that has begun; the first `n` of them are to be passed to `consume`.
    Bytes(&'a mut [u8]),
    /// Nothing, until more has been received.
    Nothing,
}

/// One end of a data link's stream.
pub struct Peer {
    stream: OwnedFd,
    farewell: Option<Farewell>,
    chunk: usize,
    inbox: Vec<u8>,
    /// The part of the inbox that is filled and not consumed.
    start: usize,
    end: usize,
    /// Bytes that are missing of the message that has begun.
    missing: usize,
    outbox: Vec<u8>,
    /// The part of the outbox that waits to be sent.
    sent: usize,
    filled: usize,
    readable: bool,
    writable: bool,
    /// The peer sends nothing more.
    ended: bool,
    /// The peer takes nothing more.
    deaf: bool,
    /// Both, as `poll` told; what it sent before may still be there.
    hung_up: bool,
    /// Becomes readable when the peer's process has ended, where the stream does not tell.
    announcer: Option<OwnedFd>,
    /// When the peer is given up unless something comes, once its end was announced.
    silent_until: Option<i64>,
}

impl Peer {
    /// Exchange HELLOs: ours goes out at once, theirs has to come before `until`.
    pub fn open(line: impl Into<Line>, until: i64) -> Result<Self, Refusal> {
        let Line { stream, farewell } = line.into();
        exchange::send(&stream, &wire::hello(Version::NEWEST), until)?;
        let (_, body) = exchange::receive(&stream, &mut Receiver::new(Way::Opening), until)?;
        let version = Version::negotiate(wire::parse_hello(&body)?)?;
        Ok(Self::new(Line { stream, farewell }, version.chunk()))
    }

    fn new(Line { stream, farewell }: Line, chunk: usize) -> Self {
        Self {
            stream,
            farewell,
            chunk,
            inbox: alloc::vec![0; INBOX],
            start: 0,
            end: 0,
            missing: 0,
            outbox: alloc::vec![0; BATCH * (chunk + HEADER)],
            sent: 0,
            filled: 0,
            readable: true,
            writable: true,
            ended: false,
            deaf: false,
            hung_up: false,
            announcer: None,
            silent_until: None,
        }
    }

    /// Take it for the end of the peer's process that this becomes readable.
    pub fn announced_by(&mut self, announcer: OwnedFd) {
        self.announcer = Some(announcer);
    }

    // In.

    /// Receive more, where everything received before is consumed. True where something happened.
    pub fn receive(&mut self) -> bool {
        if !self.wants_more() || !self.readable {
            return false;
        }
        let rest = self.end - self.start;
        self.inbox.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, rest);
        match rustix::io::read(&self.stream, &mut self.inbox[rest..]) {
            Ok(0) => self.ended = true,
            Ok(count) => {
                self.end += count;
                self.silent_until = self.silent_until.map(|_| call::milliseconds() + SILENCE);
            }
            // `poll` has nothing more to tell of a peer that hung up, and it sends nothing more.
            Err(Errno::AGAIN) if self.hung_up => self.ended = true,
            Err(Errno::AGAIN) => {
                self.readable = false;
                return false;
            }
            Err(Errno::INTR) => {}
            // A peer that closed before it read everything: the same end.
            Err(_) => self.ended = true,
        }
        true
    }

    fn wants_more(&self) -> bool {
        let held = self.end - self.start;
        !self.ended && (held == 0 || (self.missing == 0 && held < HEADER))
    }

    /// What is next of what was received; a header that makes no sense ends the link.
    pub fn head(&mut self) -> Result<Next<'_>, Malformed> {
        let held = self.end - self.start;
        if self.missing > 0 {
            let count = held.min(self.missing);
            return Ok(match count {
                0 => Next::Nothing,
                _ => Next::Bytes(&mut self.inbox[self.start..self.start + count]),
            });
        }
        let header = self.inbox.get(self.start..self.start + HEADER).filter(|_| held >= HEADER);
        let Some(Ok(header)) = header.map(<[u8; HEADER]>::try_from) else {
            return Ok(Next::Nothing);
        };
        let header = Header::parse(header, Way::Data(self.chunk))?;
        self.start += HEADER;
        self.missing = header.length as usize;
        Ok(Next::Message(header.kind, header.length))
    }

    /// So many bytes of the message have been dealt with.
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        self.missing -= count;
    }

    /// True where a part of the message that has begun is missing.
    pub fn within_message(&self) -> bool {
        self.missing > 0
    }

    /// True where bytes were received that are not consumed.
    pub fn has_bytes(&self) -> bool {
        self.missing > 0 && self.end > self.start
    }

    /// True once nothing more comes.
    pub fn ended(&self) -> bool {
        self.ended
    }

    // Out.

    /// Read a source straight into messages, where nothing waits to be sent.
    pub fn fill(&mut self, stream: Stream, source: &mut Source) -> Moved {
        if self.deaf || !self.all_sent() {
            return Moved::Nothing;
        }
        let (chunk, unit) = (self.chunk, self.chunk + HEADER);
        let mut messages = self.outbox.chunks_exact_mut(unit);
        let mut body = || messages.next().map_or(&mut [][..], |message| &mut message[HEADER..]);
        let mut slices: [IoSliceMut<'_>; BATCH] = core::array::from_fn(|_| IoSliceMut::new(body()));
        let moved = source.read(&mut slices);
        let count = if let Moved::Bytes(count) = moved { count } else { 0 };
        let messages = count.div_ceil(chunk);
        for at in 0..messages {
            let length = (count - at * chunk).min(chunk) as u32;
            let header = Header { kind: stream.kind(), length };
            self.outbox[at * unit..at * unit + HEADER].copy_from_slice(&header.bytes());
        }
        (self.sent, self.filled) = (0, count + messages * HEADER);
        moved
    }

    /// The data that `fill` has just read.
    pub fn filled_bodies(&self) -> impl Iterator<Item = &[u8]> {
        self.outbox[..self.filled]
            .chunks(self.chunk + HEADER)
            .map(|message| message.get(HEADER..).unwrap_or(&[]))
    }

    /// Queue bytes as data of a stream, before anything else is sent.
    pub fn queue_data(&mut self, stream: Stream, bytes: &[u8]) {
        for piece in bytes.chunks(self.chunk) {
            self.queue(&Header { kind: stream.kind(), length: piece.len() as u32 }.bytes());
            self.queue(piece);
        }
    }

    /// Queue a message behind what waits.
    pub fn queue(&mut self, message: &[u8]) {
        if self.deaf {
            return;
        }
        let end = self.filled + message.len();
        if end > self.outbox.len() {
            self.outbox.resize(end, 0);
        }
        self.outbox[self.filled..end].copy_from_slice(message);
        self.filled = end;
    }

    /// True where nothing waits to be sent.
    pub fn all_sent(&self) -> bool {
        self.sent == self.filled
    }

    /// Send what the peer takes. True where something happened.
    pub fn flush(&mut self) -> bool {
        if self.all_sent() || !self.writable {
            return false;
        }
        match rustix::io::write(&self.stream, &self.outbox[self.sent..self.filled]) {
            Ok(count) => self.sent += count,
            Err(Errno::AGAIN) => {
                self.writable = false;
                return false;
            }
            Err(Errno::INTR) => {}
            Err(_) => self.deaf = true,
        }
        if self.deaf || self.all_sent() {
            (self.sent, self.filled) = (0, 0);
        }
        true
    }

    /// True once the peer takes nothing more.
    pub fn deaf(&self) -> bool {
        self.deaf
    }

    /// True once the peer closed both ways, though what it sent may not all be received.
    pub fn hung_up(&self) -> bool {
        self.hung_up
    }

    // Waiting.

    /// What to wait for; nothing once `poll` has nothing more to tell.
    pub fn poll_entry(&self) -> Option<PollFd<'_>> {
        let mut flags = PollFlags::empty();
        if self.wants_more() && !self.readable {
            flags |= PollFlags::IN;
        }
        if !self.all_sent() && !self.writable {
            flags |= PollFlags::OUT;
        }
        (!self.hung_up).then(|| PollFd::new(&self.stream, flags))
    }

    /// What tells of the end of the peer's process.
    pub fn announcer_entry(&self) -> Option<PollFd<'_>> {
        self.announcer.as_ref().map(|announcer| PollFd::new(announcer, PollFlags::IN))
    }

    /// The peer's process has ended.
    pub fn announced(&mut self) {
        self.announcer = None;
        self.silent_until = Some(call::milliseconds() + SILENCE);
    }

    /// Milliseconds until the peer is given up, where that is near; not while we are behind.
    pub fn patience(&self) -> Option<i64> {
        self.silent_until.filter(|_| !self.ended && !self.has_bytes()).map(|at| at - call::milliseconds())
    }

    /// Give the peer up, if it was silent for too long.
    pub fn give_up_if_late(&mut self) {
        if self.patience().is_some_and(|left| left <= 0) {
            (self.ended, self.deaf) = (true, true);
        }
    }

    /// What `poll` told.
    pub fn wake(&mut self, flags: PollFlags) {
        self.hung_up |= flags.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
        self.readable |= self.hung_up || flags.contains(PollFlags::IN);
        self.writable |= self.hung_up || flags.contains(PollFlags::OUT);
    }

    /// Everything was heard, and the peer may go.
    ///
    /// What it has sent beyond that is read away, so that our closing does not look to it like a
    /// failure.
    pub fn close(mut self) {
        if let Some(farewell) = &self.farewell {
            farewell.say(&self.stream, call::milliseconds() + SILENCE);
        }
        for _ in 0..16 {
            if !matches!(rustix::io::read(&self.stream, &mut self.inbox[..]), Ok(1..)) {
                return;
            }
        }
    }

    /// Everything was said: close when the peer has heard it, where closing would take that from
    /// it; or when `asked` becomes readable.
    pub fn close_when_heard(mut self, asked: Option<&OwnedFd>) {
        let Some(mut farewell) = self.farewell.take() else { return self.close() };
        while !farewell.heard(&self.stream) {
            let mut waiting = alloc::vec![PollFd::new(&self.stream, PollFlags::IN)];
            waiting.extend(self.announcer_entry());
            let announcer = waiting.len() - 1;
            waiting.extend(asked.map(|asked| PollFd::new(asked, PollFlags::IN)));
            let left = self.silent_until.map(|at| at - call::milliseconds());
            let _ = rustix::event::poll(&mut waiting, left.map(call::timeout).as_ref());
            let told: Vec<bool> = waiting.iter().map(|entry| !entry.revents().is_empty()).collect();
            drop(waiting);
            // Also of one that goes on to say something else.
            if left.is_some_and(|left| left <= 0) || (asked.is_some() && told[told.len() - 1]) {
                return;
            }
            if announcer > 0 && told[announcer] {
                self.announced();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
    }

    /// A peer on a plain stream that never says farewell, and a second descriptor of our end.
    fn parting() -> (Peer, OwnedFd, OwnedFd) {
        let (ours, theirs) = pair();
        let again = rustix::io::dup(&ours).unwrap();
        let line = Line { stream: ours, farewell: Some(Farewell::of_nobody()) };
        (Peer::new(line, wire::CHUNK), theirs, again)
    }

    /// A peer that speaks is waited for anew, and not given up while what it said waits for our side.
    #[test]
    fn who_is_behind_gives_nobody_up() {
        let (mut peer, theirs, _again) = parting();
        let header = Header { kind: Stream::Output.kind(), length: 3 };
        rustix::io::write(&theirs, &[&header.bytes()[..], b"abc"].concat()).unwrap();
        peer.silent_until = Some(0);
        assert!(peer.receive());
        assert!(peer.silent_until > Some(0));
        assert!(matches!(peer.head(), Ok(Next::Message(..))));
        peer.silent_until = Some(call::milliseconds() - 1);
        peer.give_up_if_late();
        assert!(!peer.ended());
        peer.consume(3);
        peer.give_up_if_late();
        assert!(peer.ended() && peer.deaf());
    }

    /// Who is asked to end does not wait for the farewell.
    #[test]
    fn who_is_asked_waits_for_no_farewell() {
        let (peer, _theirs, _again) = parting();
        let (asked, asks) = pair();
        rustix::io::write(&asks, b"x").unwrap();
        peer.close_when_heard(Some(&asked));
    }

    /// A peer whose end was announced is not waited for for ever; this takes `SILENCE`.
    #[test]
    fn an_announced_end_is_the_farewell() {
        let (mut peer, _theirs, _again) = parting();
        peer.announced_by(pair().0);
        peer.close_when_heard(None);
    }

    /// Nor is one that goes on to say something else: that is not even read to its end.
    #[test]
    fn a_flood_is_no_farewell() {
        let (mut peer, theirs, again) = parting();
        rustix::io::write(&theirs, &[b'x'; 60_000]).unwrap();
        peer.silent_until = Some(call::milliseconds());
        peer.close_when_heard(None);
        assert!(rustix::io::ioctl_fionread(&again).unwrap() > 0);
    }
}
