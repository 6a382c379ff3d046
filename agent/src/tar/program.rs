//! `tar2qfile`: send the members of a tar archive as files; and the service `qubes.Restore`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::convert::{Converter, Stop};
use crate::arguments::{Known, Options};
use crate::process::{exit_code, occupy_standard_descriptors};
use crate::qfile::input::Input;
use crate::qfile::output::Output;
use crate::qfile::progress::Progress;
use crate::qfile::sender;
use crate::speak::{self, Reason, Shown};
use crate::sys::call;
use crate::text::c_string;
use crate::{code, say};

/// A line of the service's input is no longer.
const LONGEST_LINE: usize = 64 * 1024;
/// A command that makes an archive may take its time: seconds.
const PATIENCE: u64 = 365 * 24 * 3600;
const KNOWN: [Known; 4] = [
    Known::flag(0, "command"),
    Known::flag(0, "ignore-quota-error"),
    Known::flag(0, "service"),
    Known::flag(b'h', "help"),
];
const USAGE: &str = "\
usage: tar2qfile [OPTIONS] ARCHIVE [PATH...]

Send the members of a tar archive as a qfile stream on standard output; its result is read from
standard input. With PATH only these members and all below them.
Formats: POSIX (ustar, pax) and GNU tar, not compressed, no sparse files and no hard links.

  --command              ARCHIVE is a line of shell whose output is the archive
  --service              be the service qubes.Restore: the first line of standard input names a file
                         or is a command, the second names paths, separated by blanks
  --ignore-quota-error   a receiver that takes no more is no failure
  -h, --help             show this

Exit code: 0 all was delivered, 1 not, 2 usage.
";

/// Where the archive comes from.
enum Archive {
    File(OwnedFd),
    Command { output: OwnedFd, pid: i32 },
}

/// Run with the arguments after the program's name; the exit code.
pub fn run(arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    let mut options = Options::new(&KNOWN, arguments);
    let (mut is_command, mut ignore_quota, mut is_service) = (false, false, false);
    loop {
        match options.take() {
            Ok(Some(("command", _))) => is_command = true,
            Ok(Some(("ignore-quota-error", _))) => ignore_quota = true,
            Ok(Some(("service", _))) => is_service = true,
            Ok(Some(_)) => {
                let _ = rustix::io::write(call::standard(1), USAGE.as_bytes());
                return 0;
            }
            Ok(None) => break,
            Err(text) => return wrong(&text),
        }
    }
    occupy_standard_descriptors();
    call::ignore_broken_pipes();
    let operands: Vec<&[u8]> = options.operands().iter().map(|operand| operand.to_bytes()).collect();
    let lines;
    let (archive, paths) = if is_service {
        lines = match service_lines(&operands) {
            Ok(lines) => lines,
            Err(text) => return failed(&text),
        };
        let paths = lines.1.split(|&byte| byte == b' ').filter(|path| !path.is_empty()).collect();
        (open_either(&lines.0, environment), paths)
    } else {
        match &operands[..] {
            [] => return wrong("expected an archive"),
            [line, paths @ ..] if is_command => (begin(line, environment), paths.to_vec()),
            [path, paths @ ..] => (open(path).map(Archive::File), paths.to_vec()),
        }
    };
    match archive {
        Ok(archive) => convert(archive, &paths, ignore_quota),
        Err(text) => failed(&text),
    }
}

fn wrong(text: &str) -> i32 {
    speak::wrong_usage("tar2qfile", text)
}

fn failed(text: &str) -> i32 {
    say!("error: {text}");
    code::FAILURE
}

/// The two lines that the service gets before the result. Operands are its file, without argument.
fn service_lines(operands: &[&[u8]]) -> Result<(Vec<u8>, Vec<u8>), String> {
    if operands.len() > 1 {
        return Err("qubes.Restore takes no argument".into());
    }
    Ok((line()?, line()?))
}

/// Read a line and no more: what follows it is the result.
fn line() -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    while text.len() < LONGEST_LINE {
        let mut byte = [0];
        match rustix::io::read(call::standard(0), &mut byte) {
            Ok(1) if byte[0] == b'\n' => return Ok(text),
            Ok(1) => text.push(byte[0]),
            Err(Errno::INTR) => {}
            _ => break,
        }
    }
    Err("expected a line with a file or command, and a line with paths".into())
}

fn open_either(line: &[u8], environment: &[&'static CStr]) -> Result<Archive, String> {
    match rustix::fs::stat(line) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile => {
            open(line).map(Archive::File)
        }
        _ => begin(line, environment),
    }
}

fn open(path: &[u8]) -> Result<OwnedFd, String> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| format!("cannot read `{}`: {error}", Shown(path), error = Reason(error)))
}

fn begin(line: &[u8], environment: &[&'static CStr]) -> Result<Archive, String> {
    if line.is_empty() || line.contains(&0) {
        return Err("the command is empty".into());
    }
    let cannot = |error| format!("cannot start a command: {error}", error = Reason(error));
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(cannot)?;
    match call::fork().map_err(cannot)? {
        Some(pid) => Ok(Archive::Command { output: reader, pid }),
        None => become_command(line, &writer, environment),
    }
}

fn become_command(line: &[u8], output: &OwnedFd, environment: &[&'static CStr]) -> ! {
    let words = [&b"/bin/sh"[..], b"-c", line].map(|word| c_string(&[word]));
    let null = rustix::fs::open(c_string(&[b"/dev/null"]), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let redirected = null.is_ok_and(|null| rustix::stdio::dup2_stdin(null).is_ok())
        && rustix::stdio::dup2_stdout(output).is_ok();
    if redirected {
        call::default_broken_pipes();
        let words: Vec<&CStr> = words.iter().map(|word| word.as_c_str()).collect();
        let error = call::execute(words[0], &words, environment);
        say!("error: cannot start `/bin/sh`: {error}", error = Reason(error));
    }
    call::exit(code::NOT_FOUND)
}

fn convert(archive: Archive, paths: &[&[u8]], ignore_quota: bool) -> i32 {
    let (source, pid) = match &archive {
        Archive::File(file) => (file.as_fd(), None),
        Archive::Command { output, pid } => (output.as_fd(), Some(*pid)),
    };
    let output = Output::new(call::standard(1), call::standard(0), Progress::of(&[]));
    let mut converter = Converter::new(Input::new(source, PATIENCE), output, paths);
    let ended = converter.members().and_then(|()| {
        if let Some(pid) = pid {
            converter.drain();
            command_succeeded(pid)?;
        }
        converter.end()
    });
    match ended {
        Ok(output) => sender::judge(output.finish(), &[], ignore_quota),
        Err(Stop::Halted(halt)) => sender::judge(Err(halt), &[], ignore_quota),
        Err(Stop::Archive(text)) => failed(&text),
    }
}

fn command_succeeded(pid: i32) -> Result<(), Stop> {
    match call::wait_for(pid).map(exit_code) {
        Ok(0) => Ok(()),
        Ok(code) => Err(Stop::Archive(format!("the command failed with code {code}"))),
        Err(error) => Err(Stop::Archive(format!("the command is lost: {error}", error = Reason(error)))),
    }
}
