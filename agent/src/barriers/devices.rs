//! `/dev` holds the harmless devices and nothing else.

use alloc::vec::Vec;

use rustix::fs::{AtFlags, FileType, CWD};

use super::files::names;
use super::Finding;
use crate::speak::Reason;

const NAME: &str = "devices";
/// Devices that must be there, with their numbers.
const REQUIRED: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// The door to the qube's own terminals.
const TERMINALS: (&str, u32, u32) = ("ptmx", 5, 2);
const DIRECTORIES: [&str; 3] = ["pts", "shm", "mqueue"];
const LINKS: [&str; 6] = ["fd", "stdin", "stdout", "stderr", "ptmx", "core"];

fn is_expected(name: &str, kind: FileType, device: u64) -> bool {
    let known = |&(known, major, minor): &(&str, u32, u32)| {
        known == name && device == rustix::fs::makedev(major, minor)
    };
    match kind {
        FileType::CharacterDevice => REQUIRED.iter().any(known) || known(&TERMINALS),
        FileType::Directory => DIRECTORIES.contains(&name),
        FileType::Symlink => LINKS.contains(&name),
        _ => false,
    }
}

/// Look at every entry.
pub fn exact_set() -> Finding {
    let found = match names("/dev") {
        Ok(found) => found,
        Err(error) => {
            return Finding::new(
                NAME,
                false,
                alloc::format!("cannot list /dev: {error}", error = Reason(error)),
            )
        }
    };
    let mut faults = Vec::new();
    for name in &found {
        let metadata =
            rustix::fs::statat(CWD, alloc::format!("/dev/{name}").as_str(), AtFlags::SYMLINK_NOFOLLOW);
        let expected = metadata
            .is_ok_and(|found| is_expected(name, FileType::from_raw_mode(found.st_mode), found.st_rdev));
        if !expected {
            faults.push(alloc::format!("unexpected /dev/{name}"));
        }
    }
    for (name, _, _) in REQUIRED {
        if !found.iter().any(|found| found == name) {
            faults.push(alloc::format!("/dev/{name} is missing"));
        }
    }
    for name in names("/dev/pts").unwrap_or_default() {
        if name != "ptmx" {
            faults.push(alloc::format!("a terminal is already there: /dev/pts/{name}"));
        }
    }
    Finding::from_faults(NAME, &faults, found.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A harmless name does not excuse another device behind it.
    #[test]
    fn devices_are_known_by_number() {
        let device = FileType::CharacterDevice;
        assert!(is_expected("null", device, rustix::fs::makedev(1, 3)));
        assert!(!is_expected("null", device, rustix::fs::makedev(1, 1)));
        assert!(!is_expected("mem", device, rustix::fs::makedev(1, 1)));
        assert!(!is_expected("null", FileType::BlockDevice, rustix::fs::makedev(1, 3)));
        assert!(!is_expected("null", FileType::RegularFile, 0));
        assert!(is_expected("fd", FileType::Symlink, 0));
        assert!(!is_expected("disk", FileType::Directory, 0));
    }
}
