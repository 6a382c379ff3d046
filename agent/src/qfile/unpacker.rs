//! `qfile-unpacker`: receive files into a directory. See `receive` for what it takes.

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::arguments::{Known, Options};
use crate::speak::{self, Shown};
use crate::sys::call;
use crate::text::decimal;
use crate::{code, say};

use super::receive::{self, Rules};

const KNOWN: [Known; 13] = [
    Known::flag(b'v', "verbose"),
    Known::value(b'w', "wait-for-space"),
    Known::flag(0, "allow-all-names"),
    Known::flag(0, "no-allow-all-names"),
    Known::flag(0, "allow-unsafe-symlinks"),
    Known::flag(0, "no-allow-unsafe-symlinks"),
    Known::flag(0, "flat"),
    Known::value(0, "suffix"),
    Known::value(0, "most-bytes"),
    Known::value(0, "most-files"),
    Known::value(0, "most-silence"),
    Known::flag(0, "service"),
    Known::flag(b'h', "help"),
];
const USAGE: &str = "\
usage: qfile-unpacker [OPTIONS] [UID [DIR]]

Receive files: a qfile stream on standard input, its result on standard output.
They go to DIR, or to ~/QubesIncoming/QUBE with QUBE from QREXEC_REMOTE_DOMAIN.
Nothing is ever overwritten, and nothing is written anywhere else.
As root it becomes user UID first; any other user may name only itself.

  -v, --verbose                   name each file on standard error
  -w, --wait-for-space=N          before each file wait until it fits and N bytes stay free
  --[no-]allow-all-names          take names that are not safe to display (default: no)
  --[no-]allow-unsafe-symlinks    take links that lead anywhere (default: no)
  --flat                          take regular files with plain names only: no directory, no link;
                                  each file gets mode 0644
  --suffix=SUFFIX                 with --flat: a name must end so; may be given several times
  --most-bytes=N                  take N bytes in all (default: what the disk holds)
  --most-files=N                  take N entries in all (default: any number)
  --most-silence=SECONDS          give up when nothing arrives for so long (default: 600)
  --service                       be the service qubes.Filecopy: operands are its file and its
                                  argument, which is nothing or `allow-all-names`
  -h, --help                      show this

Exit code: 0 all was received, else the low 8 bits of the error code in the result;
1 also for a stream that makes no sense and where a barrier cannot be raised, 2 usage.
";

/// Run with the arguments after the program's name; the exit code.
pub fn run(arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    let mut options = Options::new(&KNOWN, arguments);
    let rules = match rules(&mut options) {
        Ok(Some(rules)) => rules,
        Ok(None) => {
            let _ = rustix::io::write(call::standard(1), USAGE.as_bytes());
            return 0;
        }
        Err(text) => return wrong(&text),
    };
    let is_service = rules.service;
    match destination(rules, options.operands()) {
        Ok(rules) => receive::run(rules, environment),
        Err(text) if is_service => {
            say!("error: {text}");
            code::FAILURE
        }
        Err(text) => wrong(&text),
    }
}

fn wrong(text: &str) -> i32 {
    speak::wrong_usage("qfile-unpacker", text)
}

fn count(name: &str, value: &[u8]) -> Result<u64, String> {
    decimal(value).ok_or_else(|| alloc::format!("`--{name}` is no number: `{}`", Shown(value)))
}

/// The options; `None` where help is wanted.
fn rules(options: &mut Options<'_>) -> Result<Option<Rules>, String> {
    let mut rules = Rules::default();
    while let Some((name, value)) = options.take()? {
        match name {
            "verbose" => rules.verbose = true,
            "wait-for-space" => rules.keep_free = Some(count(name, value)?),
            "allow-all-names" => rules.all_names = true,
            "no-allow-all-names" => rules.all_names = false,
            "allow-unsafe-symlinks" => rules.unsafe_links = true,
            "no-allow-unsafe-symlinks" => rules.unsafe_links = false,
            "flat" => rules.flat = true,
            "suffix" => rules.suffixes.push(value),
            "most-bytes" => rules.most_bytes = count(name, value)?,
            "most-files" => rules.most_files = count(name, value)?,
            "most-silence" => rules.most_silence = count(name, value)?,
            "service" => rules.service = true,
            _ => return Ok(None),
        }
    }
    if !rules.suffixes.is_empty() && !rules.flat {
        return Err("`--suffix` goes with `--flat`".into());
    }
    Ok(Some(rules))
}

fn destination(mut rules: Rules, operands: &[&'static CStr]) -> Result<Rules, String> {
    let operands: Vec<&'static [u8]> = operands.iter().map(|operand| operand.to_bytes()).collect();
    if rules.service {
        return service(rules, &operands);
    }
    let (uid, directory) = match operands[..] {
        [] => return Ok(rules),
        [uid] => (uid, None),
        [uid, directory] => (uid, Some(directory)),
        _ => return Err("expected a user id and a directory".into()),
    };
    let parsed = decimal(uid).and_then(|uid| u32::try_from(uid).ok()).filter(|&uid| uid != u32::MAX);
    rules.uid = Some(parsed.ok_or_else(|| alloc::format!("`{}` is no user id", Shown(uid)))?);
    rules.directory = directory;
    Ok(rules)
}

/// The operands are those of a service's interpreter: its file, then its argument.
fn service(mut rules: Rules, operands: &[&[u8]]) -> Result<Rules, String> {
    match operands {
        [_] => Ok(rules),
        [_, b"allow-all-names"] => {
            rules.all_names = true;
            Ok(rules)
        }
        [_, argument] => Err(alloc::format!("qubes.Filecopy takes no argument `{}`", Shown(argument))),
        _ => Err("qubes.Filecopy has one argument at most".into()),
    }
}
