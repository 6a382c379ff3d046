//! Prove from inside that every barrier around this qube is up.
//!
//! A barrier is tried where trying is possible, not only read from a table. The report is JSON:
//! `{"barriers": {NAME: {"up": bool, "detail": text}}, "version": text}`.

mod attempts;
mod devices;
mod files;
mod json;
mod kernel;
mod namespaces;

use alloc::string::String;
use alloc::vec::Vec;

use attempts::Attempts;
use kernel::{Mounts, Status};

/// What was found out about one barrier.
struct Finding {
    name: &'static str,
    up: bool,
    detail: String,
}

impl Finding {
    fn new(name: &'static str, up: bool, detail: impl Into<String>) -> Self {
        Self { name, up, detail: detail.into() }
    }

    /// Up where nothing is wrong; the detail lists what is.
    fn from_faults(name: &'static str, faults: &[String], fine: impl Into<String>) -> Self {
        if faults.is_empty() {
            Self::new(name, true, fine)
        } else {
            Self::new(name, false, faults.join("; "))
        }
    }
}

/// Try every barrier and report.
///
/// `capabilities` is the set that the engine means to give; `own` are descriptors of the agent
/// itself, beyond 0, 1 and 2. `None` where there is no room for the process that tries.
pub fn report(version: &str, capabilities: Option<u64>, own: &[i32]) -> Option<Vec<u8>> {
    // Before anything else is opened, so that a leaked descriptor shows.
    let descriptors = files::descriptors(own);
    let status = Status::read();
    let mounts = Mounts::read();
    let attempts = Attempts::make()?;
    let findings = [
        descriptors,
        namespaces::user(),
        namespaces::pid(),
        namespaces::mount(&mounts),
        namespaces::network(),
        kernel::capabilities(&status, capabilities),
        kernel::no_new_privileges(&status),
        attempts.seccomp(&status),
        attempts.no_nested_namespaces(),
        attempts.terminal_injection(),
        attempts.kernel_modules(),
        attempts.keyrings(),
        attempts.bpf(),
        files::proc_masked(),
        files::proc_sys_read_only(),
        files::sys_read_only(&mounts),
        files::cgroup_read_only(&mounts),
        files::agent_read_only(),
        devices::exact_set(),
    ];
    Some(json::encode(version, &findings))
}

/// A capability set as the engine writes it.
pub fn hexadecimal(text: &[u8]) -> Option<u64> {
    u64::from_str_radix(core::str::from_utf8(text).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plain process on a plain machine is not a sealed qube, and the report says so.
    #[test]
    fn barriers_are_down_outside_a_qube() {
        let report = String::from_utf8(report("1.0", Some(0), &[]).unwrap()).unwrap();
        assert!(report.starts_with("{\"barriers\":{\"descriptors\":{\"up\":"), "{report}");
        assert!(report.contains("\"pid-namespace\":{\"up\":false,"), "{report}");
        assert!(report.contains("\"mount-namespace-root\":{\"up\":"), "{report}");
        assert!(report.ends_with("\"version\":\"1.0\"}"), "{report}");
    }

    /// Hexadecimal digits only.
    #[test]
    fn capability_sets() {
        assert_eq!(hexadecimal(b"00000000a80425fb"), Some(0xa804_25fb));
        assert_eq!(hexadecimal(b""), None);
        assert_eq!(hexadecimal(b"0x1"), None);
    }
}
