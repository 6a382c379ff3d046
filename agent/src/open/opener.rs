//! Which program opens a file or an address, and running it.

use core::ffi::CStr;

use rustix::io::Errno;

use crate::program::{self, Streams};
use crate::text::c_string;
use crate::{environment, say};

/// A program of one's own that comes before all others: one argument, the path or the address.
const CHOSEN: &[u8] = b"QUBES_OPEN_WITH";
/// The owner of a qube puts `qubes-open` into `/usr/local/bin`, which PATH names first.
const FOR_FILES: [&[u8]; 2] = [b"qubes-open", b"xdg-open"];
const FOR_ADDRESSES: [&[u8]; 4] = [b"qubes-open", b"xdg-open", b"sensible-browser", b"x-www-browser"];

/// What is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file, by its absolute path.
    File,
    /// A checked address.
    Address,
}

/// The program for it.
pub fn find<'a>(kind: Kind, environment: &[&'a CStr]) -> Option<&'a [u8]> {
    if let Some(chosen) = environment::get(environment, CHOSEN) {
        return program::installed(chosen, environment).then_some(chosen);
    }
    match kind {
        Kind::File => program::first_installed(&FOR_FILES, environment),
        Kind::Address => program::first_installed(&FOR_ADDRESSES, environment),
    }
}

/// Say that there is none; whoever asked reads it, in another qube.
pub fn say_missing(kind: Kind) {
    let what = if kind == Kind::File { "files" } else { "addresses" };
    say!("error: the qube that was to open it has no program that opens {what}");
    say!("hint: install `xdg-utils` there, or put a program `qubes-open` into its `/usr/local/bin`");
}

/// Run it with `what` as its only argument, and wait; its exit code.
///
/// It gets no stdin, and what it prints does not go to the caller as content.
pub fn run(program: &[u8], what: &[u8], environment: &[&CStr]) -> Result<i32, Errno> {
    let (program, what) = (c_string(&[program]), c_string(&[what]));
    program::start(&[&program, &what], &Streams::default(), environment).map(program::code_of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::literal;

    /// The chosen program comes first; one that is missing is not replaced by another.
    #[test]
    fn choice() {
        let path = literal(b"PATH=/nonexistent\0");
        assert_eq!(find(Kind::File, &[path]), None);
        assert_eq!(find(Kind::File, &[path, literal(b"QUBES_OPEN_WITH=/bin/sh\0")]), Some(&b"/bin/sh"[..]));
        assert_eq!(find(Kind::Address, &[literal(b"QUBES_OPEN_WITH=/nonexistent/x\0")]), None);
    }
}
