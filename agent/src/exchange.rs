//! What is said on a stream before it carries data: one whole message of the wire protocol after
//! the other, each by a deadline. The stream does not block.

use alloc::vec::Vec;
use core::fmt;

use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::code;
use crate::speak::Reason;
use crate::sys::call;
use crate::wire::{Kind, Malformed, Receiver};

/// One reading takes no more: these messages are short.
const PIECE: usize = 256;

/// Why a message did not pass.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The stream broke, `CONNRESET` where the peer closed it; or `TIMEDOUT`.
    Lost(Errno),
    /// The peer does not speak the protocol.
    Malformed(Malformed),
}

impl Refusal {
    /// The exit code of a call whose link did not come up.
    pub fn code(&self) -> i32 {
        match self {
            Self::Lost(_) => code::LOST,
            Self::Malformed(_) => code::FAILURE,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(error) => Reason(*error).fmt(out),
            Self::Malformed(malformed) => malformed.fmt(out),
        }
    }
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// Send a message. Broken pipes have to be ignored.
pub fn send(stream: &OwnedFd, mut message: &[u8], until: i64) -> Result<(), Refusal> {
    while !message.is_empty() {
        match rustix::io::write(stream, message) {
            Ok(count) => message = &message[count..],
            Err(error) => wait_after(error, stream, PollFlags::OUT, until)?,
        }
    }
    Ok(())
}

/// Receive a message; nothing that follows it is taken from the stream.
pub fn receive(stream: &OwnedFd, receiver: &mut Receiver, until: i64) -> Result<(Kind, Vec<u8>), Refusal> {
    let mut bytes = [0; PIECE];
    loop {
        let wanted = receiver.wanted().min(PIECE);
        match rustix::io::read(stream, &mut bytes[..wanted]) {
            Ok(0) => return Err(Refusal::Lost(Errno::CONNRESET)),
            Ok(count) => {
                if let Some(message) = receiver.take(&bytes[..count])? {
                    return Ok(message);
                }
            }
            Err(error) => wait_after(error, stream, PollFlags::IN, until)?,
        }
    }
}

/// After an attempt that failed, wait until the next one makes sense.
fn wait_after(error: Errno, stream: &OwnedFd, flags: PollFlags, until: i64) -> Result<(), Refusal> {
    match error {
        Errno::INTR => return Ok(()),
        Errno::AGAIN => {}
        error => return Err(Refusal::Lost(error)),
    }
    let left = until - call::milliseconds();
    if left <= 0 {
        return Err(Refusal::Lost(Errno::TIMEDOUT));
    }
    let timeout = call::timeout(left);
    match rustix::event::poll(&mut [PollFd::new(stream, flags)], Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(Refusal::Lost(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{self, Version, Way};
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
    }

    /// A message passes whole, and what follows it is left in the stream.
    #[test]
    fn messages_pass_one_by_one() {
        let (ours, theirs) = pair();
        let hello = wire::hello(Version::NEWEST);
        let until = call::milliseconds() + 20_000;
        assert_eq!(send(&theirs, &[&hello[..], b"rest"].concat(), until), Ok(()));
        let body = 4_u32.to_le_bytes().to_vec();
        assert_eq!(receive(&ours, &mut Receiver::new(Way::Opening), until), Ok((Kind::Hello, body)));
        let mut rest = [0; 8];
        assert_eq!(rustix::io::read(&ours, &mut rest), Ok(4));
        assert_eq!(&rest[..4], b"rest");
    }

    /// A peer that is silent, does not read, closes, or says something else: each has its reason.
    #[test]
    fn reasons_why_none_passes() {
        let (ours, theirs) = pair();
        let now = call::milliseconds();
        let mut receiver = Receiver::new(Way::Opening);
        assert_eq!(receive(&ours, &mut receiver, now), Err(Refusal::Lost(Errno::TIMEDOUT)));
        assert_eq!(send(&ours, &std::vec![0; 1 << 24], now), Err(Refusal::Lost(Errno::TIMEDOUT)));
        rustix::io::write(&theirs, b"\0\x03\0").unwrap();
        drop(theirs);
        assert_eq!(receive(&ours, &mut receiver, now), Err(Refusal::Lost(Errno::CONNRESET)));
        let (ours, theirs) = pair();
        rustix::io::write(&theirs, &[0xff; 8]).unwrap();
        let wrong = receive(&ours, &mut Receiver::new(Way::Opening), now);
        assert_eq!(wrong, Err(Refusal::Malformed(Malformed::Kind(u32::MAX))));
    }
}
