//! Service `qubes.Log`: keep lines that other qubes send (`qubes-log-sink`), and sending them
//! (`qvm-log`).
//!
//! The service answers `OK` once at the start and once for each line that is kept. Who sends is what
//! the broker says; what is sent is not trusted, and made harmless before it is kept.

pub mod line;
pub mod store;

use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fs::FileType;
use rustix::pipe::PipeFlags;

use crate::arguments::{Known, Options};
use crate::conversation::Conversation;
use crate::flow::{self, Line};
use crate::open::name::harmless;
use crate::program::{self, Streams};
use crate::remote_log::line::Priority;
use crate::remote_log::store::Store;
use crate::speak::{self, Reason, Shown};
use crate::sys::call;
use crate::text::{decimal, literal};
use crate::{code, environment, process, say};

const OK: &[u8] = b"OK\n";
/// Kept with the qube's own data where it has a private volume.
const KEPT: &[u8] = b"/rw/log/qubes-remote";
const VOLATILE: &[u8] = b"/var/log/qubes-remote";
/// Variables with other places.
const DIRECTORY: &[u8] = b"QUBES_LOG_DIRECTORY";
const SOCKET: &[u8] = b"QUBES_LOG_SOCKET";
/// A longer line is no line of a log; one that is longer than the service takes goes in pieces.
const LONGEST_SENT: usize = 1 << 20;
const KNOWN: [Known; 2] = [Known::value(b'p', "priority"), Known::flag(b'h', "help")];
const USAGE: &str = "\
usage: qvm-log [-p NUMBER] [QUBE]

Send the lines of standard input to the log of another qube (default: the one that policy says).
Each line is kept before the next is sent.

  -p, --priority=NUMBER   facility * 8 + severity, 0 to 191 (default: `<NUMBER>` at a line's start)
  -h, --help              show this

Exit code: 0 all lines are kept, 1 a line was not kept; others are those of the call.
";

/// Run under one of the two names, with the arguments after it; the exit code.
pub fn run(name: &[u8], arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    process::occupy_standard_descriptors();
    call::ignore_broken_pipes();
    match name {
        b"qubes-log-sink" => sink(environment),
        _ => send(arguments, environment),
    }
}

fn sink(environment: &[&CStr]) -> i32 {
    let source = environment::get(environment, b"QREXEC_REMOTE_DOMAIN").unwrap_or(b"");
    if source.is_empty() || source.starts_with(b".") || harmless(source) != source {
        return failed("the name of the sending qube is none");
    }
    let store = match open_store(source, environment) {
        Ok(store) => store,
        Err(code) => return code,
    };
    let answer = || flow::write_all(call::standard(1), OK).is_ok();
    let mut listening = answer();
    while listening {
        let (untrusted_line, cut) = match read_line() {
            Some(found) => found,
            None => return 0,
        };
        let (priority, untrusted_text) = line::parse(&untrusted_line);
        if let Err(error) = store.keep(priority, &line::shown(untrusted_text, cut)) {
            say!("error: the line cannot be kept: {}", Reason(error));
            return code::FAILURE;
        }
        listening = answer();
    }
    0
}

/// The next line, and whether its end is missing; `None` at the end.
fn read_line() -> Option<(Vec<u8>, bool)> {
    match flow::read_line(call::standard(0), line::LONGEST).ok()? {
        Line::Whole(line) => Some((line, false)),
        Line::End => None,
        Line::TooLong(line) => {
            while let Ok(Line::TooLong(_)) = flow::read_line(call::standard(0), line::LONGEST) {}
            Some((line, true))
        }
    }
}

fn open_store(source: &[u8], environment: &[&CStr]) -> Result<Store, i32> {
    match backend(environment).as_slice() {
        b"" | b"file" => {
            let directory = match environment::get(environment, DIRECTORY) {
                Some(given) => given,
                None => usual_directory(),
            };
            Store::in_files(directory, source).map_err(|error| {
                say!("error: cannot open the directory `{}`: {}", Shown(directory), Reason(error));
                code::FAILURE
            })
        }
        b"syslog" => {
            let socket = environment::get(environment, SOCKET).unwrap_or(b"/dev/log");
            Store::in_syslog(socket, source).map_err(|error| {
                say!("error: cannot reach the syslog at `{}`: {}", Shown(socket), Reason(error));
                code::FAILURE
            })
        }
        other => {
            say!("error: unknown log backend `{}`", Shown(other));
            say!("hint: `/vm-config/log-backend` is `file` or `syslog`");
            Err(code::FAILURE)
        }
    }
}

fn usual_directory() -> &'static [u8] {
    let is_directory =
        |found: rustix::fs::Stat| FileType::from_raw_mode(found.st_mode) == FileType::Directory;
    if rustix::fs::stat(&b"/rw"[..]).is_ok_and(is_directory) {
        KEPT
    } else {
        VOLATILE
    }
}

/// What dom0 says of the backend; nothing where it says nothing.
fn backend(environment: &[&CStr]) -> Vec<u8> {
    const LONGEST: usize = 64;
    let key = [literal(b"qubesdb-read\0"), literal(b"/vm-config/log-backend\0")];
    if !program::installed(key[0].to_bytes(), environment) {
        return Vec::new();
    }
    let Ok((reader, writer)) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC) else { return Vec::new() };
    let streams = Streams { stdout: Some(&writer), quiet: true, ..Streams::default() };
    let Ok(pid) = program::start(&key, &streams, environment) else { return Vec::new() };
    drop(writer);
    let found = flow::read_to_end(&reader, LONGEST).unwrap_or_default();
    if program::code_of(pid) != 0 {
        return Vec::new();
    }
    found.strip_suffix(b"\n").unwrap_or(&found).to_vec()
}

fn send(arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    let mut options = Options::new(&KNOWN, arguments);
    let mut prefix = Vec::new();
    loop {
        match options.take() {
            Ok(None) => break,
            Ok(Some(("priority", value))) => match decimal(value).and_then(Priority::new) {
                Some(_) => prefix = [b"<", value, b">"].concat(),
                None => return wrong("a priority is a number from 0 to 191"),
            },
            Ok(Some(_)) => {
                let _ = flow::write_all(call::standard(1), USAGE.as_bytes());
                return 0;
            }
            Err(text) => return wrong(&text),
        }
    }
    let target = match options.operands() {
        [] => &b"@default"[..],
        [target] => target.to_bytes(),
        _ => return wrong("expected one qube at most"),
    };
    match Conversation::start(target, b"qubes.Log", environment) {
        Ok(call) => send_lines(call, &prefix),
        Err(error) => {
            say!("error: cannot start `qrexec-client-vm`: {}", Reason(error));
            code::FAILURE
        }
    }
}

fn send_lines(mut call: Conversation, prefix: &[u8]) -> i32 {
    let mut number = 0_u64;
    let mut kept = answered(&call);
    while kept {
        number += 1;
        let line = match flow::read_line(call::standard(0), LONGEST_SENT) {
            Ok(Line::Whole(line)) => line,
            Ok(Line::TooLong(_)) => {
                say!("error: line {number} is longer than {LONGEST_SENT} bytes");
                kept = false;
                break;
            }
            _ => break,
        };
        for piece in line::pieces(prefix, &line) {
            let sent = call.to.as_ref().map(|to| flow::write_all(to, &[&piece[..], b"\n"].concat()));
            kept = kept && matches!(sent, Some(Ok(()))) && answered(&call);
        }
    }
    call.to = None;
    let code = call.finish();
    match (kept, code) {
        (true, code) => code,
        (false, 0) => {
            say!("error: line {number} was not kept");
            code::FAILURE
        }
        (false, code) => code,
    }
}

/// True where the next thing that the service says is `OK`.
fn answered(call: &Conversation) -> bool {
    matches!(flow::read_line(&call.from, OK.len()), Ok(Line::Whole(line)) if line == b"OK")
}

fn failed(text: &str) -> i32 {
    say!("error: {text}");
    code::FAILURE
}

fn wrong(text: &str) -> i32 {
    speak::wrong_usage("qvm-log", text)
}
