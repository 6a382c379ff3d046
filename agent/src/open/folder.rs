//! A fresh directory for one received file, and its removal whatever was put there.

use alloc::vec::Vec;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, CWD};
use rustix::io::Errno;

use crate::flow;
use crate::text::c_string;

const ATTEMPTS: usize = 100;
/// Directories inside each other that are removed; deeper ones stay, and the folder with them.
const DEEPEST: usize = 32;
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory of our own below `/tmp`.
pub struct Folder {
    /// Its absolute path.
    pub path: Vec<u8>,
    /// Opened, so that nobody can put another in its place.
    pub fd: OwnedFd,
}

impl Folder {
    /// Make `<parent>/<stem>-XXXXXX`, for us alone.
    pub fn fresh(parent: &[u8], stem: &[u8]) -> Result<Self, Errno> {
        for _ in 0..ATTEMPTS {
            let path = [parent, b"/", stem, b"-", &random_letters()?].concat();
            match rustix::fs::mkdir(&path[..], Mode::RWXU) {
                Ok(()) => {
                    return Ok(Self { fd: rustix::fs::open(&path[..], DIRECTORY, Mode::empty())?, path })
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::EXIST)
    }

    /// The path of a file in it.
    pub fn path_of(&self, name: &[u8]) -> Vec<u8> {
        [&self.path[..], b"/", name].concat()
    }

    /// Remove it with all that it holds; links are removed, never followed.
    pub fn remove(self) -> Result<(), Errno> {
        empty(&self.fd, DEEPEST)?;
        rustix::fs::unlinkat(CWD, &self.path[..], AtFlags::REMOVEDIR)
    }
}

/// Six letters and digits that nobody can guess.
pub fn random_letters() -> Result<[u8; 6], Errno> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";
    let source = rustix::fs::open(&b"/dev/urandom"[..], OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut letters = [0; 6];
    if flow::read_full(source, &mut letters)? < letters.len() {
        return Err(Errno::IO);
    }
    Ok(letters.map(|byte| ALPHABET[usize::from(byte % 64)]))
}

fn empty(directory: &OwnedFd, depth: usize) -> Result<(), Errno> {
    // Names first: the listing must not change while it is read.
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(c_string(&[entry.file_name().to_bytes()]));
        }
    }
    for name in names {
        let found = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
            rustix::fs::unlinkat(directory, &name, AtFlags::empty())?;
            continue;
        }
        if depth == 0 {
            return Err(Errno::NAMETOOLONG);
        }
        let inner = rustix::fs::openat(directory, &name, DIRECTORY, Mode::empty())?;
        empty(&inner, depth - 1)?;
        rustix::fs::unlinkat(directory, &name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::{symlink, PermissionsExt};
    use std::path::PathBuf;

    /// A folder is for its owner alone, and two are never the same.
    #[test]
    fn folders_are_fresh_and_private() {
        let (one, two) = (Folder::fresh(b"/tmp", b"work").unwrap(), Folder::fresh(b"/tmp", b"work").unwrap());
        assert_ne!(one.path, two.path);
        assert!(one.path.starts_with(b"/tmp/work-") && one.path.len() == "/tmp/work-XXXXXX".len());
        let path = PathBuf::from(std::ffi::OsString::from_vec(one.path.clone()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
        one.remove().unwrap();
        two.remove().unwrap();
        assert!(!path.exists());
    }

    /// Removal follows no link out of the folder (the class of CVE-2025-31133).
    #[test]
    fn removal_stays_inside() {
        let outside = Folder::fresh(b"/tmp", b"outside").unwrap();
        let inside = Folder::fresh(b"/tmp", b"inside").unwrap();
        let path =
            |folder: &Folder, name: &[u8]| PathBuf::from(std::ffi::OsString::from_vec(folder.path_of(name)));
        fs::write(path(&outside, b"kept"), b"x").unwrap();
        fs::create_dir_all(path(&inside, b"a/b")).unwrap();
        fs::write(path(&inside, b"a/b/c"), b"x").unwrap();
        symlink(path(&outside, b"."), path(&inside, b"a/link")).unwrap();
        inside.remove().unwrap();
        assert_eq!(fs::read(path(&outside, b"kept")).unwrap(), b"x");
        outside.remove().unwrap();
    }
}
