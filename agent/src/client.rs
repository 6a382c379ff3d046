//! `qrexec-client-vm`: call a service of another qube.

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::io::Errno;
use rustix::net::SocketType;

use crate::arguments::{Known, Options};
use crate::call::Call;
use crate::caller::Caller;
use crate::client_wire;
use crate::code;
use crate::local_program;
use crate::message;
use crate::process;
use crate::say;
use crate::speak;
use crate::sys::call;

const SOCKET: &[u8] = b"/run/qubes/qrexec";
const WIRE_SOCKET: &[u8] = b"/run/qubes/qrexec-agent";
/// Longest name of a target or a source in the wire protocol, without its NUL.
const LONGEST_NAME: usize = 63;
const KNOWN: [Known; 11] = [
    Known::value(0, "buffer-size"),
    Known::flag(b't', "filter-escape-chars-stdout"),
    Known::flag(b'T', "filter-escape-chars-stderr"),
    Known::flag(0, "no-filter-escape-chars-stdout"),
    Known::flag(0, "no-filter-escape-chars-stderr"),
    Known::value(b'a', "agent-socket"),
    Known::value(b'p', "prefix-data"),
    Known::flag(0, "use-stdin-socket"),
    Known::value(b's', "source-qube"),
    Known::flag(b'e', "just-exec"),
    Known::flag(b'h', "help"),
];
const USAGE: &str = "\
usage: qrexec-client-vm [OPTIONS] TARGET SERVICE[+ARGUMENT] [PROGRAM [ARGUMENTS...]]

Call a service of another qube. Its input and output are this program's, or those of PROGRAM.
TARGET is a qube's name, uuid:UUID, @default (or empty), @dispvm, @dispvm:NAME, @adminvm or dom0.

  -t, --filter-escape-chars-stdout   replace control characters on stdout (default on a terminal)
  -T, --filter-escape-chars-stderr   the same on stderr
  --no-filter-escape-chars-stdout, --no-filter-escape-chars-stderr
  -p, --prefix-data=DATA             send DATA before standard input
  --use-stdin-socket                 standard input is a socket: use it both ways
  -a, --agent-socket=PATH            the broker's socket, or that of an agent of the wire protocol
                                     (default /run/qubes/qrexec, else /run/qubes/qrexec-agent)
  --buffer-size=N                    accepted and not needed
  -s, --source-qube=NAME             call for the remote qube NAME, as its relay may
  -e, --just-exec                    start the service and do not wait for it
  -h, --help                         show this

PROGRAM is given with its path, as in /bin/cat: it is not looked for along PATH.
Exit code: that of the service, or of PROGRAM where that of the service is 0.
1 the output could not be written here,
125 the call failed, 126 it was refused, 127 there is no such service or PROGRAM,
255 the connection was lost.
";

#[derive(Default)]
struct Wishes {
    filter_stdout: Option<bool>,
    filter_stderr: Option<bool>,
    socket: Option<&'static [u8]>,
    prefix: Option<&'static [u8]>,
    source: Option<&'static [u8]>,
    both_ways: bool,
    just_start: bool,
    help: bool,
}

/// Run with the arguments after the program's name; the exit code.
pub fn run(arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    process::occupy_all_but_output();
    let mut options = Options::new(&KNOWN, arguments);
    let wishes = match wishes(&mut options) {
        Ok(wishes) => wishes,
        Err((code, text)) => return wrong(code, &text),
    };
    if wishes.help {
        let _ = rustix::io::write(call::standard(1), USAGE.as_bytes());
        return 0;
    }
    let (target, service, program) = match options.operands() {
        [target, service, program @ ..] => (target.to_bytes(), service.to_bytes(), program),
        _ => return wrong(code::USAGE, "expected a target and a service"),
    };
    if target.len() > LONGEST_NAME {
        return wrong(code::USAGE, "the target is longer than 63 characters");
    }
    if service.is_empty() {
        return wrong(code::USAGE, "the service is empty");
    }
    if wishes.both_ways && !program.is_empty() {
        return wrong(code::USAGE, "`--use-stdin-socket` and a local program exclude each other");
    }
    if wishes.both_ways && rustix::net::sockopt::socket_type(call::standard(0)) != Ok(SocketType::STREAM) {
        return wrong(code::FAILURE, "standard input is no stream socket");
    }
    if let Some(code) = program.first().and_then(|program| local_program::missing(program)) {
        return code;
    }
    // The spelling of old policies and scripts.
    let target: Vec<u8> = target.iter().map(|&byte| if byte == b'$' { b'@' } else { byte }).collect();
    let on_terminal = |which: u8| rustix::termios::isatty(call::standard(which));
    let source = wishes.source.unwrap_or(b"");
    let call = Call {
        socket: wishes.socket.unwrap_or_else(usual_socket),
        request: message::request(&target, service, wishes.just_start, source),
        caller: Caller {
            filter_stdout: wishes.filter_stdout.unwrap_or_else(|| program.is_empty() && on_terminal(1)),
            filter_stderr: wishes.filter_stderr.unwrap_or_else(|| on_terminal(2)),
            prefix: wishes.prefix.unwrap_or(b""),
            both_ways: wishes.both_ways,
            program,
            environment,
        },
    };
    if let Some(code) = call.run_at_broker() {
        return code;
    }
    if wishes.just_start {
        return wrong(code::FAILURE, "`--just-exec` cannot be asked for over the wire protocol");
    }
    let Call { socket, caller, .. } = call;
    client_wire::Call { socket, source, target: &target, service, caller }.run(environment)
}

/// The broker's socket, or that of an agent of the wire protocol where there is no broker.
fn usual_socket() -> &'static [u8] {
    match rustix::fs::stat(SOCKET) {
        Err(Errno::NOENT) if rustix::fs::stat(WIRE_SOCKET).is_ok() => WIRE_SOCKET,
        _ => SOCKET,
    }
}

fn wishes(options: &mut Options<'_>) -> Result<Wishes, (i32, String)> {
    let mut wishes = Wishes::default();
    while let Some((name, value)) = options.take().map_err(|text| (code::USAGE, text))? {
        match name {
            "buffer-size" => {
                if !is_size(value) {
                    return Err((code::FAILURE, "`--buffer-size` is not a number of bytes".into()));
                }
            }
            "filter-escape-chars-stdout" => wishes.filter_stdout = Some(true),
            "filter-escape-chars-stderr" => wishes.filter_stderr = Some(true),
            "no-filter-escape-chars-stdout" => wishes.filter_stdout = Some(false),
            "no-filter-escape-chars-stderr" => wishes.filter_stderr = Some(false),
            "agent-socket" => wishes.socket = Some(value),
            "prefix-data" if wishes.prefix.is_some() => {
                return Err((code::USAGE, "`--prefix-data` may be given once".into()));
            }
            "prefix-data" => wishes.prefix = Some(value),
            "use-stdin-socket" => wishes.both_ways = true,
            "source-qube" if wishes.source.is_some() => {
                return Err((code::USAGE, "`--source-qube` may be given once".into()));
            }
            "source-qube" => wishes.source = Some(source(value)?),
            "just-exec" => wishes.just_start = true,
            _ => wishes.help = true,
        }
    }
    Ok(wishes)
}

/// Whom a relay calls for: to drop the wish would make the call in another name than asked.
fn source(value: &'static [u8]) -> Result<&'static [u8], (i32, String)> {
    match value.len() {
        0 => Err((code::USAGE, "`--source-qube` is empty".into())),
        length if length > LONGEST_NAME => {
            Err((code::USAGE, "`--source-qube` is longer than 63 characters".into()))
        }
        _ => Ok(value),
    }
}

/// A number in C's notation: decimal, octal or hexadecimal, up to the largest `int`.
fn is_size(text: &[u8]) -> bool {
    let Ok(text) = core::str::from_utf8(text) else {
        return false;
    };
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return false; // the library would take a sign
    }
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None if text.starts_with('0') => u64::from_str_radix(text, 8),
        None => text.parse(),
    };
    parsed.is_ok_and(|size| size <= i32::MAX as u64)
}

fn wrong(code: i32, text: &str) -> i32 {
    if code == code::USAGE {
        return speak::wrong_usage("qrexec-client-vm", text);
    }
    say!("error: {text}");
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes are read as C reads them.
    #[test]
    fn sizes() {
        for right in [&b"0"[..], b"65536", b"0x10000", b"0200", b"2147483647"] {
            assert!(is_size(right));
        }
        for wrong in [&b""[..], b"-1", b"x", b"2147483648", b"09", b"1k", b"+1", b"0x+1", b"0x"] {
            assert!(!is_size(wrong));
        }
    }
}
