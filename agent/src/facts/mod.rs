//! `qubesdb-read`, `-list`, `-multiread`, `-watch`, `-write`, `-rm`: what this qube is told of
//! itself, and notes of its own beside it.
//!
//! qubesd's facts lie in a directory that this qube sees read-only; the qube's own notes lie below
//! `/run` and are gone when it ends. A path that is qubesd's cannot be written, and where both have
//! a path, qubesd's counts.
//!
//! Exit codes: 0; 1 where a path is missing or something failed; 2 for a command line without sense.

mod store;
mod watch;

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::io::Errno;

use crate::arguments::{Known, Options};
use crate::code;
use crate::environment;
use crate::flow;
use crate::say;
use crate::speak::{self, Reason, Shown};
use crate::sys::call;
use store::{Facts, Places};

const KNOWN: [Known; 5] = [
    Known::flag(b'q', "quiet"),
    Known::flag(b'r', "raw"),
    Known::flag(b'f', "fullpath"),
    Known::flag(b'h', "help"),
    Known::value(b'd', "domain"),
];

const QUIET: &str = "  -q, --quiet      say nothing about a path that is not there\n";
const RAW: &str = "  -r, --raw        print values as they are, without \\xNN for control characters\n";
const WHOLE: &str = "  -f, --fullpath   print whole paths instead of what follows PREFIX\n";
const HELP: &str = "  -h, --help       show this\n";

/// One of the six commands.
struct Command {
    name: &'static str,
    operands: &'static str,
    purpose: &'static str,
    options: &'static [&'static str],
    code: &'static str,
}

const COMMANDS: [Command; 6] = [
    Command {
        name: "qubesdb-read",
        operands: "PATH...",
        purpose: "Print what this qube is told of itself, such as /name or /qubes-ip, or its own notes.",
        options: &[QUIET, RAW],
        code: "a path is not there",
    },
    Command {
        name: "qubesdb-list",
        operands: "PREFIX...",
        purpose: "List the paths of this qube's facts and notes that begin with PREFIX.",
        options: &[WHOLE],
        code: "they cannot be read",
    },
    Command {
        name: "qubesdb-multiread",
        operands: "PREFIX...",
        purpose: "Print all of this qube's facts and notes whose paths begin with PREFIX.",
        options: &[RAW, WHOLE],
        code: "they cannot be read",
    },
    Command {
        name: "qubesdb-watch",
        operands: "PATH...",
        purpose: "Wait until a path, or something below it, changes, and print which.",
        options: &[],
        code: "a path cannot be there",
    },
    Command {
        name: "qubesdb-write",
        operands: "PATH VALUE [PATH VALUE]...",
        purpose: "Note values of this qube's own; they are gone when it ends.",
        options: &[],
        code: "this qube may not write a path",
    },
    Command {
        name: "qubesdb-rm",
        operands: "PATH...",
        purpose: "Remove notes of this qube's own.",
        options: &[QUIET],
        code: "a path is not there, or not this qube's",
    },
];

impl Command {
    fn usage(&self) -> String {
        let Self { name, operands, purpose, options, code } = self;
        let options = options.concat();
        let given = if options.is_empty() { "" } else { "[OPTIONS] " };
        alloc::format!(
            "usage: {name} {given}{operands}\n\n{purpose}\n\n{options}{HELP}\nExit code: 1 where {code}.\n"
        )
    }

    fn wrong(&self, text: &str) -> i32 {
        speak::wrong_usage(self.name, text)
    }
}

#[derive(Default)]
struct Wishes {
    quiet: bool,
    raw: bool,
    whole: bool,
}

/// Run under one of the names above, with the arguments after it; the exit code.
pub fn run(name: &[u8], arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    let command = COMMANDS.iter().find(|command| command.name.as_bytes() == name).unwrap_or(&COMMANDS[0]);
    let mut options = Options::new(&KNOWN, arguments);
    let mut wishes = Wishes::default();
    loop {
        match options.take() {
            Ok(None) => break,
            Ok(Some(("quiet", _))) => wishes.quiet = true,
            Ok(Some(("raw", _))) => wishes.raw = true,
            Ok(Some(("fullpath", _))) => wishes.whole = true,
            Ok(Some(("help", _))) => return print(command.usage().as_bytes()),
            Ok(Some(_)) => return command.wrong("a qube reads its own facts only, `--domain` is not for it"),
            Err(text) => return command.wrong(&text),
        }
    }
    let paths: Vec<&[u8]> = options.operands().iter().map(|path| path.to_bytes()).collect();
    if paths.is_empty() {
        return command.wrong("expected a path");
    }
    if name == b"qubesdb-write" && paths.len() % 2 != 0 {
        return command.wrong("expected a value after each path");
    }
    let places = Places {
        told: environment::get(environment, b"CAISSON_FACTS").unwrap_or(store::TOLD),
        own: environment::get(environment, b"CAISSON_OWN_FACTS").unwrap_or(store::OWN),
    };
    match name {
        b"qubesdb-read" => read(&places, &paths, &wishes),
        b"qubesdb-list" => list(&places, &paths, &wishes, false),
        b"qubesdb-multiread" => list(&places, &paths, &wishes, true),
        b"qubesdb-watch" => watch(&places, &paths),
        b"qubesdb-write" => write(&places, &paths),
        _ => remove(&places, &paths, &wishes),
    }
}

/// The value of one path, for other parts of this program.
pub fn value_of(path: &[u8]) -> Option<Vec<u8>> {
    let places = Places { told: store::TOLD, own: store::OWN };
    store::load(&places).ok()?.get(path).map(<[u8]>::to_vec)
}

/// False where a path cannot be there, which is told.
fn all_can_be(paths: &[&[u8]]) -> bool {
    match paths.iter().try_for_each(|path| store::check_path(path)) {
        Ok(()) => true,
        Err(text) => {
            say!("error: {text}");
            false
        }
    }
}

fn watch(places: &Places<'_>, paths: &[&[u8]]) -> i32 {
    if !all_can_be(paths) {
        return code::FAILURE;
    }
    match watch::until_changed(places, paths) {
        Ok(path) => print(&[&path[..], b"\n"].concat()),
        Err(error) => failed("watch the facts of this qube", error),
    }
}

fn read(places: &Places<'_>, paths: &[&[u8]], wishes: &Wishes) -> i32 {
    if !all_can_be(paths) {
        return code::FAILURE;
    }
    let facts = match store::load(places) {
        Ok(facts) => facts,
        Err(error) => return failed("read the facts of this qube", error),
    };
    let mut out = Vec::new();
    let mut code = 0;
    for path in paths {
        match facts.get(path) {
            Some(value) => {
                show(&mut out, value, wishes.raw);
                out.push(b'\n');
            }
            None => {
                code = missing(path, wishes);
            }
        }
    }
    match print(&out) {
        0 => code,
        failure => failure,
    }
}

fn list(places: &Places<'_>, prefixes: &[&[u8]], wishes: &Wishes, values: bool) -> i32 {
    let facts = match store::load(places) {
        Ok(facts) => facts,
        Err(error) => return failed("read the facts of this qube", error),
    };
    let mut out = Vec::new();
    for prefix in prefixes {
        for (path, value) in facts.below(prefix) {
            let from = if wishes.whole { 0 } else { prefix.len() };
            show(&mut out, &path[from..], wishes.raw);
            if values {
                out.extend_from_slice(b" = ");
                show(&mut out, value, wishes.raw);
            }
            out.push(b'\n');
        }
    }
    print(&out)
}

fn write(places: &Places<'_>, operands: &[&[u8]]) -> i32 {
    change(places, |told, own| {
        for pair in operands.chunks_exact(2) {
            store::check(told, pair[0], pair[1])?;
            own.set(pair[0], pair[1]);
        }
        Ok(0)
    })
}

fn remove(places: &Places<'_>, paths: &[&[u8]], wishes: &Wishes) -> i32 {
    change(places, |told, own| {
        let mut code = 0;
        for path in paths {
            store::check(told, path, b"")?;
            if !own.remove(path) {
                code = missing(path, wishes);
            }
        }
        Ok(code)
    })
}

fn change(places: &Places<'_>, act: impl FnOnce(&Facts, &mut Facts) -> Result<i32, String>) -> i32 {
    match store::change(places, act) {
        Ok(Ok(code)) => code,
        Ok(Err(text)) => {
            say!("error: {text}");
            code::FAILURE
        }
        Err(error @ (Errno::ACCESS | Errno::PERM)) => {
            let code = failed("write the notes of this qube", error);
            say!("hint: only its root may");
            code
        }
        Err(error) => failed("write the notes of this qube", error),
    }
}

fn missing(path: &[u8], wishes: &Wishes) -> i32 {
    if !wishes.quiet {
        say!("error: there is no `{}` in this qube", Shown(path));
    }
    code::FAILURE
}

fn failed(what: &str, error: Errno) -> i32 {
    say!("error: cannot {what}: {error}", error = Reason(error));
    code::FAILURE
}

/// Append a value; what could drive a terminal is spelt out unless it is wanted raw.
fn show(out: &mut Vec<u8>, value: &[u8], raw: bool) {
    if raw {
        return out.extend_from_slice(value);
    }
    for &byte in value {
        match byte {
            b' '..=b'~' => out.push(byte),
            _ => out.extend_from_slice(alloc::format!("\\x{byte:02x}").as_bytes()),
        }
    }
}

fn print(bytes: &[u8]) -> i32 {
    match flow::write_all(call::standard(1), bytes) {
        Ok(()) => 0,
        Err(error) => failed("print", error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values are shown without control characters, unless asked for (QSB-087).
    #[test]
    fn values_do_not_drive_the_terminal() {
        let mut out = Vec::new();
        show(&mut out, b"a\x1b[2J\n\xff", false);
        assert_eq!(out, b"a\\x1b[2J\\x0a\\xff");
        out.clear();
        show(&mut out, b"\x1b\n", true);
        assert_eq!(out, b"\x1b\n");
    }
}
