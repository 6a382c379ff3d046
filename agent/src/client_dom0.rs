//! `qrexec-client`: run a command or a service in a qube, from the admin qube.

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::arguments::{Known, Options};
use crate::call::Call;
use crate::sys::call;
use crate::text::split_once;
use crate::{code, environment, message, say};

const SOCKET: &[u8] = b"/run/qubes/broker/dom0/qrexec";
const KNOWN: [Known; 10] = [
    Known::value(b'd', "domain"),
    Known::flag(b'e', "just-exec"),
    Known::flag(b't', "filter-escape-chars-stdout"),
    Known::flag(b'T', "filter-escape-chars-stderr"),
    Known::flag(b'E', "no-exit-code"),
    Known::value(b'w', "timeout"),
    Known::flag(b'W', "wait"),
    Known::value(b'p', "prefix-data"),
    Known::value(0, "socket"),
    Known::flag(b'h', "help"),
];
const USAGE: &str = "\
usage: qrexec-client -d QUBE [OPTIONS] USER:COMMAND

Run COMMAND as USER (DEFAULT for the qube's default user) in a running qube.
COMMAND is a shell command, or `QUBESRPC SERVICE[+ARGUMENT] SOURCE`.

  -d QUBE            the qube
  -e                 start it and do not wait for it
  -E                 exit with 0 whatever the command's code
  -t, -T             replace control characters on stdout, on stderr
  -p DATA            send DATA before standard input
  --socket PATH      the broker's socket (default below $CAISSON_ROOT: run/qubes/broker/dom0/qrexec)
  -w SECONDS, -W     accepted and not needed
  -h, --help         show this

Exit code: that of the command. 125 it could not be set up, 126 refused, 127 no such service,
255 the connection was lost.
";

#[derive(Default)]
struct Wishes {
    qube: Option<&'static [u8]>,
    socket: Option<&'static [u8]>,
    prefix: &'static [u8],
    just_start: bool,
    filter_stdout: bool,
    filter_stderr: bool,
    hide_code: bool,
    help: bool,
}

/// Run with the arguments after the program's name; the exit code.
pub fn run(arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    let mut options = Options::new(&KNOWN, arguments);
    let wishes = match wishes(&mut options) {
        Ok(wishes) => wishes,
        Err(text) => return wrong(&text),
    };
    if wishes.help {
        let _ = rustix::io::write(call::standard(1), USAGE.as_bytes());
        return 0;
    }
    let Some(qube) = wishes.qube else {
        return wrong("expected `-d QUBE`");
    };
    let [command] = options.operands() else {
        return wrong("expected one `USER:COMMAND`");
    };
    let Some((user, command)) = split_once(command.to_bytes(), b':') else {
        return wrong("expected `USER:COMMAND`, found no `:`");
    };
    let command = command.strip_prefix(b"nogui:").unwrap_or(command);
    let user = if user == b"DEFAULT" { b"" } else { user };
    let command = if wishes.just_start { in_background(command) } else { command.to_vec() };
    let root = environment::get(environment, b"CAISSON_ROOT").unwrap_or(b"");
    let below_root = [root.strip_suffix(b"/").unwrap_or(root), SOCKET].concat();
    let code = Call {
        socket: wishes.socket.unwrap_or(&below_root),
        request: message::admin_request(qube, user, &command, wishes.just_start),
        filter_stdout: wishes.filter_stdout,
        filter_stderr: wishes.filter_stderr,
        prefix: wishes.prefix,
        both_ways: false,
        program: &[],
        environment,
    }
    .run();
    if wishes.hide_code {
        0
    } else {
        code
    }
}

/// A command line that returns at once; for a service the agent itself sees to it.
fn in_background(command: &[u8]) -> Vec<u8> {
    if command.starts_with(b"QUBESRPC ") {
        return command.to_vec();
    }
    [&b"("[..], command, b"\n) </dev/null >/dev/null 2>&1 &"].concat()
}

fn wishes(options: &mut Options<'_>) -> Result<Wishes, String> {
    let mut wishes = Wishes::default();
    while let Some((name, value)) = options.take()? {
        match name {
            "domain" => wishes.qube = Some(value),
            "just-exec" => wishes.just_start = true,
            "filter-escape-chars-stdout" => wishes.filter_stdout = true,
            "filter-escape-chars-stderr" => wishes.filter_stderr = true,
            "no-exit-code" => wishes.hide_code = true,
            "prefix-data" => wishes.prefix = value,
            "socket" => wishes.socket = Some(value),
            "help" => wishes.help = true,
            _ => {}
        }
    }
    Ok(wishes)
}

fn wrong(text: &str) -> i32 {
    say!("error: {text}");
    say!("hint: `qrexec-client --help` shows the options");
    code::USAGE
}
