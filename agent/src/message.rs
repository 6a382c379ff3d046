//! The local control protocol: one datagram is one message, a type byte and fields split by NUL.
//!
//! The last field runs to the end of the datagram. Numbers are decimal ASCII.

use alloc::vec::Vec;

use crate::service::command::NO_GUI;
use crate::text::{decimal, split_once};

/// The version of this protocol.
pub const VERSION: u32 = 1;
/// No datagram is longer.
pub const LONGEST: usize = 66_000;

/// What the broker tells an agent.
#[derive(Debug, PartialEq, Eq)]
pub enum ToAgent<'a> {
    /// The barriers were found to be up: work may begin.
    Admitted,
    /// This qube is not accepted, and why.
    Rejected(&'a [u8]),
    /// Start a service; three descriptors come along.
    Service {
        /// Names the call in the answer.
        id: u64,
        /// Who runs it; empty or `DEFAULT` for the qube's default user.
        user: &'a [u8],
        /// `name` or `name+argument`.
        descriptor: &'a [u8],
        /// The calling qube.
        source: &'a [u8],
        /// True where nobody waits for input, output or the end.
        just_start: bool,
        /// False where it starts without the user's session, whatever its settings say.
        with_session: bool,
    },
    /// Run a command line in the user's shell; three descriptors come along.
    Command {
        /// Names the call in the answer.
        id: u64,
        /// As in `Service`.
        user: &'a [u8],
        /// The command line.
        line: &'a [u8],
    },
    /// End gracefully.
    ShutDown,
}

/// What the broker tells a client.
#[derive(Debug, PartialEq, Eq)]
pub enum ToClient<'a> {
    /// The call goes through; three descriptors come along.
    Accepted,
    /// The service has ended with this code.
    Ended(i32),
    /// Policy or the person said no.
    Refused,
    /// The call failed on the way.
    Failed {
        /// The exit code to end with.
        code: i32,
        /// What went wrong.
        message: &'a [u8],
    },
}

/// The datagram is none of the messages that this side understands.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Split the fields after the type byte; the last one keeps its NULs.
fn fields<const N: usize>(body: &[u8]) -> Result<[&[u8]; N], Malformed> {
    let mut found = [&b""[..]; N];
    let mut rest = body;
    for (at, field) in found.iter_mut().enumerate() {
        if at + 1 == N {
            *field = rest;
        } else {
            (*field, rest) = split_once(rest, 0).ok_or(Malformed)?;
        }
    }
    Ok(found)
}

fn exit_code(text: &[u8]) -> Result<i32, Malformed> {
    match decimal(text) {
        Some(code) if code <= 255 => Ok(code as i32),
        _ => Err(Malformed),
    }
}

impl<'a> ToAgent<'a> {
    /// Read a datagram.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, Malformed> {
        let (kind, body) = datagram.split_first().ok_or(Malformed)?;
        match kind {
            b'W' if body.is_empty() => Ok(Self::Admitted),
            b'N' => Ok(Self::Rejected(body)),
            b'Q' if body.is_empty() => Ok(Self::ShutDown),
            b'S' => {
                let [id, user, descriptor, source, flags] = fields::<5>(body)?;
                if flags.iter().any(|flag| !b"en".contains(flag)) {
                    return Err(Malformed);
                }
                let id = decimal(id).ok_or(Malformed)?;
                let (just_start, with_session) = (flags.contains(&b'e'), !flags.contains(&b'n'));
                Ok(Self::Service { id, user, descriptor, source, just_start, with_session })
            }
            b'M' => {
                let [id, user, line] = fields::<3>(body)?;
                let id = decimal(id).ok_or(Malformed)?;
                // Command lines wait for no session as it is.
                let line = line.strip_prefix(NO_GUI).unwrap_or(line);
                Ok(Self::Command { id, user, line })
            }
            _ => Err(Malformed),
        }
    }
}

impl<'a> ToClient<'a> {
    /// Read a datagram.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, Malformed> {
        let (kind, body) = datagram.split_first().ok_or(Malformed)?;
        match kind {
            b'A' if body.is_empty() => Ok(Self::Accepted),
            b'R' => Ok(Self::Refused),
            b'X' => Ok(Self::Ended(exit_code(body)?)),
            b'E' => {
                let [code, message] = fields::<2>(body)?;
                Ok(Self::Failed { code: exit_code(code)?, message })
            }
            _ => Err(Malformed),
        }
    }
}

/// Build a message; `None` where it would be too long or a field but the last holds a NUL.
fn build(kind: u8, parts: &[&[u8]]) -> Option<Vec<u8>> {
    let length = parts.iter().map(|part| part.len() + 1).sum::<usize>().max(1);
    let (_, inner) = parts.split_last().unwrap_or((&&b""[..], &[]));
    if length > LONGEST || inner.iter().any(|part| part.contains(&0)) {
        return None;
    }
    let mut datagram = Vec::with_capacity(length);
    datagram.push(kind);
    for (at, part) in parts.iter().enumerate() {
        if at > 0 {
            datagram.push(0);
        }
        datagram.extend_from_slice(part);
    }
    Some(datagram)
}

/// A qube's request for a call; `source` is the remote qube that a relay calls for, or empty.
pub fn request(target: &[u8], service: &[u8], just_start: bool, source: &[u8]) -> Option<Vec<u8>> {
    let parts = [target, service, if just_start { b"e" } else { b"" }, source];
    // The last field runs to the end, and the broker takes no NUL in it.
    if source.contains(&0) {
        return None;
    }
    build(b'C', if source.is_empty() { &parts[..3] } else { &parts })
}

/// The admin qube's request to run `command` in `qube`; `just_start` where nobody waits for it.
pub fn admin_request(qube: &[u8], user: &[u8], command: &[u8], just_start: bool) -> Option<Vec<u8>> {
    build(if just_start { b'J' } else { b'D' }, &[qube, user, command])
}

/// An agent's first message: the protocol's version and what it found out about the barriers.
pub fn hello(report: &[u8]) -> Option<Vec<u8>> {
    build(b'H', &[alloc::format!("{VERSION}").as_bytes(), report])
}

/// An agent's word that a service has ended.
pub fn ended(id: u64, code: i32) -> Vec<u8> {
    alloc::format!("X{id}\0{code}").into_bytes()
}

/// An agent's word that the set-up of its qube has ended, and how many things failed.
pub fn set_up(failures: usize) -> Vec<u8> {
    alloc::format!("U{failures}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    /// What one side builds is what the other reads.
    #[test]
    fn messages_of_the_sheet() {
        assert_eq!(request(b"work", b"a.B+c", false, b"").unwrap(), b"Cwork\0a.B+c\0");
        assert_eq!(request(b"", b"a.B", true, b"").unwrap(), b"C\0a.B\0e");
        assert_eq!(request(b"w", b"a.B", false, b"far").unwrap(), b"Cw\0a.B\0\0far");
        assert_eq!(admin_request(b"w", b"", b"ls", false).unwrap(), b"Dw\0\0ls");
        assert_eq!(hello(b"{}").unwrap(), b"H1\0{}");
        assert_eq!(ended(7, 127), b"X7\x00127");
        assert_eq!(set_up(3), b"U3");
        assert_eq!(ToAgent::parse(b"W"), Ok(ToAgent::Admitted));
        assert_eq!(ToAgent::parse(b"Nno\0no"), Ok(ToAgent::Rejected(b"no\0no")));
        assert_eq!(
            ToAgent::parse(b"S12\0user\0a.B+c\0src\0e"),
            Ok(ToAgent::Service {
                id: 12,
                user: b"user",
                descriptor: b"a.B+c",
                source: b"src",
                just_start: true,
                with_session: true
            })
        );
        for (flags, just_start, with_session) in [("", false, true), ("n", false, false), ("en", true, false)]
        {
            let datagram = alloc::format!("S1\0\0a\0w\0{flags}");
            let (user, descriptor, source) = (&b""[..], &b"a"[..], &b"w"[..]);
            let expected = ToAgent::Service { id: 1, user, descriptor, source, just_start, with_session };
            assert_eq!(ToAgent::parse(datagram.as_bytes()), Ok(expected));
        }
        assert_eq!(
            ToAgent::parse(b"M3\0root\0echo a\0b"),
            Ok(ToAgent::Command { id: 3, user: b"root", line: b"echo a\0b" })
        );
        assert_eq!(
            ToAgent::parse(b"M3\0root\0nogui:nogui:ls"),
            Ok(ToAgent::Command { id: 3, user: b"root", line: b"nogui:ls" })
        );
        assert_eq!(ToClient::parse(b"A"), Ok(ToClient::Accepted));
        assert_eq!(ToClient::parse(b"X255"), Ok(ToClient::Ended(255)));
        assert_eq!(ToClient::parse(b"E125\0why"), Ok(ToClient::Failed { code: 125, message: b"why" }));
    }

    /// What does not fit the protocol is refused, never guessed at.
    #[test]
    fn malformed_messages_are_refused() {
        for wrong in [
            &b""[..],
            b"W1",
            b"Q1",
            b"S",
            b"S1",
            b"S1\0u\0s\0q",
            b"Sx\0u\0s\0q\0",
            b"S-1\0u\0s\0q\0",
            b"S1\0u\0s\0q\0x",
            b"S1\0u\0s\0q\0e\0",
            b"M1\0u",
            b"Z",
            b"\0",
            b"S99999999999999999999\0\0\0\0",
        ] {
            assert_eq!(ToAgent::parse(wrong), Err(Malformed), "{wrong:?}");
        }
        for wrong in [&b""[..], b"A1", b"X", b"X256", b"X-1", b"Xa", b"X1\0", b"E1", b"Ex\0m", b"W"] {
            assert_eq!(ToClient::parse(wrong), Err(Malformed), "{wrong:?}");
        }
        assert_eq!(request(b"a\0b", b"s", false, b""), None);
        assert_eq!(request(b"a", b"s", false, b"x\0y"), None);
        assert_eq!(request(b"a", &[b'x'; LONGEST], false, b""), None);
    }

    /// No datagram makes the parsers panic, and what they accept has the fields that were sent.
    #[test]
    fn any_datagram_is_survived() {
        let mut random = Generator::new(1);
        for _ in 0..50_000 {
            let length = random.below(40);
            let mut datagram = random.bytes(length);
            if let Some(first) = datagram.first_mut() {
                *first = *random.pick(b"WNSMQXARE");
            }
            for byte in datagram.iter_mut().skip(1) {
                if random.below(3) == 0 {
                    *byte = *random.pick(b"\0\x0019e");
                }
            }
            if let Ok(ToAgent::Service { user, descriptor, source, .. }) = ToAgent::parse(&datagram) {
                assert!(![user, descriptor, source].iter().any(|field| field.contains(&0)));
            }
            if let Ok(ToClient::Ended(code)) = ToClient::parse(&datagram) {
                assert!((0..=255).contains(&code));
            }
        }
    }

    /// Every request that can be built is at most one datagram, and splits into its parts again.
    #[test]
    fn built_messages_split_into_their_parts() {
        let mut random = Generator::new(2);
        for _ in 0..5_000 {
            let (a, b) = (random.below(70), random.below(70));
            let (target, service) = (random.bytes(a), random.bytes(b));
            match request(&target, &service, false, b"") {
                Some(datagram) => {
                    let parts: std::vec::Vec<_> = datagram[1..].split(|&byte| byte == 0).collect();
                    assert_eq!(parts, [&target[..], &service[..], b""]);
                }
                None => assert!(target.contains(&0) || service.contains(&0)),
            }
        }
    }
}
