//! Command line options as `getopt_long` of the GNU C library reads them, names cut short among
//! them; reading stops at the first argument that is none.

use alloc::string::String;
use core::ffi::CStr;

use crate::speak::{self, Shown};
use crate::sys::call;
use crate::text::split_once;

/// An option that a program knows.
pub struct Known {
    /// The letter after one dash, 0 for none.
    pub short: u8,
    /// The word after two dashes.
    pub long: &'static str,
    /// Whether a value follows.
    pub takes_value: bool,
}

impl Known {
    /// An option without a value.
    pub const fn flag(short: u8, long: &'static str) -> Self {
        Self { short, long, takes_value: false }
    }

    /// An option with a value.
    pub const fn value(short: u8, long: &'static str) -> Self {
        Self { short, long, takes_value: true }
    }
}

/// Reads options one by one.
pub struct Options<'a> {
    known: &'a [Known],
    rest: &'a [&'static CStr],
    letters: &'static [u8],
}

impl<'a> Options<'a> {
    /// Read from the arguments after the program's name.
    pub fn new(known: &'a [Known], arguments: &'a [&'static CStr]) -> Self {
        Self { known, rest: arguments, letters: b"" }
    }

    /// The next option by its long name, with its value (empty for a flag); `None` at the end.
    pub fn take(&mut self) -> Result<Option<(&'static str, &'static [u8])>, String> {
        if self.letters.is_empty() {
            let Some((first, rest)) = self.rest.split_first() else {
                return Ok(None);
            };
            let first: &'static [u8] = first.to_bytes();
            match first {
                b"--" => {
                    self.rest = rest;
                    return Ok(None);
                }
                [b'-', b'-', word @ ..] => {
                    self.rest = rest;
                    return self.word(word).map(Some);
                }
                [b'-', letters @ ..] if !letters.is_empty() => {
                    self.rest = rest;
                    self.letters = letters;
                }
                _ => return Ok(None),
            }
        }
        self.letter().map(Some)
    }

    /// What follows the options.
    pub fn operands(self) -> &'a [&'static CStr] {
        self.rest
    }

    fn following(&mut self, name: &str) -> Result<&'static [u8], String> {
        let (first, rest) =
            self.rest.split_first().ok_or_else(|| alloc::format!("option `--{name}` needs a value"))?;
        self.rest = rest;
        Ok(first.to_bytes())
    }

    fn word(&mut self, word: &'static [u8]) -> Result<(&'static str, &'static [u8]), String> {
        let (name, given) = match split_once(word, b'=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        let known = self.named(name)?;
        match (known.takes_value, given) {
            (true, Some(value)) => Ok((known.long, value)),
            (true, None) => Ok((known.long, self.following(known.long)?)),
            (false, None) => Ok((known.long, b"")),
            (false, Some(_)) => Err(alloc::format!("option `--{}` takes no value", known.long)),
        }
    }

    /// The option of this name, else the only one whose name begins so.
    fn named(&self, name: &[u8]) -> Result<&'a Known, String> {
        let mut beginning = self.known.iter().filter(|known| known.long.as_bytes().starts_with(name));
        if let Some(exact) = self.known.iter().find(|known| known.long.as_bytes() == name) {
            return Ok(exact);
        }
        match (beginning.next(), beginning.next()) {
            (Some(only), None) => Ok(only),
            (Some(_), Some(_)) => Err(alloc::format!("`--{}` begins several options", Shown(name))),
            (None, _) => Err(alloc::format!("unknown option `--{}`", Shown(name))),
        }
    }

    fn letter(&mut self) -> Result<(&'static str, &'static [u8]), String> {
        let (letter, others) = self.letters.split_first().unwrap_or((&0, b""));
        let known = self
            .known
            .iter()
            .find(|known| known.short == *letter && *letter != 0)
            .ok_or_else(|| alloc::format!("unknown option `-{}`", Shown(&[*letter])))?;
        if !known.takes_value {
            self.letters = others;
            return Ok((known.long, b""));
        }
        self.letters = b"";
        Ok((known.long, if others.is_empty() { self.following(known.long)? } else { others }))
    }
}

/// What a program with one option beside `--help` was given: the option's value, and what follows.
pub type Given<'a> = (Option<&'static [u8]>, &'a [&'static CStr]);

/// Read the command line of such a program. Where that is the end of it, with help or an error told,
/// the exit code.
///
/// Of `known` the first is the option, and the other `--help`.
pub fn one_option<'a>(
    program: &str,
    usage: &str,
    known: &'a [Known; 2],
    arguments: &'a [&'static CStr],
) -> Result<Given<'a>, i32> {
    let mut options = Options::new(known, arguments);
    let mut given = None;
    loop {
        match options.take() {
            Ok(Some((name, value))) if name == known[0].long => given = Some(value),
            Ok(Some(_)) => {
                let _ = rustix::io::write(call::standard(1), usage.as_bytes());
                return Err(0);
            }
            Ok(None) => return Ok((given, options.operands())),
            Err(text) => return Err(speak::wrong_usage(program, &text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const KNOWN: [Known; 4] = [
        Known::flag(b't', "filter"),
        Known::value(b'p', "prefix"),
        Known::flag(0, "long-only"),
        Known::flag(0, "filter-more"),
    ];

    type Found = (Vec<(&'static str, &'static [u8])>, usize);

    fn read(arguments: &[&'static [u8]]) -> Result<Found, String> {
        let arguments: Vec<&'static CStr> =
            arguments.iter().map(|text| CStr::from_bytes_with_nul(text).unwrap()).collect();
        let mut options = Options::new(&KNOWN, &arguments);
        let mut found = Vec::new();
        while let Some(option) = options.take()? {
            found.push(option);
        }
        let left = options.operands().len();
        Ok((found, left))
    }

    /// All spellings of a value and of joined letters.
    #[test]
    fn spellings() {
        let both = std::vec![("filter", &b""[..]), ("prefix", &b"x"[..])];
        for spelling in [
            &[&b"-tpx\0"[..], b"a\0"][..],
            &[b"-t\0", b"-p\0", b"x\0", b"a\0"],
            &[b"--filter\0", b"--prefix=x\0", b"a\0"],
            &[b"--filter\0", b"--prefix\0", b"x\0", b"--\0", b"-t\0"],
            &[b"--filter\0", b"--p\0", b"x\0", b"a\0"],
            &[b"-t\0", b"--pre=x\0", b"a\0"],
        ] {
            assert_eq!(read(spelling), Ok((both.clone(), 1)));
        }
        assert_eq!(read(&[b"a\0", b"-t\0"]), Ok((std::vec![], 2)));
        assert_eq!(read(&[b"\0", b"-\0"]), Ok((std::vec![], 2)));
    }

    /// Mistakes are named.
    #[test]
    fn mistakes() {
        for wrong in [&[&b"-x\0"[..]][..], &[b"--filter=1\0"], &[b"--prefix\0"], &[b"-p\0"], &[b"--fil\0"]] {
            assert!(read(wrong).is_err());
        }
    }
}
