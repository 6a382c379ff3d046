//! `qvm-copy`, `qvm-move`, `qvm-copy-to-vm` and `qvm-move-to-vm`: look over what is to be copied,
//! then become a call of `qubes.Filecopy` with `qfile-agent` as its local program.

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use super::survey::{survey, Survey};
use crate::arguments::{Known, Options};
use crate::environment::{self, Environment};
use crate::speak::{self, Reason, Shown};
use crate::sys::call;
use crate::text::c_string;
use crate::{code, program, say};

const AGENT: &CStr = match CStr::from_bytes_with_nul(b"/usr/lib/qubes/qfile-agent\0") {
    Ok(path) => path,
    Err(_) => panic!(),
};
const KNOWN: [Known; 3] =
    [Known::flag(0, "with-progress"), Known::flag(0, "without-progress"), Known::flag(b'h', "help")];
const CONSOLE: &[u8] = b"console";
const NONE: &[u8] = b"none";
const OPTIONS: &str = "
Nothing is overwritten there, no link is followed, and names that are not safe to display are sent
to the service qubes.Filecopy+allow-all-names, which policy may judge on its own.

  --with-progress      show how far it is, once it takes more than a second (default on a terminal)
  --without-progress   do not
  -h, --help           show this

Exit code: 0 all was delivered, 1 something failed here, 2 usage, 126 it was refused; else why the
other qube did not take it, as an error number of Linux (17: a file of that name exists).
";

/// Which of the four programs.
#[derive(Clone, Copy)]
struct Program {
    name: &'static str,
    moves: bool,
    names_target: bool,
}

const PROGRAMS: [Program; 4] = [
    Program { name: "qvm-copy", moves: false, names_target: false },
    Program { name: "qvm-move", moves: true, names_target: false },
    Program { name: "qvm-copy-to-vm", moves: false, names_target: true },
    Program { name: "qvm-move-to-vm", moves: true, names_target: true },
];

impl Program {
    fn usage(self) -> String {
        let (qube, whom) = match self.names_target {
            true => ("QUBE ", "to QUBE"),
            false => ("", "to a qube that you are asked for"),
        };
        let verb = if self.moves { "Move" } else { "Copy" };
        let after = match self.moves {
            true => "What was delivered is deleted here; what changed meanwhile stays.\n",
            false => "",
        };
        let place = "as ~/QubesIncoming/<this qube>/FILE";
        alloc::format!(
            "usage: {name} [OPTIONS] {qube}FILE...\n\n\
            {verb} files and directories {whom}, {place}.\n{after}{OPTIONS}",
            name = self.name
        )
    }

    fn wrong(self, text: &str) -> i32 {
        speak::wrong_usage(self.name, text)
    }
}

/// As a program around us wishes (a file manager), else for a person at a terminal.
fn usual_progress(environment: &[&'static CStr]) -> &'static [u8] {
    match environment::get(environment, b"PROGRESS_TYPE") {
        Some(b"gui") => b"gui",
        Some(b"console") => CONSOLE,
        Some(_) => NONE,
        None if rustix::termios::isatty(call::standard(2)) => CONSOLE,
        None => NONE,
    }
}

/// Run as the program `name`; returns only on failure.
pub fn run(name: &[u8], arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    let program = PROGRAMS.iter().find(|program| program.name.as_bytes() == name).unwrap_or(&PROGRAMS[0]);
    let mut progress = usual_progress(environment);
    let mut options = Options::new(&KNOWN, arguments);
    loop {
        match options.take() {
            Ok(Some(("with-progress", _))) => progress = CONSOLE,
            Ok(Some(("without-progress", _))) => progress = NONE,
            Ok(Some(_)) => {
                let _ = rustix::io::write(call::standard(1), program.usage().as_bytes());
                return 0;
            }
            Ok(None) => break,
            Err(text) => return program.wrong(&text),
        }
    }
    let (target, files) = match (program.names_target, options.operands()) {
        (true, [target, files @ ..]) if !without_mark(files).is_empty() => {
            (target.to_bytes(), without_mark(files))
        }
        (true, _) => return program.wrong("expected a qube and files"),
        (false, []) => return program.wrong("expected files"),
        (false, files) => (&b"@default"[..], files),
    };
    match survey(files, progress != NONE) {
        Ok(found) => start(*program, target, files, progress, &found, environment),
        Err(text) => {
            say!("error: {text}");
            say!("hint: nothing was copied");
            code::FAILURE
        }
    }
}

/// Files may be told from options behind the qube, too; one that is called `--` is named `./--`.
fn without_mark<'a>(files: &'a [&'static CStr]) -> &'a [&'static CStr] {
    match files {
        [mark, files @ ..] if mark.to_bytes() == b"--" => files,
        files => files,
    }
}

fn start(
    program: Program,
    target: &[u8],
    files: &[&'static CStr],
    progress: &[u8],
    found: &Survey,
    environment: &[&'static CStr],
) -> i32 {
    let service = if found.odd_names { &b"qubes.Filecopy+allow-all-names"[..] } else { b"qubes.Filecopy" };
    let words = [&b"qrexec-client-vm"[..], b"--", target, service].map(|word| c_string(&[word]));
    let (moves, end) = (c_string(&[b"--move"]), c_string(&[b"--"]));
    let mut command: Vec<&CStr> = words.iter().map(|word| word.as_c_str()).collect();
    command.push(AGENT);
    if program.moves {
        command.push(&moves);
    }
    command.push(&end);
    command.extend(files);

    let mut added = Environment::default();
    added.set(b"PROGRESS_TYPE", progress);
    added.set(b"FILECOPY_TOTAL_BYTES", alloc::format!("{}", found.bytes).as_bytes());
    let ours = [&b"PROGRESS_TYPE="[..], b"FILECOPY_TOTAL_BYTES="];
    let kept = |entry: &&&CStr| !ours.iter().any(|name| entry.to_bytes().starts_with(name));
    let mut all: Vec<&CStr> = environment.iter().filter(kept).copied().collect();
    all.extend(added.entries());

    let error = program::execute(&command, &all);
    say!("error: cannot start `{}`: {error}", Shown(b"qrexec-client-vm"), error = Reason(error));
    code::FAILURE
}
