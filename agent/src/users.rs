//! Users and groups of the qube, read from `/etc/passwd` and `/etc/group`.
//!
//! The files may have been written by the qube's own root: they are read with a bound, and a line
//! that makes no sense is passed over.

use alloc::vec::Vec;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::text::decimal;

/// More is not read of any configuration file.
const LARGEST_FILE: usize = 1 << 20;

/// One line of `/etc/passwd`.
#[derive(Debug, PartialEq, Eq)]
pub struct User<'a> {
    /// Login name.
    pub name: &'a [u8],
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Home directory.
    pub home: &'a [u8],
    /// Login shell; `/bin/sh` where the line names none.
    pub shell: &'a [u8],
}

/// Read a regular file of bounded size.
pub fn read_file(path: &[u8]) -> Result<Vec<u8>, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let metadata = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(metadata.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let size = usize::try_from(metadata.st_size).unwrap_or(0);
    if size > LARGEST_FILE {
        return Err(Errno::FBIG);
    }
    let mut content = alloc::vec![0; size];
    let mut used = 0;
    while used < size {
        match rustix::io::read(&file, &mut content[used..])? {
            0 => break,
            count => used += count,
        }
    }
    content.truncate(used);
    Ok(content)
}

fn fields<const N: usize>(line: &[u8]) -> Option<[&[u8]; N]> {
    let mut parts = line.split(|&byte| byte == b':');
    let mut found = [&b""[..]; N];
    for field in &mut found {
        *field = parts.next()?;
    }
    parts.next().is_none().then_some(found)
}

fn id(text: &[u8]) -> Option<u32> {
    let id = u32::try_from(decimal(text)?).ok()?;
    (id != u32::MAX).then_some(id)
}

fn all(passwd: &[u8]) -> impl Iterator<Item = User<'_>> {
    passwd.split(|&byte| byte == b'\n').filter_map(|line| {
        let [name, _, uid, gid, _, home, shell] = fields::<7>(line)?;
        let shell = if shell.is_empty() { b"/bin/sh" } else { shell };
        Some(User { name, uid: id(uid)?, gid: id(gid)?, home, shell })
    })
}

/// Find a user by name.
pub fn find<'a>(passwd: &'a [u8], name: &[u8]) -> Option<User<'a>> {
    all(passwd).find(|user| user.name == name && !name.is_empty())
}

/// Find a user by id.
pub fn find_id(passwd: &[u8], uid: u32) -> Option<User<'_>> {
    all(passwd).find(|user| user.uid == uid)
}

/// The groups that name the user as a member, the primary one first.
pub fn groups(group: &[u8], user: &User<'_>) -> Vec<u32> {
    const MOST: usize = 256;
    let mut found = alloc::vec![user.gid];
    for line in group.split(|&byte| byte == b'\n') {
        let Some([_, _, gid, members]) = fields::<4>(line) else {
            continue;
        };
        let Some(gid) = id(gid) else { continue };
        let member = members.split(|&byte| byte == b',').any(|name| name == user.name);
        if member && !found.contains(&gid) && found.len() < MOST {
            found.push(gid);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/bash\n\n# no\nbad:x:y:0::/:\n\
        user:x:1000:1000:,,,:/home/user:\nhuge:x:4294967295:0::/:/bin/sh";
    const GROUP: &[u8] = b"root:x:0:\nuser:x:1000:\nsudo:*:27:a,user\nqubes:x:98:user,user\nx:x:27:user\n";

    /// A user is found by its whole name; lines without sense are passed over.
    #[test]
    fn users_are_found() {
        let user = find(PASSWD, b"user").unwrap();
        assert_eq!(
            user,
            User { name: b"user", uid: 1000, gid: 1000, home: b"/home/user", shell: b"/bin/sh" }
        );
        assert_eq!(find(PASSWD, b"root").unwrap().shell, b"/bin/bash");
        for absent in [&b""[..], b"use", b"bad", b"huge", b"# no", b"root:x"] {
            assert_eq!(find(PASSWD, absent), None);
        }
    }

    /// Groups are those that list the user, each once.
    #[test]
    fn groups_are_found() {
        assert_eq!(groups(GROUP, &find(PASSWD, b"user").unwrap()), [1000, 27, 98]);
        assert_eq!(groups(GROUP, &find(PASSWD, b"root").unwrap()), [0]);
    }

    /// No content makes the parsers panic or find a user that no line names.
    #[test]
    fn any_content_is_survived() {
        let mut random = Generator::new(3);
        for _ in 0..20_000 {
            let length = random.below(60);
            let content: std::vec::Vec<u8> = (0..length).map(|_| *random.pick(b"u:01\n,x/")).collect();
            if let Some(user) = find(&content, b"u") {
                assert!(content.windows(2).any(|pair| pair == b"u:"));
                groups(&content, &user);
            }
        }
    }

    /// Neither a directory nor a device is read as a file.
    #[test]
    fn only_regular_files_are_read() {
        assert!(read_file(b"/").is_err());
        assert!(read_file(b"/dev/zero").is_err());
        assert_eq!(read_file(b"/nonexistent"), Err(Errno::NOENT));
    }
}
