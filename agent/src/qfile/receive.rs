//! Receive a stream: judge each entry, do it, and answer with one result.

use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::event::Timespec;
use rustix::fd::OwnedFd;
use rustix::fs::Mode;
use rustix::io::Errno;

use super::barriers;
use super::codes;
use super::input::Input;
use super::names;
use super::place::{self, Place};
use super::wire::{Header, Kind, Next, Outcome, HEADER};
use crate::process::occupy_standard_descriptors;
use crate::speak::{Reason, Shown};
use crate::sys::call;
use crate::{code, environment, flow, say};

/// A link's target is no longer on Linux.
const LONGEST_TARGET: u64 = 4095;
/// So long is waited for space, in milliseconds, and so often is it looked at.
const PATIENCE_FOR_SPACE: i64 = 600_000;
const LOOK_AGAIN: i64 = 100_000_000;
const FLAT_MODE: u32 = 0o100_644;

/// What the command line asks for.
pub struct Rules {
    /// Name each file on standard error.
    pub verbose: bool,
    /// Wait until a file fits and so many bytes stay free.
    pub keep_free: Option<u64>,
    /// Lift the rule about characters.
    pub all_names: bool,
    /// Lift the rules about links.
    pub unsafe_links: bool,
    /// Plain files only.
    pub flat: bool,
    /// Ends that a name of a plain file may have; any where none is given.
    pub suffixes: Vec<&'static [u8]>,
    /// Content in all.
    pub most_bytes: u64,
    /// Entries in all.
    pub most_files: u64,
    /// Seconds without a byte.
    pub most_silence: u64,
    /// Started as the interpreter of a service.
    pub service: bool,
    /// Who to become.
    pub uid: Option<u32>,
    /// Where files go; `QubesIncoming` where it is not said.
    pub directory: Option<&'static [u8]>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            verbose: false,
            keep_free: None,
            all_names: false,
            unsafe_links: false,
            flat: false,
            suffixes: Vec::new(),
            most_bytes: u64::MAX,
            most_files: u64::MAX,
            most_silence: 600,
            service: false,
            uid: None,
            directory: None,
        }
    }
}

/// Why receiving ends before the end of the stream.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// With a result that says so.
    Code(u32),
    /// Without a result: the stream makes no sense.
    NoSense,
}

impl From<u32> for Stop {
    fn from(code: u32) -> Self {
        Self::Code(code)
    }
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        Self::Code(codes::of(error))
    }
}

/// Receive from standard input; the exit code.
pub fn run(rules: Rules, environment: &[&'static CStr]) -> i32 {
    occupy_standard_descriptors();
    call::ignore_broken_pipes();
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    if let Some(uid) = rules.uid {
        if let Err(error) = barriers::become_user(uid) {
            say!("error: cannot become user `{uid}`: {error}", error = Reason(error));
            return code::FAILURE;
        }
    }
    let Some(directory) = open_directory(&rules, environment) else {
        return code::FAILURE;
    };
    let Some(confined) = barriers::raise(directory, rules.flat, rules.most_bytes) else {
        return code::FAILURE;
    };
    let input = Input::new(call::standard(0), rules.most_silence);
    Receiver { input, place: Place::new(confined), rules, last: Vec::new(), bytes: 0, files: 0 }.run()
}

fn open_directory(rules: &Rules, environment: &[&'static CStr]) -> Option<OwnedFd> {
    if let Some(path) = rules.directory {
        return place::open_given(path)
            .map_err(|error| say!("error: cannot open `{}`: {error}", Shown(path), error = Reason(error)))
            .ok();
    }
    let source = environment::get(environment, b"QREXEC_REMOTE_DOMAIN").unwrap_or(b"");
    if !place::is_qube_name(source) {
        say!("error: QREXEC_REMOTE_DOMAIN does not name a qube: `{}`", Shown(source));
        say!("hint: name a directory, as in `qfile-unpacker 1000 DIR`");
        return None;
    }
    let home = home(environment);
    place::open_incoming(&home, source)
        .map_err(|error| {
            let (home, source) = (Shown(&home), Shown(source));
            say!("error: cannot use `{home}/QubesIncoming/{source}`: {error}", error = Reason(error));
            say!("hint: it and its parent must be directories of this user, not links");
        })
        .ok()
}

/// The home directory of who we are.
fn home(environment: &[&'static CStr]) -> Vec<u8> {
    let uid = rustix::process::geteuid().as_raw();
    let passwd = crate::users::read_file(b"/etc/passwd").unwrap_or_default();
    match environment::get(environment, b"HOME") {
        Some(home) if home.starts_with(b"/") => home.to_vec(),
        _ => crate::users::find_id(&passwd, uid).map_or(b"/".to_vec(), |user| user.home.to_vec()),
    }
}

struct Receiver<'a> {
    input: Input<'a>,
    place: Place,
    rules: Rules,
    last: Vec<u8>,
    bytes: u64,
    files: u64,
}

impl Receiver<'_> {
    fn run(mut self) -> i32 {
        let code = loop {
            match self.entry() {
                Ok(true) => {}
                Ok(false) => break self.place.flush().map_or_else(codes::of, |()| codes::DONE),
                Err(Stop::Code(code)) => break code,
                Err(Stop::NoSense) => {
                    say!("error: the sender sent a time that is none");
                    return code::FAILURE;
                }
            }
        };
        let checksum = u64::from(self.input.checksum());
        answer(&Outcome { code, checksum, last_name: core::mem::take(&mut self.last) });
        match code & 0xff {
            0 if code != codes::DONE => code::FAILURE,
            low => low as i32,
        }
    }

    /// Receive one entry; false where the stream has ended.
    fn entry(&mut self) -> Result<bool, Stop> {
        let mut bytes = [0; HEADER];
        bytes.copy_from_slice(self.input.take(HEADER)?);
        let header = match Next::parse(&bytes) {
            Next::Entry(header) => header,
            Next::End => return Ok(false),
            Next::NameTooLong => return Err(Stop::Code(codes::NAME_TOO_LONG)),
            Next::WrongTime => return Err(Stop::NoSense),
        };
        let name = self.input.take(header.name_length as usize)?;
        self.last.clear();
        self.last.extend_from_slice(names::c_text(name));
        let name = core::mem::take(&mut self.last);
        let done = self.named(&name, &header);
        self.last = name;
        done.map(|()| true)
    }

    fn named(&mut self, name: &[u8], header: &Header) -> Result<(), Stop> {
        if self.rules.flat {
            names::check_flat(name, &self.rules.suffixes)?;
        } else {
            names::check(name, self.rules.all_names)?;
        }
        let kind = match Kind::of_mode(header.mode) {
            Some(kind) if kind == Kind::File || !self.rules.flat => kind,
            _ => return Err(Stop::Code(codes::WRONG_KIND)),
        };
        self.count(kind, header)?;
        if self.rules.verbose {
            say!("{}", Shown(name));
        }
        match kind {
            Kind::File => self.file(name, header),
            Kind::Directory => Ok(self.place.directory(name, header)?),
            Kind::Link => self.link(name, header),
        }
    }

    /// Charge an entry before anything of it is done.
    fn count(&mut self, kind: Kind, header: &Header) -> Result<(), Stop> {
        let length = if kind == Kind::Directory { 0 } else { header.length };
        self.bytes = self.bytes.checked_add(length).ok_or(Stop::Code(codes::OVER_QUOTA))?;
        self.files += 1;
        if self.bytes > self.rules.most_bytes || self.files > self.rules.most_files {
            return Err(Stop::Code(codes::OVER_QUOTA));
        }
        Ok(())
    }

    fn file(&mut self, name: &[u8], header: &Header) -> Result<(), Stop> {
        if let Some(keep) = self.rules.keep_free {
            self.wait_for_space(header.length.saturating_add(keep))?;
        }
        let file = self.place.begin_file(name, header.length)?;
        let mut left = header.length;
        while left > 0 {
            let bytes = self.input.take_some(left)?;
            left -= bytes.len() as u64;
            file.write(bytes)?;
        }
        let flat = Header { mode: FLAT_MODE, ..*header };
        let header = if self.rules.flat { &flat } else { header };
        Ok(self.place.finish_file(file, name, header)?)
    }

    fn link(&mut self, name: &[u8], header: &Header) -> Result<(), Stop> {
        if header.length > LONGEST_TARGET {
            return Err(Stop::Code(codes::NAME_TOO_LONG));
        }
        let target = names::c_text(self.input.take(header.length as usize)?);
        if !self.rules.unsafe_links {
            names::check_link(name, target, self.rules.all_names)?;
        }
        Ok(self.place.link(name, target)?)
    }

    fn wait_for_space(&self, wanted: u64) -> Result<(), Stop> {
        let deadline = call::milliseconds() + PATIENCE_FOR_SPACE;
        while self.place.free_bytes()? < wanted {
            if call::milliseconds() >= deadline {
                return Err(Stop::Code(codes::of(Errno::NOSPC)));
            }
            // Nothing announces that space was freed.
            let pause = Timespec { tv_sec: 0, tv_nsec: LOOK_AGAIN };
            let _ = rustix::event::poll(&mut [], Some(&pause));
        }
        Ok(())
    }
}

/// Write the result; a sender that is gone does not need it.
fn answer(outcome: &Outcome) {
    let _ = flow::write_all(call::standard(1), &outcome.encode());
}
