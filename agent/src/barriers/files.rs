//! Files that must not be there, must not open, or must not take a write.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::mem::MaybeUninit;

use rustix::fd::AsRawFd;
use rustix::fs::{FileType, Mode, OFlags, RawDir, StatVfsMountFlags};
use rustix::io::Errno;

use super::kernel::Mounts;
use super::Finding;
use crate::speak::Reason;
use crate::text::decimal;

/// Names in a directory, without `.` and `..`.
pub fn names(path: &str) -> Result<Vec<String>, Errno> {
    let directory =
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let own = directory.as_raw_fd().to_string();
    let mut space = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(&directory, &mut space);
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let name = String::from_utf8_lossy(entry?.file_name().to_bytes()).into_owned();
        if name != "." && name != ".." && !(path == "/proc/self/fd" && name == own) {
            found.push(name);
        }
    }
    Ok(found)
}

/// Only 0, 1 and 2 are open, each a pipe or `/dev/null`, beside the agent's `own`.
pub fn descriptors(own: &[i32]) -> Finding {
    const NAME: &str = "descriptors";
    let open = match names("/proc/self/fd") {
        Ok(open) => open,
        Err(error) => {
            return Finding::new(
                NAME,
                false,
                alloc::format!("cannot list them: {error}", error = Reason(error)),
            )
        }
    };
    let mut faults = Vec::new();
    for name in &open {
        let number = decimal(name.as_bytes()).and_then(|number| i32::try_from(number).ok()).unwrap_or(-1);
        if own.contains(&number) {
            continue;
        }
        let target = rustix::fs::readlink(alloc::format!("/proc/self/fd/{name}").as_str(), Vec::new());
        let target =
            target.map(|target| String::from_utf8_lossy(target.to_bytes()).into_owned()).unwrap_or_default();
        let agreed = (0..=2).contains(&number) && (target == "/dev/null" || target.starts_with("pipe:["));
        if !agreed {
            faults.push(alloc::format!("{name} is `{target}`"));
        }
    }
    Finding::from_faults(NAME, &faults, open.join(" "))
}

/// True where nothing can be learnt or changed through the path: absent, closed to us, the null
/// device, or empty.
fn is_masked(path: &str, access: OFlags) -> bool {
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) else {
        return true;
    };
    let Ok(metadata) = rustix::fs::fstat(&file) else {
        return false;
    };
    match FileType::from_raw_mode(metadata.st_mode) {
        FileType::CharacterDevice => metadata.st_rdev == rustix::fs::makedev(1, 3),
        FileType::Directory => names(path).is_ok_and(|names| names.is_empty()),
        // Some files open and give nothing to those without privilege.
        _ if access == OFlags::RDONLY => {
            rustix::io::read(&file, &mut [0_u8; 16]).map_or(true, |count| count == 0)
        }
        _ => false,
    }
}

/// The kernel's memory, keys, timers and emergency switches.
pub fn proc_masked() -> Finding {
    const READ: [&str; 9] = [
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/kmsg",
        "/proc/vmallocinfo",
        "/sys/firmware",
    ];
    const WRITE: [&str; 4] =
        ["/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/bus/pci/00/00.0", "/proc/mtrr"];
    let read = READ
        .iter()
        .filter(|path| !is_masked(path, OFlags::RDONLY))
        .map(|path| alloc::format!("{path} can be read"));
    let write = WRITE
        .iter()
        .filter(|path| !is_masked(path, OFlags::WRONLY))
        .map(|path| alloc::format!("{path} can be written"));
    let faults: Vec<String> = read.chain(write).collect();
    Finding::from_faults("proc-masked", &faults, "masked")
}

fn is_read_only(path: &str) -> Result<bool, Errno> {
    rustix::fs::statvfs(path).map(|found| found.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn writable(paths: &[&str]) -> Vec<String> {
    let opens =
        |path: &&&str| rustix::fs::open(**path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).is_ok();
    paths.iter().filter(opens).map(|path| alloc::format!("{path} can be written")).collect()
}

/// The kernel's settings.
pub fn proc_sys_read_only() -> Finding {
    let mut faults = writable(&[
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/shmmax",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/vm/overcommit_memory",
    ]);
    match is_read_only("/proc/sys") {
        Ok(true) | Err(Errno::NOENT) => {}
        Ok(false) => faults.push("/proc/sys is writable".into()),
        Err(error) => faults.push(alloc::format!("/proc/sys: {error}", error = Reason(error))),
    }
    Finding::from_faults("proc-sys-read-only", &faults, "read-only")
}

/// The kernel's objects.
pub fn sys_read_only(mounts: &Mounts) -> Finding {
    let (mut faults, count) = mounts.writable(|kind| kind == "sysfs");
    faults.extend(writable(&["/sys/kernel/uevent_helper", "/sys/kernel/mm/transparent_hugepage/enabled"]));
    Finding::from_faults("sys-read-only", &faults, alloc::format!("{count} mounts"))
}

/// The limits that the qube runs under.
pub fn cgroup_read_only(mounts: &Mounts) -> Finding {
    let is_cgroup = |kind: &str| kind == "cgroup" || kind == "cgroup2";
    let (mut faults, count) = mounts.writable(is_cgroup);
    for mount in mounts.all().filter(|mount| is_cgroup(mount.kind)) {
        faults.extend(writable(&[alloc::format!("{}/cgroup.procs", mount.target).as_str()]));
    }
    Finding::from_faults("cgroup-read-only", &faults, alloc::format!("{count} mounts"))
}

/// The program that we run cannot be replaced from inside (CVE-2019-5736).
pub fn agent_read_only() -> Finding {
    const PROGRAM: &str = "/proc/self/exe";
    let mut faults = writable(&[PROGRAM]);
    match is_read_only(PROGRAM) {
        Ok(true) => {}
        Ok(false) => faults.push("the agent's program lies on a writable mount".into()),
        Err(error) => faults.push(alloc::format!("{PROGRAM}: {error}", error = Reason(error))),
    }
    Finding::from_faults("agent-read-only", &faults, "read-only")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The null device and absent files count as masked; a file with content does not.
    #[test]
    fn masks() {
        assert!(is_masked("/dev/null", OFlags::RDONLY));
        assert!(is_masked("/nonexistent", OFlags::RDONLY));
        assert!(!is_masked("/proc/self/status", OFlags::RDONLY));
        assert!(!is_masked("/proc/self", OFlags::RDONLY));
        assert!(!is_masked("/dev/zero", OFlags::WRONLY));
    }

    /// A descriptor that nobody agreed to is found and named.
    #[test]
    fn leaked_descriptors_are_found() {
        let leaked = rustix::fs::open("/", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let number = leaked.as_raw_fd();
        let finding = descriptors(&[]);
        assert!(!finding.up);
        assert!(finding.detail.contains(&alloc::format!("{number} is `/`")), "{}", finding.detail);
        assert!(!descriptors(&[number]).detail.contains(&alloc::format!("{number} is")));
    }
}
