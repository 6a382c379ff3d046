//! The text of a call, as the wire protocol and `qrexec-client` spell it.
//!
//! `USER:[nogui:]QUBESRPC SERVICE[+ARGUMENT] SOURCE [TYPE TARGET]` names a service; anything else
//! after `USER:` is a line for the user's shell. The bytes of a name are never interpreted: they
//! are split at single blanks, and refused where they could mean something else to a reader.

use crate::service::LONGEST_NAME;
use crate::text::split_once;

/// Longest service name with its argument.
pub const LONGEST_DESCRIPTOR: usize = 65_000;
/// Before a call that starts without the user's session.
pub const NO_GUI: &[u8] = b"nogui:";
const KEYWORD: &[u8] = b"QUBESRPC";

/// A call of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// `name` or `name+argument`, as received.
    pub descriptor: &'a [u8],
    /// The calling qube.
    pub source: &'a [u8],
    /// What follows the source, with the blank before it; empty for most.
    pub rest: &'a [u8],
    /// False where the service starts without a session, whatever its settings say.
    pub with_session: bool,
}

/// Whom the caller asked for, where the service is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requested<'a> {
    /// Nothing is known of it.
    Untold,
    /// A qube's name.
    Name(&'a [u8]),
    /// A keyword, without its `@`.
    Keyword(&'a [u8]),
}

/// What to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work<'a> {
    /// A service by name, called from another qube.
    Service(Request<'a>),
    /// A command line for the user's shell.
    Command(&'a [u8]),
}

/// Why a text is no call.
pub type Wrong = &'static str;

impl<'a> Request<'a> {
    /// A call of which no more is known than who calls what.
    pub fn new(descriptor: &'a [u8], source: &'a [u8]) -> Self {
        Self { descriptor, source, rest: b"", with_session: true }
    }

    /// Read what follows `QUBESRPC `.
    pub fn parse(text: &'a [u8]) -> Result<Self, Wrong> {
        let (descriptor, after) = split_once(text, b' ').ok_or("the calling qube is missing")?;
        let end = after.iter().position(|&byte| byte == b' ').unwrap_or(after.len());
        let (source, rest) = after.split_at(end);
        let request = Self { descriptor, source, rest, with_session: true };
        request.check()?;
        Ok(request)
    }

    /// The service's name.
    pub fn name(&self) -> &'a [u8] {
        split_once(self.descriptor, b'+').map_or(self.descriptor, |(name, _)| name)
    }

    /// The service's argument; `None` where there is not even a `+`.
    pub fn argument(&self) -> Option<&'a [u8]> {
        split_once(self.descriptor, b'+').map(|(_, argument)| argument)
    }

    /// Refuse what is too long, and bytes that a path, a text or a terminal would read as more than a name.
    pub fn check(&self) -> Result<(), Wrong> {
        if self.descriptor.len() > LONGEST_DESCRIPTOR {
            return Err("a service name with its argument has at most 65000 characters");
        }
        if self.name().is_empty() || self.name().len() > LONGEST_NAME {
            return Err("a service name has 1 to 255 characters");
        }
        if self.source.is_empty() {
            return Err("the calling qube is missing");
        }
        let separates = |byte: &u8| *byte <= b' ' || *byte == 0x7f;
        if self.descriptor.contains(&b'/') || [self.descriptor, self.source].concat().iter().any(separates) {
            return Err("a service name contains no `/`, blank or control character");
        }
        if self.rest.iter().any(|byte| *byte < b' ' || *byte == 0x7f) {
            return Err("a target contains no control character");
        }
        Ok(())
    }

    /// Whom the caller asked for; programs are called with all of it or nothing.
    pub fn requested(&self) -> Result<Requested<'a>, Wrong> {
        const SHAPE: Wrong = "after the calling qube follows nothing, or a type and a target";
        let Some(rest) = self.rest.strip_prefix(b" ") else {
            return if self.rest.is_empty() { Ok(Requested::Untold) } else { Err(SHAPE) };
        };
        let (kind, target) = split_once(rest, b' ').ok_or(SHAPE)?;
        if target.is_empty() || target.contains(&b' ') {
            return Err(SHAPE);
        }
        match kind {
            b"name" => Ok(Requested::Name(target)),
            b"keyword" => Ok(Requested::Keyword(target)),
            _ => Err("the type of a target is `name` or `keyword`"),
        }
    }
}

/// Read a call that names its user: the user, and what to start.
pub fn parse(text: &[u8]) -> Result<(&[u8], Work<'_>), Wrong> {
    let (user, rest) = split_once(text, b':').ok_or("expected `USER:COMMAND`, found no `:`")?;
    Ok((user, parse_work(rest)?))
}

/// Read what follows the user.
pub fn parse_work(text: &[u8]) -> Result<Work<'_>, Wrong> {
    let (text, with_session) = match text.strip_prefix(NO_GUI) {
        Some(rest) => (rest, false),
        None => (text, true),
    };
    let Some(rest) = text.strip_prefix(KEYWORD) else {
        return Ok(Work::Command(text));
    };
    let call = rest.strip_prefix(b" ").ok_or("`QUBESRPC` is followed by one blank and a service name")?;
    Ok(Work::Service(Request { with_session, ..Request::parse(call)? }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    fn request<'a>(descriptor: &'a str, source: &'a str, rest: &'a str) -> Request<'a> {
        let (descriptor, source, rest) = (descriptor.as_bytes(), source.as_bytes(), rest.as_bytes());
        Request { descriptor, source, rest, with_session: true }
    }

    /// Every form of the sheet.
    #[test]
    fn forms() {
        let service = |request| Work::Service(request);
        let quiet = Request { with_session: false, ..request("a.B", "w", "") };
        for (text, user, work) in [
            ("user:QUBESRPC a.B work", "user", service(request("a.B", "work", ""))),
            ("u:QUBESRPC a.B+ w", "u", service(request("a.B+", "w", ""))),
            (":QUBESRPC a.B+c+d w name x", "", service(request("a.B+c+d", "w", " name x"))),
            ("u:nogui:QUBESRPC a.B w", "u", service(quiet)),
            ("u:nogui:ls", "u", Work::Command(b"ls")),
            ("u:nogui:nogui:ls", "u", Work::Command(b"nogui:ls")),
            ("u:echo QUBESRPC a.B w", "u", Work::Command(b"echo QUBESRPC a.B w")),
            ("u: QUBESRPC a.B w", "u", Work::Command(b" QUBESRPC a.B w")),
            ("u:", "u", Work::Command(b"")),
            ("a:b:c", "a", Work::Command(b"b:c")),
        ] {
            assert_eq!(parse(text.as_bytes()), Ok((user.as_bytes(), work)), "{text}");
        }
    }

    /// What is half a call is none, and never a line for the shell.
    #[test]
    fn half_calls_are_refused() {
        let long = alloc::format!("u:QUBESRPC {} w", "a".repeat(256));
        let longer = alloc::format!("u:QUBESRPC a+{} w", "a".repeat(LONGEST_DESCRIPTOR));
        for wrong in [
            "QUBESRPC a.B w",
            "u:QUBESRPC",
            "u:QUBESRPC ",
            "u:QUBESRPCa.B w",
            "u:QUBESRPC\ta.B w",
            "u:QUBESRPC a.B",
            "u:QUBESRPC a.B ",
            "u:QUBESRPC  w",
            "u:QUBESRPC +x w",
            "u:QUBESRPC a.B  w",
            "u:QUBESRPC a/B w",
            "u:QUBESRPC a.B\n w",
            "u:QUBESRPC a.B w\0",
            "u:QUBESRPC a.B w name x\0",
            &long,
            &longer,
        ] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
        let longest = alloc::format!("u:QUBESRPC {}+ w", "a".repeat(255));
        assert!(parse(longest.as_bytes()).is_ok());
    }

    /// A program is told of the target wholly or not at all.
    #[test]
    fn targets() {
        for (rest, told) in [
            ("", Ok(Requested::Untold)),
            (" name x", Ok(Requested::Name(b"x"))),
            (" keyword dispvm:x", Ok(Requested::Keyword(b"dispvm:x"))),
        ] {
            assert_eq!(request("a", "w", rest).requested(), told);
        }
        for wrong in [" ", " name", " name ", "  name x", " name x ", " name x y", " other x", "name x"] {
            assert!(request("a", "w", wrong).requested().is_err(), "{wrong:?}");
        }
    }

    /// QSB-038: a name and an argument come out as the bytes that went in, or the call is refused.
    #[test]
    fn bytes_that_were_decided_on_are_those_that_are_served() {
        let mut random = Generator::new(38);
        for _ in 0..50_000 {
            let length = 1 + random.below(12);
            let descriptor: std::vec::Vec<u8> =
                (0..length).map(|_| *random.pick(b"ab+.$`'\"\\;|&*?~\t\n\0/%@-_\xff")).collect();
            let text = [b"u:QUBESRPC ", &descriptor[..], b" work"].concat();
            match parse(&text) {
                Ok((_, Work::Service(request))) => {
                    assert_eq!(request.descriptor, &descriptor[..]);
                    let (name, argument) = (request.name(), request.argument());
                    let joined = match argument {
                        Some(argument) => [name, b"+", argument].concat(),
                        None => name.to_vec(),
                    };
                    assert_eq!(joined, descriptor);
                    assert_eq!((request.source, request.rest), (&b"work"[..], &b""[..]));
                }
                Ok((_, Work::Command(_))) => panic!("a call became a line for the shell"),
                Err(_) => assert!(
                    descriptor[0] == b'+' || descriptor.iter().any(|byte| *byte <= b' ' || *byte == b'/'),
                    "{descriptor:?}"
                ),
            }
        }
    }
}
