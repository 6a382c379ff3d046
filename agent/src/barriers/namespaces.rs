//! The namespaces are the qube's own: each is owned by the qube's user namespace.

use alloc::string::String;
use alloc::vec::Vec;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::kernel::{read, Mounts};
use super::Finding;
use crate::speak::Reason;
use crate::sys::call::forbidden;

/// Ids that every qube's user namespace maps.
const IDS: &str = "65536";
/// Down devices that a tunnel module puts into every network namespace; they lead nowhere.
const FALLBACK_DEVICES: [&str; 11] = [
    "tunl0",
    "gre0",
    "gretap0",
    "erspan0",
    "sit0",
    "ip_vti0",
    "ip6_vti0",
    "ip6tnl0",
    "ip6gre0",
    "ip6gretap0",
    "teql0",
];

/// A namespace that belongs to another user namespace is one that we were let into: the host's.
fn foreign(kind: &str) -> Option<String> {
    let path = alloc::format!("/proc/self/ns/{kind}");
    match rustix::fs::open(path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(namespace) => match forbidden::namespace_owner(rustix::fd::AsFd::as_fd(&namespace)) {
            Ok(()) => None,
            Err(Errno::PERM) => Some(alloc::format!("the {kind} namespace is not this qube's own")),
            Err(error) => Some(alloc::format!(
                "the owner of the {kind} namespace is unknown: {error}",
                error = Reason(error)
            )),
        },
        Err(error) => Some(alloc::format!("the {kind} namespace is unknown: {error}", error = Reason(error))),
    }
}

/// Root here is an ordinary user outside.
pub fn user() -> Finding {
    const NAME: &str = "user-namespace";
    let mut faults = Vec::new();
    for file in ["uid_map", "gid_map"] {
        let content = read(&alloc::format!("/proc/self/{file}"));
        let text = core::str::from_utf8(&content).unwrap_or("").trim();
        if !is_own_range(text) {
            faults.push(alloc::format!(
                "{file} is `{}`",
                text.split_whitespace().collect::<Vec<_>>().join(" ")
            ));
        }
    }
    Finding::from_faults(NAME, &faults, "65536 ids of its own")
}

/// True for `0 X 65536` with X not 0.
fn is_own_range(map: &str) -> bool {
    let mut fields = map.split_whitespace();
    let inside = fields.next() == Some("0");
    let outside = fields.next().is_some_and(|first| first != "0" && first.parse::<u32>().is_ok());
    inside && outside && fields.next() == Some(IDS) && fields.next().is_none()
}

/// No process of another qube or of the host can be seen.
pub fn pid() -> Finding {
    let mut faults: Vec<String> = foreign("pid").into_iter().collect();
    if !rustix::process::getpid().is_init() {
        faults.push("the agent is not the first process".into());
    }
    Finding::from_faults("pid-namespace", &faults, "the agent is the first process")
}

/// The root is an overlay of the qube's own, not a directory of the host.
pub fn mount(mounts: &Mounts) -> Finding {
    let mut faults: Vec<String> = ["mnt", "ipc", "uts"].into_iter().filter_map(foreign).collect();
    let root = mounts.all().filter(|mount| mount.target == "/").last().map_or("unknown", |mount| mount.kind);
    if root != "overlay" {
        faults.push(alloc::format!("the root file system is of type {root}"));
    }
    Finding::from_faults("mount-namespace-root", &faults, "overlay")
}

/// Only loopback, the link to the netvm and the links to clients.
pub fn network() -> Finding {
    let mut faults: Vec<String> = foreign("net").into_iter().collect();
    let content = read("/proc/self/net/dev");
    let text = core::str::from_utf8(&content).unwrap_or("");
    let names: Vec<&str> =
        text.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect();
    if names.is_empty() {
        faults.push("no network interface is known, not even loopback".into());
    }
    for &name in &names {
        let expected = name == "lo" || name == "eth0" || name.starts_with("vif");
        let harmless = FALLBACK_DEVICES.contains(&name) && is_down(name);
        if !expected && !harmless {
            faults.push(alloc::format!("unexpected interface {name}"));
        }
    }
    Finding::from_faults("network", &faults, names.join(" "))
}

fn is_down(name: &str) -> bool {
    let content = read(&alloc::format!("/sys/class/net/{name}/flags"));
    let text = core::str::from_utf8(&content).unwrap_or("").trim();
    text.strip_prefix("0x")
        .and_then(|digits| super::hexadecimal(digits.as_bytes()))
        .is_some_and(|flags| flags & 1 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The host's own map, and maps with holes or of another size, are not a qube's.
    #[test]
    fn id_maps() {
        assert!(is_own_range("0 1879048192      65536"));
        for wrong in [
            "",
            "0 0 65536",
            "0 0 4294967295",
            "0 1000 1",
            "1 1000 65536",
            "0 x 65536",
            "0 5 65536\n70000 7 1",
        ] {
            assert!(!is_own_range(wrong), "{wrong:?}");
        }
    }
}
