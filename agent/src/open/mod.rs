//! Files and addresses opened in another qube.
//!
//! | name | side |
//! |---|---|
//! | `qvm-open-in-vm`, `qvm-open-in-dvm` | asks; trusts neither what comes back nor how long it is |
//! | `vm-file-editor` | service `qubes.OpenInVM` |
//! | `qubes-open-url` | service `qubes.OpenURL` |
//!
//! Names and addresses of the other side become types here, and reach a program as one argument.

pub mod folder;
pub mod name;
pub mod opener;
pub mod place;
pub mod receiver;
pub mod sender;
pub mod url;

use core::ffi::CStr;

use crate::arguments::{Known, Options};
use crate::flow::{self, Line};
use crate::open::opener::Kind;
use crate::open::sender::Wish;
use crate::speak::{self, Reason, Shown};
use crate::sys::call;
use crate::text::decimal;
use crate::{code, environment, process, say};

/// A file that is opened elsewhere has so many bytes at most, and so has what comes back.
const LARGEST: u64 = 1 << 30;
/// Variable with another bound, in bytes.
const LIMIT: &[u8] = b"QUBES_OPEN_LIMIT";
const KNOWN: [Known; 2] = [Known::flag(0, "view-only"), Known::flag(b'h', "help")];
const USAGE_VM: &str = "\
usage: qvm-open-in-vm [--view-only] QUBE FILE|ADDRESS

Open a file in another qube, and put what was changed there in its place.
An address (http, https, ftp) is opened in the other qube's browser.
";
const USAGE_DVM: &str = "\
usage: qvm-open-in-dvm [--view-only] FILE|ADDRESS

Open a file in a new disposable, and put what was changed there in its place.
An address (http, https, ftp) is opened in the disposable's browser.
";
const USAGE_REST: &str = "
  --view-only   nothing comes back: the file stays as it is
  -h, --help    show this

A file has 1 GiB at most, in both directions; QUBES_OPEN_LIMIT sets another bound in bytes.
Exit code: 0 opened, and closed again; 1 trouble; 126 refused; others are those of the call.
";

/// Run under one of the four names, with the arguments after it; the exit code.
pub fn run(name: &[u8], arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    process::occupy_standard_descriptors();
    let Some(bound) = limit(environment) else {
        say!("error: `QUBES_OPEN_LIMIT` is not a number of bytes");
        return code::USAGE;
    };
    match name {
        b"vm-file-editor" => receiver::run(bound, environment),
        b"qubes-open-url" => serve_address(environment),
        _ => ask(name == b"qvm-open-in-dvm", bound, arguments, environment),
    }
}

/// The bound that holds for us; `None` where it was set to what is no number.
fn limit(environment: &[&CStr]) -> Option<u64> {
    environment::get(environment, LIMIT).map_or(Some(LARGEST), decimal)
}

/// Say that a file is too large; the exit code.
fn say_limit(bound: u64) -> i32 {
    say!("error: the file is larger than {bound} bytes");
    say!("hint: copy it with `qvm-copy`, or set `QUBES_OPEN_LIMIT` to a number of bytes in both qubes");
    code::FAILURE
}

fn ask(disposable: bool, bound: u64, arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    let wrong = |text: &str| wrong(disposable, text);
    let usage = if disposable { USAGE_DVM } else { USAGE_VM };
    let mut options = Options::new(&KNOWN, arguments);
    let mut view_only = false;
    loop {
        match options.take() {
            Ok(None) => break,
            Ok(Some(("view-only", _))) => view_only = true,
            Ok(Some(_)) => {
                let _ = flow::write_all(call::standard(1), usage.as_bytes());
                let _ = flow::write_all(call::standard(1), USAGE_REST.as_bytes());
                return 0;
            }
            Err(text) => return wrong(&text),
        }
    }
    let (target, what) = match (disposable, options.operands()) {
        (true, [what]) => (&b"@dispvm"[..], what.to_bytes()),
        (false, [target, what]) => (target.to_bytes(), what.to_bytes()),
        (true, _) => return wrong("expected one file or address"),
        (false, _) => return wrong("expected a qube and one file or address"),
    };
    let wish = Wish { target, view_only, bound, environment };
    if url::looks_like_one(what) {
        return sender::open_address(&wish, what);
    }
    let path = url::path_of(what);
    sender::open_file(&wish, path.as_deref().unwrap_or(what))
}

/// Service `qubes.OpenURL`: one line with an address.
fn serve_address(environment: &[&CStr]) -> i32 {
    let line = match flow::read_line(call::standard(0), url::LONGEST) {
        Ok(Line::Whole(line)) => line,
        Ok(Line::TooLong(_)) => return refuse(&url::Wrong::Length),
        _ => return refuse(&url::Wrong::Scheme),
    };
    let address = match url::check(&line) {
        Ok(address) => address,
        Err(wrong) => return refuse(&wrong),
    };
    let Some(program) = opener::find(Kind::Address, environment) else {
        opener::say_missing(Kind::Address);
        return code::FAILURE;
    };
    match opener::run(program, &address, environment) {
        Ok(0) => 0,
        Ok(code) => {
            say!("error: `{}` ended with code {code}", Shown(program));
            code::FAILURE
        }
        Err(error) => {
            say!("error: cannot start `{}`: {}", Shown(program), Reason(error));
            code::FAILURE
        }
    }
}

fn refuse(wrong: &url::Wrong) -> i32 {
    say!("error: the address is not opened: {}", wrong.text());
    code::FAILURE
}

fn wrong(disposable: bool, text: &str) -> i32 {
    speak::wrong_usage(if disposable { "qvm-open-in-dvm" } else { "qvm-open-in-vm" }, text)
}
