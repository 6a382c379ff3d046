//! Pictures between qubes, as plain pixels: a format so simple that its reader cannot be fooled.
//!
//! | name | what |
//! |---|---|
//! | `qubes-image-source` | service `qubes.GetImageRGBA`: a picture of this qube, or one that is sent |
//! | `qubes-get-image` | get a picture of another qube |
//! | `qvm-convert-img` | send a picture through a disposable, so that what comes back is harmless |

pub mod converter;
pub mod format;
pub mod netpbm;
pub mod png;
pub mod receive;
pub mod request;
pub mod size;
pub mod source;

use core::ffi::CStr;

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};

use crate::arguments::{Known, Options};
use crate::flow;
use crate::image::receive::Wish;
use crate::image::request::Request;
use crate::image::size::{LARGEST, LARGEST_ICON};
use crate::speak::{self, Reason, Shown};
use crate::sys::call;
use crate::{code, process, say};

const KNOWN: [Known; 2] = [Known::flag(0, "icon"), Known::flag(b'h', "help")];
const USAGE_GET: &str = "\
usage: qubes-get-image [--icon] QUBE PATH|xdgicon:NAME OUT.png

Get a picture of another qube as a PNG file that is made here. `-` as OUT is standard output.

  --icon       take at most 2048 x 2048 pixels, instead of 8192 x 5120
  -h, --help   show this
";
const USAGE_CONVERT: &str = "\
usage: qvm-convert-img IN OUT.png

Convert a picture in a new disposable. What comes back are plain pixels, of which a PNG file is made
here: nothing that was hidden in IN reaches OUT. `-` as IN or OUT is standard input or output.
";

/// Run under one of the three names, with the arguments after it; the exit code.
pub fn run(name: &[u8], arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    process::occupy_standard_descriptors();
    if name == b"qubes-image-source" {
        return source::run(environment);
    }
    let converting = name == b"qvm-convert-img";
    let wrong = |text: &str| wrong(converting, text);
    let mut options = Options::new(&KNOWN, arguments);
    let mut bound = LARGEST;
    loop {
        match options.take() {
            Ok(None) => break,
            Ok(Some(("icon", _))) => bound = LARGEST_ICON,
            Ok(Some(_)) => {
                let usage = if converting { USAGE_CONVERT } else { USAGE_GET };
                let _ = flow::write_all(call::standard(1), usage.as_bytes());
                return 0;
            }
            Err(text) => return wrong(&text),
        }
    }
    let (target, what, output) = match (converting, options.operands()) {
        (true, [input, output]) => (&b"@dispvm"[..], input.to_bytes(), output.to_bytes()),
        (false, [target, what, output]) => (target.to_bytes(), what.to_bytes(), output.to_bytes()),
        (true, _) => return wrong("expected a picture and the file to make"),
        (false, _) => return wrong("expected a qube, a picture and the file to make"),
    };
    if output != b"-" && !output.to_ascii_lowercase().ends_with(b".png") {
        return wrong("the file to make is a PNG, so its name ends with `.png`");
    }
    let (line, content) = if converting {
        match open(what) {
            Ok(content) => (b"-\n".to_vec(), Some(content)),
            Err(error) => {
                say!("error: cannot read `{}`: {}", Shown(what), Reason(error));
                return code::FAILURE;
            }
        }
    } else {
        match Request::parse(what) {
            Some(Request::File(_) | Request::Icon(_)) if !what.contains(&b'\n') => {
                ([what, b"\n"].concat(), None)
            }
            _ => return wrong("a picture is an absolute path or `xdgicon:NAME`"),
        }
    };
    receive::get(&Wish { target, line, content, output, bound, environment })
}

fn open(path: &[u8]) -> rustix::io::Result<OwnedFd> {
    if path == b"-" {
        return rustix::io::fcntl_dupfd_cloexec(call::standard(0), 3);
    }
    rustix::fs::open(path, OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
}

fn wrong(converting: bool, text: &str) -> i32 {
    speak::wrong_usage(if converting { "qvm-convert-img" } else { "qubes-get-image" }, text)
}
