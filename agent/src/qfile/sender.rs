//! `qfile-agent`: send files to the receiver behind standard input and output.

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fd::OwnedFd;

use super::codes;
use super::listing;
use super::output::{Halt, Output};
use super::progress::Progress;
use super::removal::{self, Names};
use super::send::{Sender, Stop};
use super::wire::Outcome;
use crate::arguments::{Known, Options};
use crate::process::occupy_standard_descriptors;
use crate::speak::{self, Shown};
use crate::sys::call;
use crate::text::split_once;
use crate::{code, say};

const KNOWN: [Known; 3] =
    [Known::flag(0, "move"), Known::flag(0, "ignore-quota-error"), Known::flag(b'h', "help")];
const USAGE: &str = "\
usage: qfile-agent [OPTIONS] FILE...

Send files and directories: a qfile stream on standard output, its result on standard input.
As the local program of qrexec-client-vm it is the sender of qubes.Filecopy; see qvm-copy.

  --move                 delete what was delivered, and what did not change meanwhile
  --ignore-quota-error   a receiver that takes no more is no failure
  -h, --help             show this

PROGRESS_TYPE is none, console (a line on standard error, after a second) or gui (a number of bytes
a line, on descriptor SAVED_FD_1); FILECOPY_TOTAL_BYTES is what is to be sent.
Exit code: 0 all was delivered, 1 not, 2 usage.
";

#[derive(Default)]
struct Wishes {
    moves: bool,
    ignore_quota: bool,
}

/// Run with the arguments after the program's name; the exit code.
pub fn run(arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    let mut options = Options::new(&KNOWN, arguments);
    let wishes = match wishes(&mut options) {
        Ok(Some(wishes)) => wishes,
        Ok(None) => {
            let _ = rustix::io::write(call::standard(1), USAGE.as_bytes());
            return 0;
        }
        Err(text) => return wrong(&text),
    };
    let files = options.operands();
    if files.is_empty() {
        return wrong("expected files");
    }
    occupy_standard_descriptors();
    call::ignore_broken_pipes();
    send(files, &wishes, environment)
}

fn wishes(options: &mut Options<'_>) -> Result<Option<Wishes>, String> {
    let mut wishes = Wishes::default();
    while let Some((name, _)) = options.take()? {
        match name {
            "move" => wishes.moves = true,
            "ignore-quota-error" => wishes.ignore_quota = true,
            _ => return Ok(None),
        }
    }
    Ok(Some(wishes))
}

fn wrong(text: &str) -> i32 {
    speak::wrong_usage("qfile-agent", text)
}

fn send(files: &[&'static CStr], wishes: &Wishes, environment: &[&'static CStr]) -> i32 {
    let output = Output::new(call::standard(1), call::standard(0), Progress::of(environment));
    let mut sender = Sender::new(output, wishes.moves);
    let mut starts: Vec<(OwnedFd, usize)> = Vec::new();
    for file in files {
        match sender.argument(file.to_bytes()) {
            Ok(parent) if wishes.moves => starts.push((parent, sender.noted())),
            Ok(_) => {}
            Err(stop) => return stopped(stop, files, wishes),
        }
    }
    let (output, delivered, grown) = match sender.end() {
        Ok(ended) => ended,
        Err(stop) => return stopped(stop, files, wishes),
    };
    let ended = output.finish();
    let delivered_all = matches!(&ended, Ok((outcome, checksum)) if outcome.is_success(*checksum));
    if !delivered_all {
        return judge(ended, files, wishes.ignore_quota);
    }
    let mut from = 0;
    let mut stayed = 0;
    let mut names = Names::default();
    for (parent, to) in starts {
        stayed += removal::remove(parent, &delivered[from..to], &mut names);
        from = to;
    }
    i32::from(grown || stayed > 0)
}

fn stopped(stop: Stop, files: &[&CStr], wishes: &Wishes) -> i32 {
    match stop {
        Stop::Halted(halt) => judge(Err(halt), files, wishes.ignore_quota),
        Stop::Source(text) => {
            say!("error: {text}");
            say!("hint: what came before it was copied; nothing was deleted");
            code::FAILURE
        }
    }
}

/// The exit code for how a transfer of `files` ended, with words for the person where it failed.
pub fn judge(ended: Result<(Outcome, u32), Halt>, files: &[&CStr], ignore_quota: bool) -> i32 {
    let (outcome, early) = match ended {
        Ok((outcome, checksum)) if outcome.is_success(checksum) => return 0,
        Ok((outcome, _)) => (outcome, false),
        Err(Halt::Answered(outcome)) => (outcome, true),
        Err(Halt::Gone) => {
            say!("error: the other side ended without a result");
            return code::FAILURE;
        }
    };
    // The name is what the other side says: never shown raw.
    let (words, name) = (codes::words(outcome.code), Shown(&outcome.last_name));
    match outcome.code {
        codes::DONE if early => say!("error: the other side ended before all was sent"),
        codes::DONE => say!("error: the data changed on the way: the checksum of the other side differs"),
        codes::OVER_QUOTA if ignore_quota => return 0,
        code if outcome.last_name.is_empty() => say!("error: {words} (code {code})"),
        code => {
            say!("error: {words}: `{name}` (code {code})");
            if let Some(before) = delivered_before(&outcome.last_name, files) {
                say!("hint: delivered before: {before}");
            }
        }
    }
    code::FAILURE
}

/// Which arguments had arrived when the receiver stopped at `last`, as a list for a person.
///
/// The receiver's word tells how many; the names are our own. It takes one entry after the other, so
/// all before the argument of that name are there. Of arguments with the same name the first counts.
fn delivered_before(last: &[u8], files: &[&CStr]) -> Option<String> {
    const MOST: usize = 8;
    let (top, within) = match split_once(last, b'/') {
        Some((top, _)) => (top, true),
        None => (last, false),
    };
    let names: Vec<&[u8]> = files.iter().map(|file| listing::own_name(file.to_bytes())).collect();
    let at = names.iter().position(|name| *name == top)?;
    let mut list: Vec<String> =
        names[..at].iter().take(MOST).map(|name| alloc::format!("`{}`", Shown(short(name)))).collect();
    if at > MOST {
        list.push(alloc::format!("{} more", at - MOST));
    }
    if within {
        list.push(alloc::format!("a part of `{}`", Shown(short(names[at]))));
    }
    (!list.is_empty()).then(|| list.join(", "))
}

/// So much of a name that a list of them fits into a line.
fn short(name: &[u8]) -> &[u8] {
    const MOST: usize = 24;
    &name[..name.len().min(MOST)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::c_string;
    use alloc::ffi::CString;

    fn before(last: &[u8], files: &[&[u8]]) -> Option<String> {
        let files: Vec<CString> = files.iter().map(|file| c_string(&[file])).collect();
        let files: Vec<&CStr> = files.iter().map(CString::as_c_str).collect();
        delivered_before(last, &files)
    }

    /// All before the one that failed are there; what the receiver says is never shown.
    #[test]
    fn what_arrived_before() {
        let files: [&[u8]; 3] = [b"m3", b"/tmp/a\x1b/", b"dir"];
        assert_eq!(before(b"m3", &files), None);
        assert_eq!(before(b"dir", &files).unwrap(), "`m3`, `a\\x1b`");
        assert_eq!(before(b"dir/x/y", &files).unwrap(), "`m3`, `a\\x1b`, a part of `dir`");
        assert_eq!(before(b"\x1b[2J", &files), None);
        assert_eq!(before(b"", &files), None);
        assert_eq!(before(b"b", &[b"a\x1b", b"b"]).unwrap(), "`a\\x1b`");
    }

    /// However many there are, and whatever they are called, the list fits into a line.
    #[test]
    fn the_list_is_bounded() {
        let names: Vec<Vec<u8>> = (0..300_u16)
            .map(|at| [&[0xff; 200][..], &at.to_be_bytes().map(|byte| byte | 1)].concat())
            .collect();
        let mut files: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
        files.push(b"last");
        let list = before(b"last", &files).unwrap();
        assert!(list.ends_with(", 292 more") && list.len() < 960, "{list}");
    }
}
