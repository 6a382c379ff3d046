//! Headers: what kind of message, how long, and whether this link allows it.

use alloc::vec::Vec;
use core::fmt;

use super::{HEADER, LONGEST_CONTROL, LONGEST_SERVICE};

/// The kinds of messages, by their numbers on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Data from the caller to the service; empty at the end of the stream.
    Stdin = 0x190,
    /// Data from the service to the caller; empty at the end of the stream.
    Stdout = 0x191,
    /// Errors of the service; empty at the end of the stream.
    Stderr = 0x192,
    /// The end of the service, the last message of a data link.
    ExitCode = 0x193,
    /// Run a command.
    ExecCmdline = 0x200,
    /// Run a command that nobody waits for.
    JustExec = 0x201,
    /// A trigger was allowed: serve the data link.
    ServiceConnect = 0x202,
    /// A trigger was refused.
    ServiceRefused = 0x203,
    /// A call from this machine, protocol 2.
    TriggerService = 0x210,
    /// A data link is done with.
    ConnectionTerminated = 0x211,
    /// A call from this machine, protocol 3.
    TriggerService3 = 0x212,
    /// A call from this machine, protocol 4.
    TriggerService4 = 0x213,
    /// The first message of every link.
    Hello = 0x300,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::Stdin,
        Self::Stdout,
        Self::Stderr,
        Self::ExitCode,
        Self::ExecCmdline,
        Self::JustExec,
        Self::ServiceConnect,
        Self::ServiceRefused,
        Self::TriggerService,
        Self::ConnectionTerminated,
        Self::TriggerService3,
        Self::TriggerService4,
        Self::Hello,
    ];

    fn of_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == number)
    }
}

/// Why bytes are no message of this link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A type that does not exist, or not here.
    Kind(u32),
    /// A body of this kind cannot be so long or so short.
    Length(Kind, u32),
    /// A version that we do not speak.
    Version(u32),
    /// A text without its NUL, with one inside, or empty.
    Text,
}

impl fmt::Display for Malformed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(number) => write!(out, "message of unexpected type {number:#x}"),
            Self::Length(kind, length) => write!(out, "message {kind:?} with a body of {length} bytes"),
            Self::Version(version) => write!(out, "protocol version {version} is not supported"),
            Self::Text => out.write_str("message with a malformed text"),
        }
    }
}

/// A direction of a link: each allows its own kinds and lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The first message of either side of any link: HELLO.
    Opening,
    /// What an agent hears.
    DaemonToAgent,
    /// What a daemon hears from an agent that speaks this version.
    AgentToDaemon(u32),
    /// What an agent hears at its trigger socket.
    ClientToAgent,
    /// What a daemon hears at its local socket.
    ClientToDaemon,
    /// What a client hears from a daemon.
    DaemonToClient,
    /// Either way of a data link with at most so many bytes a message.
    Data(usize),
}

#[cfg(any(test, fuzzing))]
impl Way {
    /// One of each, for tests; the corpora of the fuzzer name them by their places.
    pub const SAMPLES: [Self; 10] = [
        Self::Opening,
        Self::DaemonToAgent,
        Self::AgentToDaemon(2),
        Self::AgentToDaemon(3),
        Self::AgentToDaemon(4),
        Self::ClientToAgent,
        Self::ClientToDaemon,
        Self::DaemonToClient,
        Self::Data(super::OLD_CHUNK),
        Self::Data(super::CHUNK),
    ];
}

impl Way {
    /// Whether a message of this kind and length may come this way.
    fn check(self, kind: Kind, length: u32) -> Result<(), Malformed> {
        use Kind::*;
        let size = length as usize;
        let fits = match (self, kind) {
            (Self::Opening, Hello) => size == 4,
            (Self::DaemonToAgent, ExecCmdline | JustExec | ServiceConnect)
            | (Self::ClientToDaemon, ExecCmdline | JustExec | ServiceConnect) => {
                (9..=LONGEST_CONTROL).contains(&size)
            }
            (Self::DaemonToAgent, ServiceRefused) => size == 32,
            (Self::DaemonToClient, ExecCmdline | JustExec | ServiceConnect) => size == 8,
            (Self::AgentToDaemon(2), TriggerService) => size == 128,
            (Self::AgentToDaemon(3..), TriggerService3) => (97..=96 + LONGEST_SERVICE).contains(&size),
            (Self::AgentToDaemon(4..), TriggerService4) | (Self::ClientToAgent, TriggerService4) => {
                (161..=160 + LONGEST_SERVICE).contains(&size)
            }
            (Self::AgentToDaemon(_), ConnectionTerminated) => size == 8,
            (Self::Data(most), Stdin | Stdout | Stderr | ExitCode) => size <= most,
            _ => return Err(Malformed::Kind(kind as u32)),
        };
        if fits {
            Ok(())
        } else {
            Err(Malformed::Length(kind, length))
        }
    }
}

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What kind of message.
    pub kind: Kind,
    /// Length of the body that follows.
    pub length: u32,
}

impl Header {
    /// Read a header that came this way; its length is within the bounds of its kind.
    pub fn parse(bytes: [u8; HEADER], way: Way) -> Result<Self, Malformed> {
        let [a, b, c, d, e, f, g, h] = bytes;
        let number = u32::from_le_bytes([a, b, c, d]);
        let length = u32::from_le_bytes([e, f, g, h]);
        let kind = Kind::of_number(number).ok_or(Malformed::Kind(number))?;
        way.check(kind, length)?;
        Ok(Self { kind, length })
    }

    /// The header's bytes.
    pub fn bytes(self) -> [u8; HEADER] {
        let [a, b, c, d] = (self.kind as u32).to_le_bytes();
        let [e, f, g, h] = self.length.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }
}

/// Collects one message after the other from a stream, never more than the message at hand.
///
/// Read at most `wanted()` bytes and hand them to `take`: so nothing is read that belongs to the
/// link's next state, and no peer can make us hold more than one message.
pub struct Receiver {
    way: Way,
    header: Option<Header>,
    bytes: Vec<u8>,
}

impl Receiver {
    /// A receiver of messages that come this way.
    pub fn new(way: Way) -> Self {
        Self { way, header: None, bytes: Vec::new() }
    }

    /// Expect messages of another way from the next message on.
    pub fn turn(&mut self, way: Way) {
        self.way = way;
    }

    /// True between messages: nothing of the next one has come.
    pub fn between(&self) -> bool {
        self.header.is_none() && self.bytes.is_empty()
    }

    /// How many bytes to hand to `take` at most; never 0.
    pub fn wanted(&self) -> usize {
        let length = self.header.map_or(HEADER, |header| header.length as usize);
        length - self.bytes.len()
    }

    /// Take bytes that were received; a whole message once there is one.
    ///
    /// What is beyond `wanted()` is left out.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Option<(Kind, Vec<u8>)>, Malformed> {
        let count = bytes.len().min(self.wanted());
        self.bytes.extend_from_slice(&bytes[..count]);
        if self.header.is_none() {
            let Ok(header) = <[u8; HEADER]>::try_from(&self.bytes[..]) else {
                return Ok(None);
            };
            let header = Header::parse(header, self.way)?;
            self.bytes = Vec::new();
            self.header = Some(header);
        }
        match self.header {
            Some(header) if self.bytes.len() == header.length as usize => {
                self.header = None;
                Ok(Some((header.kind, core::mem::take(&mut self.bytes))))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    fn allowed(way: Way, kind: Kind, length: u32) -> bool {
        let header = Header { kind, length };
        let parsed = Header::parse(header.bytes(), way);
        assert!(parsed.is_err() || parsed == Ok(header));
        parsed.is_ok()
    }

    /// Each body has its bounds: {0, 1, least - 1, least, most, most + 1} (QSB-089).
    #[test]
    fn lengths_of_each_kind() {
        let most = 160 + LONGEST_SERVICE as u32;
        let longest = LONGEST_CONTROL as u32;
        for (way, kind, least, most) in [
            (Way::Opening, Kind::Hello, 4, 4),
            (Way::DaemonToAgent, Kind::ExecCmdline, 9, longest),
            (Way::DaemonToAgent, Kind::JustExec, 9, longest),
            (Way::DaemonToAgent, Kind::ServiceConnect, 9, longest),
            (Way::DaemonToAgent, Kind::ServiceRefused, 32, 32),
            (Way::ClientToDaemon, Kind::ExecCmdline, 9, longest),
            (Way::DaemonToClient, Kind::ServiceConnect, 8, 8),
            (Way::AgentToDaemon(2), Kind::TriggerService, 128, 128),
            (Way::AgentToDaemon(3), Kind::TriggerService3, 97, most - 64),
            (Way::AgentToDaemon(4), Kind::TriggerService4, 161, most),
            (Way::AgentToDaemon(2), Kind::ConnectionTerminated, 8, 8),
            (Way::ClientToAgent, Kind::TriggerService4, 161, most),
            (Way::Data(4096), Kind::Stdin, 0, 4096),
            (Way::Data(65_536), Kind::Stdout, 0, 65_536),
            (Way::Data(65_536), Kind::Stderr, 0, 65_536),
            (Way::Data(65_536), Kind::ExitCode, 0, 65_536),
        ] {
            for length in [0, 1, least - i32::from(least > 0) as u32, least, most, most + 1, u32::MAX] {
                let fits = (least..=most).contains(&length);
                assert_eq!(allowed(way, kind, length), fits, "{way:?} {kind:?} {length}");
            }
        }
    }

    /// A trigger of a later protocol than was agreed on is none, nor one of protocol 2 after it.
    #[test]
    fn triggers_belong_to_their_version() {
        for (kind, length, from, to) in [
            (Kind::TriggerService, 128, 2, 2),
            (Kind::TriggerService3, 100, 3, 4),
            (Kind::TriggerService4, 170, 4, 4),
        ] {
            for version in 2..=4 {
                let right = (from..=to).contains(&version);
                assert_eq!(allowed(Way::AgentToDaemon(version), kind, length), right, "{kind:?} {version}");
            }
        }
    }

    /// Whatever the header says, what passes is a kind and a length that its way allows.
    #[test]
    fn any_header_is_survived() {
        let mut random = Generator::new(10);
        for _ in 0..50_000 {
            let mut bytes = <[u8; HEADER]>::try_from(&random.bytes(HEADER)[..]).unwrap();
            if random.below(4) > 0 {
                let kind = *random.pick(&Kind::ALL);
                let length = *random.pick(&[0, 4, 8, 9, 32, 128, 161, 65_535, 65_536, 70_000]);
                bytes = Header { kind, length }.bytes();
            }
            let way = *random.pick(&Way::SAMPLES);
            if let Ok(header) = Header::parse(bytes, way) {
                assert_eq!(header.bytes(), bytes);
                assert!(header.length <= 65_536 && way.check(header.kind, header.length).is_ok());
            }
        }
    }

    /// However a stream is cut, the same messages come out, and never more than one is held.
    #[test]
    fn streams_may_be_cut_anywhere() {
        let mut random = Generator::new(11);
        for _ in 0..300 {
            let mut stream = Vec::new();
            let sent: Vec<(Kind, Vec<u8>)> = (0..random.below(6))
                .map(|_| {
                    let length = *random.pick(&[0, 1, 7, 8, 9, 300]);
                    (*random.pick(&[Kind::Stdin, Kind::Stdout, Kind::ExitCode]), random.bytes(length))
                })
                .collect();
            for (kind, body) in &sent {
                stream.extend(Header { kind: *kind, length: body.len() as u32 }.bytes());
                stream.extend(body);
            }
            let mut receiver = Receiver::new(Way::Data(300));
            let (mut rest, mut found) = (&stream[..], Vec::new());
            while !rest.is_empty() {
                assert!((1..=300).contains(&receiver.wanted()));
                let count = (random.below(receiver.wanted()) + 1).min(rest.len());
                found.extend(receiver.take(&rest[..count]).unwrap());
                rest = &rest[count..];
            }
            assert_eq!(found, sent);
            assert!(receiver.between());
        }
    }

    /// The first wrong header ends it, before a byte of its body is asked for.
    #[test]
    fn a_wrong_header_is_refused_before_its_body() {
        let mut receiver = Receiver::new(Way::Opening);
        assert_eq!(receiver.take(b"\0\x03\0\0\x05\0\0"), Ok(None));
        assert_eq!(receiver.take(b"\0"), Err(Malformed::Length(Kind::Hello, 5)));
    }
}
