//! The options of `qrexec-client`, and which of them go together.

use alloc::string::String;
use core::ffi::CStr;

use rustix::net::SocketType;

use crate::arguments::{Known, Options};
use crate::sys::call;
use crate::text::{decimal, split_once};
use crate::wire::Ident;

/// How long the other side of a data link may take to come, in seconds.
const PATIENCE: u64 = 10;
const KNOWN: [Known; 15] = [
    Known::value(b'd', "domain"),
    Known::value(b'l', "local"),
    Known::value(b'c', "connect"),
    Known::flag(b'e', "just-exec"),
    Known::flag(b't', "filter-escape-chars-stdout"),
    Known::flag(b'T', "filter-escape-chars-stderr"),
    Known::flag(b'E', "no-exit-code"),
    Known::value(b'w', "timeout"),
    Known::flag(b'W', "wait"),
    Known::flag(b'k', "kill"),
    Known::value(b'p', "prefix-data"),
    Known::flag(0, "use-stdin-socket"),
    Known::value(0, "socket-dir"),
    Known::value(0, "socket"),
    Known::flag(b'h', "help"),
];

/// A trigger that waits for an answer at the daemon of the qube that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What the daemon calls it.
    pub ident: Ident,
    /// The qube's name.
    pub source: &'static [u8],
    /// The qube's number.
    pub domain: u32,
}

/// What is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// The qube to run in.
    pub qube: &'static [u8],
    /// `USER:COMMAND`.
    pub command: &'static [u8],
    /// A command that runs here and speaks with that one.
    pub local: Option<&'static [u8]>,
    /// Answer a trigger instead of calling ourselves.
    pub answer: Option<Answer>,
    /// Do not wait for the end.
    pub just_start: bool,
    /// Replace control characters on stdout.
    pub filter_stdout: bool,
    /// Replace control characters on stderr.
    pub filter_stderr: bool,
    /// Exit with 0 whatever the command's code.
    pub hide_code: bool,
    /// Kill the qube at the end.
    pub kill: bool,
    /// Wait for the end of a call between two qubes.
    pub wait: bool,
    /// Milliseconds for the other side to come; `None`: for ever.
    pub patience: Option<i64>,
    /// Sent before stdin.
    pub prefix: &'static [u8],
    /// Stdin is a socket that takes the output too.
    pub both_ways: bool,
    /// Where the daemons' sockets are, if that was said.
    pub socket_dir: Option<&'static [u8]>,
    /// The broker's socket, if that was said.
    pub socket: Option<&'static [u8]>,
}

/// Read the command line; `None` where help is asked for.
pub fn read(arguments: &[&'static CStr]) -> Result<Option<Wishes>, String> {
    let mut options = Options::new(&KNOWN, arguments);
    let mut wishes = Wishes { patience: patience(PATIENCE), ..Wishes::default() };
    while let Some((name, value)) = options.take()? {
        match name {
            "domain" => wishes.qube = value,
            "local" => wishes.local = Some(value),
            "connect" => wishes.answer = Some(answer(value)?),
            "just-exec" => wishes.just_start = true,
            "filter-escape-chars-stdout" => wishes.filter_stdout = true,
            "filter-escape-chars-stderr" => wishes.filter_stderr = true,
            "no-exit-code" => wishes.hide_code = true,
            "kill" => wishes.kill = true,
            "wait" => wishes.wait = true,
            "timeout" => {
                let seconds = decimal(value).filter(|seconds| *seconds <= 1 << 32);
                wishes.patience = patience(seconds.ok_or("`-w` takes a number of seconds, 0 for no limit")?);
            }
            "prefix-data" => wishes.prefix = value,
            "use-stdin-socket" => wishes.both_ways = true,
            "socket-dir" => wishes.socket_dir = Some(value),
            "socket" => wishes.socket = Some(value),
            _ => return Ok(None),
        }
    }
    let [command] = options.operands() else {
        return Err("expected one `USER:COMMAND`".into());
    };
    wishes.command = command.to_bytes();
    wishes.check()?;
    Ok(Some(wishes))
}

fn patience(seconds: u64) -> Option<i64> {
    (seconds > 0).then_some(seconds as i64 * 1000)
}

fn answer(text: &'static [u8]) -> Result<Answer, &'static str> {
    const SHAPE: &str = "`-c` takes `ID,SOURCE,SOURCE_ID`";
    let (ident, rest) = split_once(text, b',').ok_or(SHAPE)?;
    let (source, domain) = split_once(rest, b',').ok_or(SHAPE)?;
    let ident = Ident::new(ident).filter(|ident| !ident.text().is_empty()).ok_or(SHAPE)?;
    let domain = decimal(domain).and_then(|domain| u32::try_from(domain).ok()).ok_or(SHAPE)?;
    if is_admin_qube(source) || domain == 0 {
        return Err("the admin qube triggers nothing: `-c` names another source");
    }
    if !is_file_name(source) {
        return Err(SHAPE);
    }
    Ok(Answer { ident, source, domain })
}

/// True for each of the admin qube's names.
pub fn is_admin_qube(name: &[u8]) -> bool {
    matches!(name, b"dom0" | b"@adminvm" | b"uuid:00000000-0000-0000-0000-000000000000")
}

/// True for what can be the end of a socket's name.
fn is_file_name(name: &[u8]) -> bool {
    !name.is_empty() && !name.contains(&b'/')
}

impl Wishes {
    /// True where the command runs in the admin qube.
    pub fn here(&self) -> bool {
        is_admin_qube(self.qube)
    }

    fn check(&self) -> Result<(), String> {
        let exclusive = [self.just_start, self.local.is_some(), self.answer.is_some()];
        let wrong = if self.qube.is_empty() {
            "expected `-d QUBE`"
        } else if !is_file_name(self.qube) {
            "the name of a qube contains no `/`"
        } else if exclusive.iter().filter(|given| **given).count() > 1 {
            "`-e`, `-l` and `-c` exclude each other"
        } else if self.both_ways && self.local.is_some() {
            "`--use-stdin-socket` and `-l` exclude each other"
        } else if self.kill && self.here() {
            "the admin qube cannot be killed"
        } else if self.both_ways
            && rustix::net::sockopt::socket_type(call::standard(0)) != Ok(SocketType::STREAM)
        {
            "standard input is no stream socket"
        } else {
            return Ok(());
        };
        Err(wrong.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn wishes(line: &'static str) -> Result<Option<Wishes>, String> {
        let words = line.split_whitespace().map(|word| crate::text::c_string(&[word.as_bytes()]));
        let words: Vec<&'static CStr> =
            words.map(|word| &*std::boxed::Box::leak(word.into_boxed_c_str())).collect();
        read(&words)
    }

    /// What stands on the command line is what is wanted.
    #[test]
    fn options() {
        let read = wishes("-d work -eEtTkW -w 0 -p data --socket-dir=/x user:ls").unwrap().unwrap();
        let expected = Wishes {
            qube: b"work",
            command: b"user:ls",
            just_start: true,
            filter_stdout: true,
            filter_stderr: true,
            hide_code: true,
            kill: true,
            wait: true,
            patience: None,
            prefix: b"data",
            socket_dir: Some(b"/x"),
            ..Wishes::default()
        };
        assert_eq!(read, expected);
        assert_eq!(wishes("-d w u:x").unwrap().unwrap().patience, Some(10_000));
        let answer = wishes("-d w -c SOCKET5,work,7 u:x").unwrap().unwrap().answer.unwrap();
        assert_eq!((answer.ident.text(), answer.source, answer.domain), (&b"SOCKET5"[..], &b"work"[..], 7));
        assert_eq!(wishes("-h"), Ok(None));
    }

    /// What makes no sense is named.
    #[test]
    fn mistakes() {
        for line in [
            "u:x",
            "-d w",
            "-d w a b",
            "-d a/b u:x",
            "-d w -e -l x u:x",
            "-d w -e -c a,b,1 u:x",
            "-d w -l x -c a,b,1 u:x",
            "-d w -c a,b u:x",
            "-d w -c a,b,x u:x",
            "-d w -c a,b,0 u:x",
            "-d w -c a,dom0,1 u:x",
            "-d w -c a,@adminvm,1 u:x",
            "-d w -c a,../b,1 u:x",
            "-d w -c ,b,1 u:x",
            "-d w -c a/b,b,1 u:x",
            "-d dom0 -k u:x",
            "-d w -w -1 u:x",
            "-d w -w x u:x",
            "-d w --no-such u:x",
        ] {
            assert!(wishes(line).is_err(), "{line}");
        }
    }
}
