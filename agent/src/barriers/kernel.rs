//! What the kernel's tables say about this process.

use alloc::string::String;
use alloc::vec::Vec;

use rustix::fs::{Mode, OFlags};

use super::Finding;
use crate::text::split_once;

/// Read a file of the kernel, whose size is not known beforehand.
pub fn read(path: &str) -> Vec<u8> {
    const LARGEST: usize = 1 << 20;
    let mut content = Vec::new();
    let Ok(file) = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
    else {
        return content;
    };
    let mut used = 0;
    loop {
        content.resize((used * 2).max(4096), 0);
        match rustix::io::read(&file, &mut content[used..]) {
            Ok(count) if count > 0 && used + count < LARGEST => used += count,
            _ => break,
        }
    }
    content.truncate(used);
    content
}

/// `/proc/self/status`.
pub struct Status(Vec<u8>);

impl Status {
    /// Read it.
    pub fn read() -> Self {
        Self(read("/proc/self/status"))
    }

    /// The value of a line such as `Seccomp: 2`.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0.split(|&byte| byte == b'\n').find_map(|line| {
            let (found, value) = split_once(line, b':')?;
            if found != key.as_bytes() {
                return None;
            }
            core::str::from_utf8(value).ok().map(str::trim)
        })
    }
}

/// One line of `/proc/self/mountinfo`.
pub struct Mount<'a> {
    /// Where it is mounted.
    pub target: &'a str,
    /// Options of the mount, not of the file system.
    pub options: &'a str,
    /// Type of the file system.
    pub kind: &'a str,
}

/// `/proc/self/mountinfo`.
pub struct Mounts(Vec<u8>);

impl Mounts {
    /// Read it.
    pub fn read() -> Self {
        Self(read("/proc/self/mountinfo"))
    }

    #[cfg(test)]
    pub fn from_text(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }

    /// All mounts, the lowest first; a line that makes no sense is passed over.
    pub fn all(&self) -> impl Iterator<Item = Mount<'_>> {
        self.0.split(|&byte| byte == b'\n').filter_map(|line| {
            let mut fields = core::str::from_utf8(line).ok()?.split(' ');
            let target = fields.nth(4)?;
            let options = fields.next()?;
            let kind = fields.skip_while(|&field| field != "-").nth(1)?;
            Some(Mount { target, options, kind })
        })
    }

    /// Targets of mounts whose type `matches` and that can be written to; and how many match.
    pub fn writable(&self, matches: impl Fn(&str) -> bool) -> (Vec<String>, usize) {
        let mut count = 0;
        let mut found = Vec::new();
        for mount in self.all().filter(|mount| matches(mount.kind)) {
            count += 1;
            if !mount.options.split(',').any(|option| option == "ro") {
                found.push(alloc::format!("{} is writable", mount.target));
            }
        }
        (found, count)
    }
}

/// The capability sets are exactly what the engine means to give, and nothing is inherited.
pub fn capabilities(status: &Status, expected: Option<u64>) -> Finding {
    const NAME: &str = "capabilities";
    let Some(expected) = expected else {
        return Finding::new(NAME, false, "the engine named no expected set");
    };
    let mut faults = Vec::new();
    for (key, wanted) in
        [("CapPrm", expected), ("CapEff", expected), ("CapBnd", expected), ("CapInh", 0), ("CapAmb", 0)]
    {
        match status.value(key).and_then(|text| super::hexadecimal(text.as_bytes())) {
            Some(found) if found == wanted => {}
            Some(found) => faults.push(alloc::format!("{key} is {found:x}, expected {wanted:x}")),
            None => faults.push(alloc::format!("{key} is unknown")),
        }
    }
    Finding::from_faults(NAME, &faults, alloc::format!("{expected:x}"))
}

/// No program can give more privilege than its caller has.
pub fn no_new_privileges(status: &Status) -> Finding {
    let value = status.value("NoNewPrivs").unwrap_or("unknown");
    Finding::new("no-new-privileges", value == "1", alloc::format!("NoNewPrivs {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str) -> Status {
        Status(text.as_bytes().to_vec())
    }

    /// Mount lines with and without optional fields are understood.
    #[test]
    fn mount_lines() {
        let mounts = Mounts::from_text(
            "22 1 0:20 / / rw,relatime shared:1 master:2 - overlay overlay rw,lowerdir=x\n\
             23 22 0:21 / /proc rw - proc proc rw\nnonsense\n\
             24 22 0:22 /a /sys ro,nosuid - sysfs sysfs rw\n",
        );
        let all: Vec<_> = mounts.all().map(|mount| (mount.target, mount.kind)).collect();
        assert_eq!(all, [("/", "overlay"), ("/proc", "proc"), ("/sys", "sysfs")]);
        assert_eq!(mounts.writable(|kind| kind == "sysfs"), (Vec::new(), 1));
        assert_eq!(mounts.writable(|kind| kind == "proc").0, ["/proc is writable"]);
    }

    /// One bit more or less, or anything inherited, is a fault.
    #[test]
    fn capability_sets_are_exact() {
        let text = |inherited: &str, effective: &str| {
            status(&alloc::format!(
                "CapInh:\t{inherited}\nCapPrm:\t00ff\nCapEff:\t{effective}\nCapBnd:\t00ff\nCapAmb:\t0000\n"
            ))
        };
        assert!(capabilities(&text("0000", "00ff"), Some(0xff)).up);
        assert!(!capabilities(&text("0001", "00ff"), Some(0xff)).up);
        assert!(!capabilities(&text("0000", "01ff"), Some(0xff)).up);
        assert!(!capabilities(&text("0000", "00ff"), Some(0xfe)).up);
        assert!(!capabilities(&text("0000", "00ff"), None).up);
        assert!(!capabilities(&status(""), Some(0)).up);
    }

    /// The privilege bit must be set.
    #[test]
    fn privilege_bit() {
        assert!(no_new_privileges(&status("NoNewPrivs:\t1\n")).up);
        assert!(!no_new_privileges(&status("NoNewPrivs:\t0\n")).up);
        assert!(!no_new_privileges(&status("")).up);
    }
}
