//! Acts that must fail, tried in a child so that a success changes nothing for the agent.

use alloc::string::String;
use alloc::vec::Vec;

use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::kernel::Status;
use super::Finding;
use crate::speak::Reason;
use crate::sys::call::{self, forbidden};

const COUNT: usize = 15;
/// The child's word for an act that succeeded; no errno has this number.
const DONE: u16 = 0;
/// Nothing was heard of the attempt.
const UNKNOWN: u16 = u16::MAX;

/// How each attempt ended, as an errno or `DONE`.
pub struct Attempts([u16; COUNT]);

fn outcome(result: Result<(), Errno>) -> u16 {
    match result {
        Ok(()) => DONE,
        Err(error) => error.raw_os_error() as u16,
    }
}

/// Try everything, the least intrusive first. Runs in the child.
fn try_all() -> [u16; COUNT] {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let terminal = |act: fn(rustix::fd::BorrowedFd<'_>) -> Result<(), Errno>| match &null {
        Ok(null) => outcome(act(null.as_fd())),
        Err(_) => outcome(act(call::standard(0))),
    };
    // A filter decides before the kernel looks whether the descriptor is a terminal at all.
    let tty = [
        terminal(|fd| forbidden::terminal_input(fd, false)),
        terminal(|fd| forbidden::terminal_input(fd, true)),
        terminal(forbidden::console_paste),
    ];
    let kernel = [
        outcome(forbidden::load_module()),
        outcome(forbidden::load_module_file()),
        outcome(forbidden::load_kernel()),
    ];
    let keys = [outcome(forbidden::add_key()), outcome(forbidden::keyring_id())];
    let programs = [outcome(forbidden::bpf_map()), outcome(forbidden::performance_counter())];
    // From here on a success changes this child: what follows only has to stay harmless.
    let mounts = [
        outcome(forbidden::unshare(forbidden::NEW_MOUNT)),
        outcome(forbidden::mount_private()),
        outcome(forbidden::open_file_system()),
        outcome(forbidden::open_tree()),
    ];
    let users = outcome(
        forbidden::clone_into_user_namespace().and_then(|()| forbidden::unshare(forbidden::NEW_USER)),
    );
    let mut all = [UNKNOWN; COUNT];
    let parts: [&[u16]; 6] = [&tty, &kernel, &keys, &programs, &mounts, &[users]];
    for (place, value) in all.iter_mut().zip(parts.into_iter().flatten()) {
        *place = *value;
    }
    all
}

impl Attempts {
    /// Try everything in a child of its own; `None` where no child can be made.
    pub fn make() -> Option<Self> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).ok()?;
        let Some(pid) = call::fork().ok()? else {
            let mut bytes = [0; COUNT * 2];
            for (place, value) in bytes.chunks_exact_mut(2).zip(try_all()) {
                place.copy_from_slice(&value.to_ne_bytes());
            }
            let _ = rustix::io::write(&writer, &bytes);
            call::exit(0)
        };
        drop(writer);
        let mut all = [UNKNOWN; COUNT];
        let mut bytes = [0; COUNT * 2];
        if let Ok(count) = rustix::io::read(&reader, &mut bytes) {
            for (place, value) in all.iter_mut().zip(bytes[..count].chunks_exact(2)) {
                *place = u16::from_ne_bytes([value[0], value[1]]);
            }
        }
        let _ = call::wait_for(pid);
        Some(Self(all))
    }

    /// A finding that is up where each of these attempts was denied with one of `errors`.
    fn denied(&self, name: &'static str, acts: &[(usize, &str)], errors: &[Errno]) -> Finding {
        Finding::from_faults(name, &self.faults(acts, errors), "denied")
    }

    fn faults(&self, acts: &[(usize, &str)], errors: &[Errno]) -> Vec<String> {
        let mut faults = Vec::new();
        for &(at, act) in acts {
            match self.0[at] {
                DONE => faults.push(alloc::format!("{act} succeeded")),
                UNKNOWN => faults.push(alloc::format!("{act} could not be tried")),
                code => {
                    let error = Errno::from_raw_os_error(i32::from(code));
                    if !errors.contains(&error) {
                        faults.push(alloc::format!(
                            "{act} was not denied but failed: {error}",
                            error = Reason(error)
                        ));
                    }
                }
            }
        }
        faults
    }

    /// Characters cannot be put into a terminal's input. Only a filter answers `PERM` for what is
    /// no terminal.
    pub fn terminal_injection(&self) -> Finding {
        let acts = [(0, "TIOCSTI"), (1, "TIOCSTI with a high bit"), (2, "TIOCLINUX")];
        self.denied("terminal-injection", &acts, &[Errno::PERM])
    }

    /// The kernel cannot be extended or replaced.
    pub fn kernel_modules(&self) -> Finding {
        let acts = [(3, "init_module"), (4, "finit_module"), (5, "kexec_load")];
        self.denied("kernel-modules", &acts, &[Errno::PERM, Errno::NOSYS])
    }

    /// The kernel's keyrings, which no namespace separates, are out of reach.
    pub fn keyrings(&self) -> Finding {
        let acts = [(6, "add_key"), (7, "keyctl")];
        self.denied("keyrings", &acts, &[Errno::PERM, Errno::NOSYS])
    }

    /// No program can be put into the kernel.
    pub fn bpf(&self) -> Finding {
        self.denied("bpf", &[(8, "bpf")], &[Errno::PERM, Errno::NOSYS])
    }

    /// A filter is in force, and it filters.
    pub fn seccomp(&self, status: &Status) -> Finding {
        let mode = status.value("Seccomp").unwrap_or("unknown");
        let mut faults = self.faults(&[(9, "perf_event_open")], &[Errno::PERM, Errno::NOSYS, Errno::ACCESS]);
        if mode != "2" {
            faults.push(alloc::format!("Seccomp is {mode}, expected 2"));
        }
        Finding::from_faults("seccomp", &faults, "filter")
    }

    /// No new namespace, no mount.
    pub fn no_nested_namespaces(&self) -> Finding {
        let acts = [
            (10, "a new mount namespace"),
            (11, "mount"),
            (12, "fsopen"),
            (13, "open_tree"),
            (14, "a new user namespace"),
        ];
        self.denied("no-nested-namespaces", &acts, &[Errno::PERM, Errno::NOSYS])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every attempt comes back with an answer, and a denial of the wrong kind is no barrier.
    #[test]
    fn attempts_are_judged() {
        let made = Attempts::make().unwrap();
        assert!(made.0.iter().all(|&code| code != UNKNOWN));
        let denied = |code: Errno| Attempts([code.raw_os_error() as u16; COUNT]);
        assert!(denied(Errno::PERM).terminal_injection().up);
        assert!(!denied(Errno::NOTTY).terminal_injection().up);
        assert!(!denied(Errno::IO).terminal_injection().up);
        assert!(denied(Errno::NOSYS).bpf().up);
        assert!(!Attempts([DONE; COUNT]).no_nested_namespaces().up);
        assert!(!Attempts([UNKNOWN; COUNT]).keyrings().up);
    }
}
