//! Where desktop entries lie, and their IDs: the path below `applications`, with `-` for `/`.

use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::desktop::entry;
use crate::environment;
use crate::flow;

/// Directories inside each other that are looked through.
const DEEPEST: usize = 8;
/// Entries of one qube; more are not listed.
pub const MOST: usize = 4_000;
/// An ID is no longer than a file's name.
const LONGEST: usize = 255;
const SYSTEM: &[u8] = b"/usr/local/share:/var/lib/flatpak/exports/share:/usr/share";
const SUFFIX: &[u8] = b".desktop";

/// An ID without `.desktop`: letters, digits and `._-` and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id(Vec<u8>);

impl Id {
    /// Check an ID; `.desktop` at its end is dropped.
    pub fn new(untrusted_text: &[u8]) -> Option<Self> {
        let text = untrusted_text.strip_suffix(SUFFIX).unwrap_or(untrusted_text);
        let right = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        let first = *text.first()?;
        (first != b'.' && first != b'-' && text.len() + SUFFIX.len() <= LONGEST && text.iter().all(right))
            .then(|| Self(text.to_vec()))
    }

    /// Its text, without `.desktop`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The directories `applications`, the most important first.
pub fn directories(environment: &[&CStr]) -> Vec<Vec<u8>> {
    data_directories(environment).into_iter().map(|base| [&base[..], b"/applications"].concat()).collect()
}

/// The directories of data (XDG Base Directory Specification 0.8), the most important first.
pub fn data_directories(environment: &[&CStr]) -> Vec<Vec<u8>> {
    let home = environment::get(environment, b"HOME").unwrap_or(b"");
    let mut bases: Vec<Vec<u8>> = Vec::new();
    match environment::get(environment, b"XDG_DATA_HOME").filter(|path| path.starts_with(b"/")) {
        Some(own) => bases.push(own.to_vec()),
        None if home.starts_with(b"/") => bases.push([home, b"/.local/share"].concat()),
        None => {}
    }
    if home.starts_with(b"/") {
        bases.push([home, b"/.local/share/flatpak/exports/share"].concat());
    }
    let system =
        environment::get(environment, b"XDG_DATA_DIRS").filter(|list| !list.is_empty()).unwrap_or(SYSTEM);
    bases
        .extend(system.split(|&byte| byte == b':').filter(|path| path.starts_with(b"/")).map(<[u8]>::to_vec));
    bases
}

/// The file of an entry: the first directory that has one hides the others.
pub fn by_id(directories: &[Vec<u8>], id: &Id) -> Option<Vec<u8>> {
    let file = [id.as_bytes(), SUFFIX].concat();
    directories.iter().find_map(|directory| below(directory, &file, DEEPEST))
}

/// Look for the file, and for directories that the beginning of its name may stand for.
fn below(directory: &[u8], file: &[u8], depth: usize) -> Option<Vec<u8>> {
    let path = [directory, b"/", file].concat();
    if kind_of(&path) == Some(FileType::RegularFile) {
        return Some(path);
    }
    if depth == 0 {
        return None;
    }
    let dashes = file.iter().enumerate().filter(|(_, byte)| **byte == b'-').map(|(at, _)| at);
    dashes.filter(|&at| at > 0).find_map(|at| {
        let inner = [directory, b"/", &file[..at]].concat();
        let is_inside = !matches!(&file[..at], b"." | b"..") && kind_of(&inner) == Some(FileType::Directory);
        is_inside.then(|| below(&inner, &file[at + 1..], depth - 1)).flatten()
    })
}

fn kind_of(path: &[u8]) -> Option<FileType> {
    rustix::fs::stat(path).ok().map(|found| FileType::from_raw_mode(found.st_mode))
}

/// Read an entry's file: a regular one (links are followed, as packages use them), of bounded size.
pub fn read(path: &[u8]) -> Result<Vec<u8>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    flow::read_to_end(&file, entry::LARGEST).map_err(|trouble| match trouble {
        flow::Trouble::TooMuch => Errno::FBIG,
        flow::Trouble::Reading(error) | flow::Trouble::Writing(error) => error,
    })
}

/// All entries with their files, sorted by ID; of the same ID only the one that hides the others.
pub fn all(directories: &[Vec<u8>]) -> Vec<(Id, Vec<u8>)> {
    let mut found: Vec<(Id, Vec<u8>)> = Vec::new();
    for directory in directories {
        let mut here = Vec::new();
        walk(directory, b"", DEEPEST, &mut here);
        here.sort_unstable();
        let known = found.len();
        for (id, path) in here {
            // Entries of earlier directories are sorted, those of this one follow them.
            if found[..known].binary_search_by(|(other, _)| other.cmp(&id)).is_err() && found.len() < MOST {
                found.push((id, path));
            }
        }
        found.sort_unstable();
        found.dedup_by(|later, earlier| later.0 == earlier.0);
    }
    found
}

fn walk(directory: &[u8], prefix: &[u8], depth: usize, found: &mut Vec<(Id, Vec<u8>)>) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(opened) = rustix::fs::open(directory, flags, Mode::empty()) else { return };
    let Ok(listing) = Dir::read_from(&opened) else { return };
    for entry in listing.flatten() {
        let name = entry.file_name().to_bytes();
        if name.starts_with(b".") || found.len() >= MOST {
            continue;
        }
        let path = [directory, b"/", name].concat();
        let id = [prefix, name].concat();
        match kind_of(&path) {
            Some(FileType::RegularFile) if name.ends_with(SUFFIX) => {
                found.extend(Id::new(&id).map(|id| (id, path)));
            }
            Some(FileType::Directory) if depth > 0 => {
                walk(&path, &[&id[..], b"-"].concat(), depth - 1, found);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open::folder::Folder;
    use crate::text::tests_support::Generator;
    use std::fs;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    fn write(folder: &Folder, name: &str) {
        let path = PathBuf::from(std::ffi::OsString::from_vec(folder.path_of(name.as_bytes())));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }

    /// IDs name a path whatever slashes became dashes, and each entry that is listed is found by its ID.
    #[test]
    fn ids_and_paths() {
        let one = Folder::fresh(b"/tmp", b"entries").unwrap();
        let two = Folder::fresh(b"/tmp", b"entries").unwrap();
        for name in ["a.desktop", "kde/b-c.desktop", "x-y/z/d.desktop", "no.txt", ".e.desktop"] {
            write(&one, name);
        }
        for name in ["a.desktop", "org.f.desktop"] {
            write(&two, name);
        }
        let directories = [one.path.clone(), b"/nonexistent".to_vec(), two.path.clone()];
        let listed = all(&directories);
        let ids: Vec<&[u8]> = listed.iter().map(|(id, _)| id.as_bytes()).collect();
        assert_eq!(ids, [&b"a"[..], b"kde-b-c", b"org.f", b"x-y-z-d"]);
        for (id, path) in &listed {
            assert_eq!(by_id(&directories, id).as_ref(), Some(path));
        }
        assert!(listed[0].1.starts_with(&one.path));
        assert_eq!(by_id(&directories, &Id::new(b"kde-b").unwrap()), None);
        one.remove().unwrap();
        two.remove().unwrap();
    }

    /// No ID leads out of the directories.
    #[test]
    fn wrong_ids_are_refused() {
        for wrong in
            [&b""[..], b"..", b"../x", b"a/b", b"-x", b".x", b"a b", b"a\0", b".desktop", b"\x1b[0m", b"a+b"]
        {
            assert_eq!(Id::new(wrong), None, "{wrong:?}");
        }
        assert_eq!(Id::new(&[b'a'; 300]), None);
        assert_eq!(Id::new(b"org.x.desktop"), Id::new(b"org.x"));
        let mut random = Generator::new(34);
        for _ in 0..20_000 {
            let length = random.below(12);
            let text: Vec<u8> = (0..length).map(|_| *random.pick(b"ab.-/_+\0")).collect();
            if let Some(id) = Id::new(&text) {
                let _ = by_id(&[b"/nonexistent".to_vec()], &id);
                assert!(!id.as_bytes().contains(&b'/'));
            }
        }
    }

    /// Only absolute directories count.
    #[test]
    fn data_directories() {
        use crate::text::literal;
        let environment = [literal(b"HOME=/home/user\0"), literal(b"XDG_DATA_DIRS=/a:relative::/b\0")];
        assert_eq!(
            directories(&environment),
            [
                &b"/home/user/.local/share/applications"[..],
                b"/home/user/.local/share/flatpak/exports/share/applications",
                b"/a/applications",
                b"/b/applications",
            ]
        );
        assert_eq!(directories(&[]).len(), 3);
    }
}
