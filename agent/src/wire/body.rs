//! Bodies other than triggers, and whole messages made of them.

use alloc::vec::Vec;

use super::frame::{Header, Kind, Malformed};
use super::{CHUNK, HEADER, LONGEST_CONTROL, OLD_CHUNK};
use crate::text::decimal;

/// A protocol version that both sides speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32);

impl Version {
    /// The newest that we speak.
    pub const NEWEST: Self = Self(4);
    /// What a daemon's local socket speaks.
    pub const LOCAL: Self = Self(3);
    /// The oldest that we speak.
    pub const OLDEST: Self = Self(2);

    /// The version to use with a peer whose newest is `theirs`: the lower of both.
    pub fn negotiate(theirs: u32) -> Result<Self, Malformed> {
        if theirs < Self::OLDEST.0 {
            return Err(Malformed::Version(theirs));
        }
        Ok(Self(theirs.min(Self::NEWEST.0)))
    }

    /// The number.
    pub fn number(self) -> u32 {
        self.0
    }

    /// Most bytes of data in one message.
    pub fn chunk(self) -> usize {
        if self.0 <= 2 {
            OLD_CHUNK
        } else {
            CHUNK
        }
    }
}

/// Where a data link is: the peer's domain and the port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecParams {
    /// The domain at the other end.
    pub domain: u32,
    /// The port that was allotted.
    pub port: u32,
}

impl ExecParams {
    /// Bytes of the two numbers.
    pub const SIZE: usize = 8;

    /// Read from the start of a body; what follows it is the rest.
    pub fn split(body: &[u8]) -> Option<(Self, &[u8])> {
        let ([a, b, c, d, e, f, g, h], rest) = split_array::<{ Self::SIZE }>(body)?;
        let domain = u32::from_le_bytes([a, b, c, d]);
        let port = u32::from_le_bytes([e, f, g, h]);
        Some((Self { domain, port }, rest))
    }

    /// The bytes.
    pub fn bytes(self) -> [u8; Self::SIZE] {
        let [a, b, c, d] = self.domain.to_le_bytes();
        let [e, f, g, h] = self.port.to_le_bytes();
        [a, b, c, d, e, f, g, h]
    }
}

/// What an agent calls one of its clients towards the daemon: up to 31 of `[A-Za-z0-9_. -]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ident([u8; 32]);

impl Ident {
    /// Bytes on the wire.
    pub const SIZE: usize = 32;
    const SOCKET: &'static [u8] = b"SOCKET";

    /// An ident of this text; `None` where the text is too long or has other characters.
    pub fn new(text: &[u8]) -> Option<Self> {
        let right = |byte: &u8| byte.is_ascii_alphanumeric() || b"_. -".contains(byte);
        if text.len() >= Self::SIZE || !text.iter().all(right) {
            return None;
        }
        let mut bytes = [0; Self::SIZE];
        bytes[..text.len()].copy_from_slice(text);
        Some(Self(bytes))
    }

    /// Read an array that a peer sent: a text, and nothing but NULs after it.
    pub fn parse(bytes: &[u8; Self::SIZE]) -> Option<Self> {
        let end = bytes.iter().position(|&byte| byte == 0)?;
        let (text, padding) = bytes.split_at(end);
        padding.iter().all(|&byte| byte == 0).then(|| Self::new(text)).flatten()
    }

    /// The ident of the client with this number.
    pub fn of_client(number: u64) -> Self {
        let text = alloc::format!("SOCKET{number}");
        // At most 26 characters, all allowed.
        Self::new(text.as_bytes()).unwrap_or(Self([0; Self::SIZE]))
    }

    /// The number of the client that this names, if `of_client` made it.
    pub fn client(&self) -> Option<u64> {
        self.text().strip_prefix(Self::SOCKET).and_then(decimal)
    }

    /// The text without its padding.
    pub fn text(&self) -> &[u8] {
        self.0.split(|&byte| byte == 0).next().unwrap_or(&[])
    }

    /// The array on the wire.
    pub fn bytes(&self) -> [u8; Self::SIZE] {
        self.0
    }
}

/// The first `N` bytes, and what follows them.
pub(super) fn split_array<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
    let array = <[u8; N]>::try_from(bytes.get(..N)?).ok()?;
    Some((array, &bytes[N..]))
}

/// A whole message; the caller has bounded the length of the body.
pub(super) fn message(kind: Kind, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut bytes = Vec::with_capacity(HEADER + length);
    bytes.extend_from_slice(&Header { kind, length: length as u32 }.bytes());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// HELLO.
pub fn hello(version: Version) -> Vec<u8> {
    message(Kind::Hello, &[&version.number().to_le_bytes()])
}

/// The version that a peer says in its HELLO.
pub fn parse_hello(body: &[u8]) -> Result<u32, Malformed> {
    let version = <[u8; 4]>::try_from(body).map_err(|_| Malformed::Length(Kind::Hello, body.len() as u32))?;
    Ok(u32::from_le_bytes(version))
}

/// EXEC_CMDLINE, or JUST_EXEC where nobody waits for the end.
///
/// `None` where the line holds a NUL or the message would be longer than peers take.
pub fn command(just_start: bool, params: ExecParams, line: &[u8]) -> Option<Vec<u8>> {
    if line.contains(&0) || ExecParams::SIZE + line.len() + 1 > LONGEST_CONTROL {
        return None;
    }
    let kind = if just_start { Kind::JustExec } else { Kind::ExecCmdline };
    Some(message(kind, &[&params.bytes(), line, b"\0"]))
}

/// The parts of an EXEC_CMDLINE or JUST_EXEC: the last byte counts as the NUL whatever it is, and
/// the line ends at the first one.
pub fn parse_command(body: &[u8]) -> Result<(ExecParams, &[u8]), Malformed> {
    let (params, line) = ExecParams::split(body).ok_or(Malformed::Text)?;
    let (_, line) = line.split_last().ok_or(Malformed::Text)?;
    let line = line.split(|&byte| byte == 0).next().unwrap_or(line);
    Ok((params, line))
}

/// SERVICE_CONNECT: the trigger of this ident was allowed.
pub fn connect(params: ExecParams, ident: &Ident) -> Vec<u8> {
    message(Kind::ServiceConnect, &[&params.bytes(), &ident.bytes()])
}

/// The parts of a SERVICE_CONNECT; its ident may end with or without padding.
pub fn parse_connect(body: &[u8]) -> Result<(ExecParams, Ident), Malformed> {
    let (params, text) = ExecParams::split(body).ok_or(Malformed::Text)?;
    let text = text.split(|&byte| byte == 0).next().unwrap_or(text);
    Ok((params, Ident::new(text).ok_or(Malformed::Text)?))
}

/// CONNECTION_TERMINATED: the data link is done with.
pub fn terminated(params: ExecParams) -> Vec<u8> {
    message(Kind::ConnectionTerminated, &[&params.bytes()])
}

/// The last message of a data link.
pub fn exit_code(code: i32) -> Vec<u8> {
    message(Kind::ExitCode, &[&code.to_le_bytes()])
}

/// The code that an EXIT_CODE tells: 255 where it is cut short, and nothing of what follows it.
pub fn parse_exit_code(body: &[u8]) -> i32 {
    split_array(body).map_or(255, |(code, _)| i32::from_le_bytes(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    /// The bytes that the protocol's description gives as examples.
    #[test]
    fn messages_of_the_sheet() {
        assert_eq!(hello(Version::NEWEST), b"\x00\x03\x00\x00\x04\x00\x00\x00\x04\x00\x00\x00");
        let end = Header { kind: Kind::Stdout, length: 0 };
        assert_eq!(end.bytes(), *b"\x91\x01\x00\x00\x00\x00\x00\x00");
        assert_eq!(exit_code(42), b"\x93\x01\x00\x00\x04\x00\x00\x00\x2a\x00\x00\x00");
        let params = ExecParams { domain: 7, port: 513 };
        assert_eq!(terminated(params), b"\x11\x02\0\0\x08\0\0\0\x07\0\0\0\x01\x02\0\0");
        assert_eq!(
            command(false, params, b"u:ls").unwrap(),
            b"\x00\x02\0\0\x0d\0\0\0\x07\0\0\0\x01\x02\0\0u:ls\0"
        );
        assert_eq!(&command(true, params, b"").unwrap()[..8], b"\x01\x02\0\0\x09\0\0\0");
    }

    /// Both speak the lower version, and nobody speaks one from before 2.
    #[test]
    fn versions() {
        for (theirs, common, chunk) in [(2, 2, 4096), (3, 3, 65_536), (4, 4, 65_536), (99, 4, 65_536)] {
            let version = Version::negotiate(theirs).unwrap();
            assert_eq!((version.number(), version.chunk()), (common, chunk));
        }
        for theirs in [0, 1] {
            assert_eq!(Version::negotiate(theirs), Err(Malformed::Version(theirs)));
        }
        assert_eq!(parse_hello(b"\x04\0\0\0"), Ok(4));
        for body in [&b""[..], b"\x04", b"\x04\0\0\0\0"] {
            assert!(parse_hello(body).is_err());
        }
    }

    /// An ident has its characters, its NUL and nothing behind it.
    #[test]
    fn idents() {
        let ident = Ident::of_client(u64::MAX);
        assert_eq!(ident.text(), b"SOCKET18446744073709551615");
        assert_eq!(Ident::parse(&ident.bytes()), Some(ident));
        assert_eq!(ident.client(), Some(u64::MAX));
        for text in [&b"SOCKET"[..], b"SOCKET-1", b"SOCKET1x", b"socket1", b"", b"SOCKET18446744073709551616"]
        {
            assert_eq!(Ident::new(text).unwrap().client(), None);
        }
        for text in [&b"a/b"[..], b"a\0", b"\x1b", &[b'x'; 32]] {
            assert_eq!(Ident::new(text), None);
        }
        let mut bytes = [b'x'; 32];
        assert_eq!(Ident::parse(&bytes), None);
        bytes[30] = 0;
        assert_eq!(Ident::parse(&bytes), None);
        bytes[31] = 0;
        assert!(Ident::parse(&bytes).is_some());
    }

    /// A line comes out as it went in; what cannot be one line is not sent.
    #[test]
    fn commands() {
        let params = ExecParams { domain: u32::MAX, port: 768 };
        let longest = std::vec![b'x'; LONGEST_CONTROL - 9];
        for line in [&b""[..], b"u:QUBESRPC a.B+c work", &longest] {
            let sent = command(false, params, line).unwrap();
            assert_eq!(parse_command(&sent[HEADER..]), Ok((params, line)));
        }
        assert_eq!(command(false, params, &std::vec![b'x'; LONGEST_CONTROL - 8]), None);
        assert_eq!(command(false, params, b"a\0b"), None);
        assert_eq!(parse_command(b"\0\0\0\0\0\0\0\0abc"), Ok((ExecParams::default(), &b"ab"[..])));
        assert_eq!(parse_command(b"\0\0\0\0\0\0\0\0a\0b\0"), Ok((ExecParams::default(), &b"a"[..])));
        assert!(parse_command(b"\0\0\0\0\0\0\0\0").is_err());
    }

    /// Exit codes of any length have one reading.
    #[test]
    fn exit_codes() {
        for (body, code) in [
            (&b""[..], 255),
            (b"\x01\0\0", 255),
            (b"\x01\0\0\0", 1),
            (b"\xff\xff\xff\xff", -1),
            (b"\x07\0\0\0\x08", 7),
        ] {
            assert_eq!(parse_exit_code(body), code);
        }
    }

    /// No body makes a parser panic, and what it takes is of the form that it promises.
    #[test]
    fn any_body_is_survived() {
        let mut random = Generator::new(12);
        for _ in 0..50_000 {
            let length = random.below(48);
            let mut body = random.bytes(length);
            for byte in &mut body {
                if random.below(2) == 0 {
                    *byte = *random.pick(b"SOCKET19\0");
                }
            }
            if let Ok((_, line)) = parse_command(&body) {
                assert!(!line.contains(&0));
            }
            if let Ok((params, ident)) = parse_connect(&body) {
                assert_eq!(parse_connect(&connect(params, &ident)[HEADER..]), Ok((params, ident)));
            }
            parse_exit_code(&body);
            let _ = parse_hello(&body);
        }
    }
}
