//! What a directory holds, read at once so that no directory is read while it is changed by us.

use alloc::vec::Vec;
use core::mem::MaybeUninit;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat, CWD};
use rustix::io::Errno;

use super::wire::Kind;

const CHUNK: usize = 32 * 1024;

/// The names in a directory, with what each is as far as the file system tells without a look.
#[derive(Default)]
pub struct Listing {
    names: Vec<u8>,
    /// End of each name in `names`, and its type.
    entries: Vec<(usize, FileType)>,
}

impl Listing {
    /// List a directory, without `.` and `..`.
    pub fn of(directory: BorrowedFd<'_>) -> Result<Self, Errno> {
        let mut listing = Self::default();
        let mut buffer = Vec::with_capacity(CHUNK);
        buffer.resize_with(CHUNK, MaybeUninit::uninit);
        let mut entries = RawDir::new(directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                listing.names.extend_from_slice(name);
                listing.entries.push((listing.names.len(), entry.file_type()));
            }
        }
        Ok(listing)
    }

    /// Each name and its type.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], FileType)> {
        let starts = core::iter::once(0).chain(self.entries.iter().map(|&(end, _)| end));
        starts.zip(&self.entries).map(|(start, &(end, kind))| (&self.names[start..end], kind))
    }
}

/// Where an argument of the command line lies: the directory that holds it, and its name there.
pub struct Start<'a> {
    /// The directory.
    pub parent: OwnedFd,
    /// One component; it becomes the name in the other qube.
    pub name: &'a [u8],
}

/// Find an argument; slashes at its end do not count. `INVAL` where it has no name of its own.
pub fn start(argument: &[u8]) -> Result<Start<'_>, Errno> {
    let (directory, name) = split(argument);
    if matches!(name, b"" | b"." | b"..") {
        return Err(Errno::INVAL);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(Start { parent: rustix::fs::openat(CWD, directory, flags, Mode::empty())?, name })
}

/// The name that an argument gets in the other qube.
pub fn own_name(argument: &[u8]) -> &[u8] {
    split(argument).1
}

fn split(argument: &[u8]) -> (&[u8], &[u8]) {
    let length = argument.iter().rposition(|&byte| byte != b'/').map_or(0, |at| at + 1);
    let argument = &argument[..length];
    match argument.iter().rposition(|&byte| byte == b'/') {
        Some(at) => (&argument[..=at], &argument[at + 1..]),
        None => (b".", argument),
    }
}

/// Look at a file without following it.
pub fn look(at: BorrowedFd<'_>, name: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// What a file is; a look at it only where the directory did not tell.
pub fn kind_of(at: BorrowedFd<'_>, name: &[u8], told: FileType) -> Result<Option<Kind>, Errno> {
    Ok(match told {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Directory),
        FileType::Symlink => Some(Kind::Link),
        FileType::Unknown => Kind::of_mode(look(at, name)?.st_mode),
        _ => None,
    })
}

/// Open a directory or a file to read it; what turned into a pipe or device is not waited for.
pub fn open_to_read(at: BorrowedFd<'_>, name: &[u8], more: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::openat(at.as_fd(), name, flags | more, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// Every name comes once, with its type.
    #[test]
    fn names_and_types() {
        let home = std::env::temp_dir().join(std::format!("listing-{}", std::process::id()));
        std::fs::create_dir(&home).unwrap();
        for at in 0..3000 {
            std::fs::write(home.join(std::format!("file {at}")), "").unwrap();
        }
        std::fs::create_dir(home.join("directory")).unwrap();
        let parent = start(home.to_str().unwrap().as_bytes()).unwrap();
        let opened = open_to_read(parent.parent.as_fd(), parent.name, OFlags::DIRECTORY).unwrap();
        let listing = Listing::of(opened.as_fd()).unwrap();
        let mut names: Vec<Vec<u8>> = listing.iter().map(|(name, _)| name.to_vec()).collect();
        let directories = listing.iter().filter(|(_, kind)| *kind == FileType::Directory).count();
        std::fs::remove_dir_all(&home).unwrap();
        names.sort();
        names.dedup();
        assert_eq!((names.len(), directories), (3001, 1));
    }

    /// An argument is split at its last name; one without a name is refused.
    #[test]
    fn arguments() {
        for (argument, name) in
            [("/etc/", "etc"), ("/etc/passwd", "passwd"), ("-x", "-x"), ("//etc///", "etc")]
        {
            assert_eq!(start(argument.as_bytes()).unwrap().name, name.as_bytes());
        }
        for wrong in ["", "/", ".", "..", "/etc/.", "/etc/..", "///"] {
            assert_eq!(start(wrong.as_bytes()).err(), Some(Errno::INVAL), "{wrong}");
        }
        assert_eq!(start(b"/nonexistent/x").err(), Some(Errno::NOENT));
    }
}
