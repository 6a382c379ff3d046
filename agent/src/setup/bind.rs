//! Keep chosen paths of the root file system, which else begins anew at each start.
//!
//! What is kept lies in `/rw/bind-dirs`, with its path; at the first time it is copied there. A qube
//! that may mount sees it in its place; where mounting is refused, as in a container, a link leads
//! there.

use alloc::ffi::CString;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use super::config::{self, checked, parse};
use super::{entries, variables};
use crate::code;
use crate::facts;
use crate::say;
use crate::speak::{Reason, Shown};
use crate::sys::call;
use crate::text::c_string;
use crate::users::read_file;

/// Where settings are, what comes with the template first.
const DIRECTORIES: [&[u8]; 3] =
    [b"/usr/lib/qubes-bind-dirs.d", b"/usr/local/etc/qubes-bind-dirs.d", b"/rw/config/qubes-bind-dirs.d"];
const KEPT: &[u8] = b"/rw/bind-dirs";
/// Where the originals go that a link takes the place of; gone with the root file system.
const ORIGINALS: &[u8] = b"/.before-bind-dirs";
const COPY: &[u8] = b"/bin/cp";
/// Settings are no longer, in bytes.
const LARGEST: usize = 1 << 16;

/// Whether some settings are there.
pub fn needed() -> bool {
    DIRECTORIES.iter().any(|directory| !entries(directory, b".conf").is_empty())
}

/// Make all paths ready; how many things failed. Each is told, and does not keep the others.
pub fn all() -> usize {
    // Where the root file system is kept anyway, a copy would only hide it.
    if facts::value_of(b"/qubes-vm-persistence").as_deref() == Some(b"full") {
        return 0;
    }
    let mut failures = 0;
    for (number, path) in wanted(&mut failures).iter().enumerate() {
        let done = checked(path).map_err(ToString::to_string).and_then(|path| keep(path, number));
        if let Err(reason) = done {
            say!("warning: `{}` is not kept: {reason}", Shown(path));
            failures += 1;
        }
    }
    failures
}

/// The paths of all settings, each once.
fn wanted(failures: &mut usize) -> Vec<Vec<u8>> {
    let mut paths: Vec<Vec<u8>> = Vec::new();
    for file in DIRECTORIES.iter().flat_map(|directory| entries(directory, b".conf")) {
        let shown = Shown(file.to_bytes());
        let found = match read_file(file.to_bytes()) {
            Ok(content) if content.len() <= LARGEST => {
                parse(&content).map_err(|line| alloc::format!("`{shown}` makes no sense in line {line}"))
            }
            Ok(_) => Err(alloc::format!("`{shown}` is longer than {LARGEST} bytes")),
            Err(error) => Err(alloc::format!("cannot read `{shown}`: {error}", error = Reason(error))),
        };
        match found {
            Ok(found) => {
                if found.anew {
                    paths.clear();
                }
                for path in found.paths {
                    if !paths.contains(&path) && paths.len() < config::MOST {
                        paths.push(path);
                    }
                }
            }
            Err(reason) => {
                say!("warning: {reason}: nothing in it is kept");
                *failures += 1;
            }
        }
    }
    paths
}

fn kind(path: &CString) -> Option<FileType> {
    rustix::fs::lstat(path).ok().map(|found| FileType::from_raw_mode(found.st_mode))
}

/// Make one path ready.
fn keep(path: &[u8], number: usize) -> Result<(), String> {
    let (place, kept) = (c_string(&[path]), c_string(&[KEPT, path]));
    let there = kind(&place);
    if there == Some(FileType::Symlink) {
        return match rustix::fs::readlink(&place, Vec::new()) {
            Ok(text) if text == kept => Ok(()),
            _ => Err("it is a link; name what it leads to".into()),
        };
    }
    if kind(&kept).is_none() {
        if there.is_none() {
            return Err("there is no such path to begin with".into());
        }
        make_directories(KEPT, parent(path))?;
        copy(&place, &kept)?;
    }
    if there.is_none() {
        make_directories(b"", parent(path))?;
        return link(&kept, &place);
    }
    match call::bind_mount(&kept, &place) {
        Ok(()) => Ok(()),
        Err(Errno::PERM | Errno::NOSYS | Errno::ACCESS) => {
            set_aside(&place, number)?;
            link(&kept, &place)
        }
        Err(error) => Err(because("mount it", error)),
    }
}

fn parent(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
    &path[..end]
}

fn make_directories(above: &[u8], path: &[u8]) -> Result<(), String> {
    let ends = (1..=path.len()).filter(|&at| at == path.len() || path[at] == b'/');
    for end in core::iter::once(0).chain(ends) {
        let directory = c_string(&[above, &path[..end]]);
        if directory.as_bytes().is_empty() {
            continue;
        }
        match rustix::fs::mkdir(&directory, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(because("make its directory", error)),
        }
    }
    Ok(())
}

/// Copy everything with its owners and times; half a copy does not stay under the name.
fn copy(from: &CString, to: &CString) -> Result<(), String> {
    let fresh = c_string(&[to.as_bytes(), b".new"]);
    remove(&fresh);
    let arguments = [&b"cp"[..], b"-a", b"-T", b"--"].map(|argument| c_string(&[argument]));
    let [name, all, exact, end] = &arguments;
    if !succeeds(COPY, &[name, all, exact, end, from, &fresh]) {
        remove(&fresh);
        return Err("it cannot be copied; see whether the private volume is full".into());
    }
    rustix::fs::rename(&fresh, to).map_err(|error| because("keep the copy", error))
}

fn remove(path: &CString) {
    if kind(path).is_some() {
        let arguments = [&b"rm"[..], b"-rf", b"--"].map(|argument| c_string(&[argument]));
        let [name, all, end] = &arguments;
        succeeds(b"/bin/rm", &[name, all, end, path]);
    }
}

fn succeeds(program: &[u8], arguments: &[&CString]) -> bool {
    let arguments: Vec<&core::ffi::CStr> = arguments.iter().map(|argument| argument.as_c_str()).collect();
    match call::fork() {
        Ok(None) => {
            call::execute(&c_string(&[program]), &arguments, &variables().entries());
            call::exit(code::NOT_FOUND)
        }
        Ok(Some(pid)) => matches!(call::wait_for(pid), Ok(0)),
        Err(_) => false,
    }
}

fn set_aside(place: &CString, number: usize) -> Result<(), String> {
    match rustix::fs::mkdir(ORIGINALS, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(because("set the original aside", error)),
    }
    let aside = c_string(&[ORIGINALS, alloc::format!("/{number}").as_bytes()]);
    rustix::fs::rename(place, &aside).map_err(|error| because("set the original aside", error))
}

fn link(kept: &CString, place: &CString) -> Result<(), String> {
    rustix::fs::symlink(kept, place).map_err(|error| because("lead there", error))
}

fn because(what: &str, error: Errno) -> String {
    alloc::format!("cannot {what}: {error}", error = Reason(error))
}
