//! The two files with facts: qubesd's, which this qube cannot write, and its own.
//!
//! Format of both: path and value in turn, each ended by a NUL. A file is replaced as a whole, so
//! that a reader sees one state.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::flow;
use crate::speak::Shown;
use crate::text::c_string;
use crate::users::read_file;

/// Where the engine shows qubesd's facts.
pub const TOLD: &[u8] = b"/run/qubesdb";
/// Where the qube's own notes lie.
pub const OWN: &[u8] = b"/run/qubesdb-own";
/// A path is no longer, in bytes.
const LONGEST_PATH: usize = 255;
/// A value is no longer, in bytes.
const LONGEST_VALUE: usize = 3072;
/// So many notes a qube keeps.
const MOST: usize = 4096;
/// All notes together are no longer, in bytes; less than `read_file` reads.
const LONGEST: usize = 1 << 19;
/// What is qubesd's even where it says nothing: a note there would pass for its word.
const RESERVED: [&[u8]; 7] =
    [b"/name", b"/uuid", b"/type", b"/default-user", b"/keyboard-layout", b"/vm-config/", b"/qubes-"];
/// Below `/qubes-`, but told by qubes themselves.
const ANNOUNCED: [&[u8]; 3] = [b"/qubes-tools/", b"/qubes-block-devices", b"/qubes-usb-devices"];

/// The directories with the two files.
pub struct Places<'a> {
    /// qubesd's.
    pub told: &'a [u8],
    /// The qube's own.
    pub own: &'a [u8],
}

/// Facts by path.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
pub struct Facts(BTreeMap<Vec<u8>, Vec<u8>>);

impl Facts {
    /// Read the format; what is cut off at the end is dropped.
    pub fn parse(content: &[u8]) -> Self {
        let mut fields = content.split(|&byte| byte == 0);
        let mut found = BTreeMap::new();
        let whole = content.iter().filter(|&&byte| byte == 0).count() / 2;
        for _ in 0..whole {
            if let (Some(path), Some(value)) = (fields.next(), fields.next()) {
                found.insert(path.to_vec(), value.to_vec());
            }
        }
        Self(found)
    }

    /// Write the format.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (path, value) in &self.0 {
            for field in [path, value] {
                out.extend_from_slice(field);
                out.push(0);
            }
        }
        out
    }

    /// The value of a path.
    pub fn get(&self, path: &[u8]) -> Option<&[u8]> {
        self.0.get(path).map(Vec::as_slice)
    }

    /// Everything that begins with `prefix`, by path.
    pub fn below<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.0
            .iter()
            .filter(move |(path, _)| path.starts_with(prefix))
            .map(|(path, value)| (&path[..], &value[..]))
    }

    /// Note a value.
    pub fn set(&mut self, path: &[u8], value: &[u8]) {
        self.0.insert(path.to_vec(), value.to_vec());
    }

    /// Drop a path; false where it was not there.
    pub fn remove(&mut self, path: &[u8]) -> bool {
        self.0.remove(path).is_some()
    }

    /// All paths that are in either and differ.
    pub fn changed<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a [u8]> {
        let gone = self.0.keys().filter(|path| !other.0.contains_key(*path));
        let new = other.0.iter().filter(|(path, value)| self.0.get(*path) != Some(*value));
        gone.chain(new.map(|(path, _)| path)).map(Vec::as_slice)
    }
}

fn read(directory: &[u8]) -> Result<Facts, Errno> {
    read_file(c_string(&[directory, b"/values"]).as_bytes()).map(|content| Facts::parse(&content))
}

fn read_own(places: &Places<'_>) -> Result<Facts, Errno> {
    match read(places.own) {
        Err(Errno::NOENT) => Ok(Facts::default()),
        other => other,
    }
}

/// Everything that can be read, qubesd's word before the qube's own.
pub fn load(places: &Places<'_>) -> Result<Facts, Errno> {
    let mut all = read_own(places)?;
    all.0.extend(read(places.told)?.0);
    Ok(all)
}

/// Whether there can be such a path; the reason where not.
pub fn check_path(path: &[u8]) -> Result<(), String> {
    let shown = Shown(path);
    let plain = path.iter().all(|byte| (b'!'..=b'~').contains(byte));
    if !path.starts_with(b"/") || !plain || path.len() > LONGEST_PATH {
        return Err(alloc::format!(
            "`{shown}` is no path: it begins with `/` and has up to {LONGEST_PATH} printable characters"
        ));
    }
    Ok(())
}

/// Whether the qube may note this; the reason where not.
pub fn check(told: &Facts, path: &[u8], value: &[u8]) -> Result<(), String> {
    check_path(path)?;
    let shown = Shown(path);
    let announced = ANNOUNCED.iter().any(|prefix| path.starts_with(prefix));
    let reserved = RESERVED.iter().any(|&prefix| {
        path == prefix || (matches!(prefix.last(), Some(b'/' | b'-')) && path.starts_with(prefix))
    });
    if told.get(path).is_some() || (reserved && !announced) {
        return Err(alloc::format!("`{shown}` is told by the admin qube; this qube cannot change it"));
    }
    if value.len() > LONGEST_VALUE {
        return Err(alloc::format!("the value of `{shown}` is longer than {LONGEST_VALUE} bytes"));
    }
    Ok(())
}

/// Change the qube's own notes, with the facts of qubesd at hand; one at a time.
///
/// The outer error is the kernel's, the inner one says why `act` refused; then nothing changes.
pub fn change(
    places: &Places<'_>,
    act: impl FnOnce(&Facts, &mut Facts) -> Result<i32, String>,
) -> Result<Result<i32, String>, Errno> {
    let told = read(places.told)?;
    match rustix::fs::mkdir(places.own, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::open(c_string(&[places.own, b"/lock"]), flags, Mode::from_raw_mode(0o600))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    let mut own = read_own(places)?;
    let code = match act(&told, &mut own) {
        Ok(code) => code,
        Err(text) => return Ok(Err(text)),
    };
    let content = own.encode();
    if own.0.len() > MOST || content.len() > LONGEST {
        return Ok(Err(alloc::format!("a qube keeps at most {MOST} notes, and {LONGEST} bytes of them")));
    }
    replace(places.own, &content)?;
    Ok(Ok(code))
}

fn replace(directory: &[u8], content: &[u8]) -> Result<(), Errno> {
    let fresh = c_string(&[directory, b"/.values.new"]);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(&fresh, flags, Mode::from_raw_mode(0o644))?;
    flow::write_all(&file, content)?;
    rustix::fs::rename(&fresh, c_string(&[directory, b"/values"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    fn facts(pairs: &[(&[u8], &[u8])]) -> Facts {
        Facts(pairs.iter().map(|(path, value)| (path.to_vec(), value.to_vec())).collect())
    }

    /// What is written is read back; what is cut off is dropped, whatever the bytes.
    #[test]
    fn format() {
        let all = facts(&[(b"/a", b""), (b"/b", b"x\ny")]);
        assert_eq!(all.encode(), b"/a\0\0/b\0x\ny\0");
        assert_eq!(Facts::parse(&all.encode()), all);
        assert_eq!(Facts::parse(b"/a\0x\0/b\0y"), facts(&[(b"/a", b"x")]));
        assert_eq!(Facts::parse(b""), Facts::default());
        let mut random = Generator::new(11);
        for _ in 0..5_000 {
            let length = random.below(40);
            let content: Vec<u8> = (0..length).map(|_| *random.pick(b"/a\0b")).collect();
            let parsed = Facts::parse(&content);
            assert_eq!(Facts::parse(&parsed.encode()), parsed);
        }
    }

    /// A path that is new, gone or different counts as changed.
    #[test]
    fn changes() {
        let before = facts(&[(b"/a", b"1"), (b"/b", b"1"), (b"/c", b"1")]);
        let after = facts(&[(b"/b", b"2"), (b"/c", b"1"), (b"/d", b"1")]);
        let mut changed: Vec<_> = before.changed(&after).collect();
        changed.sort_unstable();
        assert_eq!(changed, [b"/a", b"/b", b"/d"]);
        assert_eq!(after.changed(&after.clone()).count(), 0);
    }

    /// What is qubesd's, and what could pass for it, is refused; the qube's own is not.
    #[test]
    fn reserved_paths() {
        let told = facts(&[(b"/odd", b"1")]);
        for wrong in [
            &b"/name"[..],
            b"/odd",
            b"/qubes-ip",
            b"/qubes-service/x",
            b"/qubes-service/",
            b"/vm-config/x",
            b"/qubes-random",
            b"name",
            b"",
            b"/a b",
            b"/a\n",
            b"/\xff",
            &[b'/'; 256],
        ] {
            assert!(check(&told, wrong, b"").is_err(), "{wrong:?}");
        }
        for right in [&b"/features-request/os"[..], b"/qubes-tools/os", b"/mine", b"/names"] {
            assert_eq!(check(&told, right, b""), Ok(()));
        }
        assert!(check(&told, b"/mine", &[b'x'; 3073]).is_err());
    }
}
