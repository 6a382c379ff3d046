//! How far a transfer is: a line for a person, or numbers for a program.

use core::ffi::CStr;

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};

use crate::environment;
use crate::sys::call;
use crate::text::{c_string, decimal};

/// What takes less is not spoken of; milliseconds.
const FIRST: i64 = 1_000;
const PAUSE: i64 = 200;
const MEBIBYTE: u64 = 1 << 20;

enum Listener {
    Nobody,
    /// A terminal, on standard error.
    Person,
    /// A program that reads one number a line.
    Program(OwnedFd),
}

/// Counts bytes and tells at times.
pub struct Progress {
    listener: Listener,
    total: u64,
    sent: u64,
    next: i64,
    told: bool,
}

impl Progress {
    /// As `PROGRESS_TYPE`, `FILECOPY_TOTAL_BYTES` and `SAVED_FD_1` say.
    pub fn of(environment: &[&'static CStr]) -> Self {
        let get = |name| environment::get(environment, name).unwrap_or(b"");
        let (listener, wait) = match get(b"PROGRESS_TYPE") {
            b"console" => (Listener::Person, FIRST),
            b"gui" => (program(get(b"SAVED_FD_1")), 0),
            _ => (Listener::Nobody, 0),
        };
        let total = decimal(get(b"FILECOPY_TOTAL_BYTES")).unwrap_or(0);
        let next = if matches!(listener, Listener::Nobody) { 0 } else { call::milliseconds() + wait };
        Self { listener, total, sent: 0, next, told: false }
    }

    /// So many more bytes are on their way.
    pub fn sent(&mut self, count: u64) {
        self.sent += count;
        if matches!(self.listener, Listener::Nobody) {
            return;
        }
        let now = call::milliseconds();
        if now >= self.next {
            self.next = now + PAUSE;
            self.tell(false);
        }
    }

    /// All was sent.
    pub fn finish(&mut self) {
        if self.told || matches!(self.listener, Listener::Program(_)) {
            self.tell(true);
        }
    }

    fn tell(&mut self, last: bool) {
        self.told = true;
        let line = match &self.listener {
            Listener::Nobody => return,
            Listener::Program(_) => alloc::format!("{}\n", self.sent),
            Listener::Person => {
                let done = self.sent / MEBIBYTE;
                let end = if last { "\n" } else { "" };
                match percent(self.sent, self.total) {
                    Some(percent) => alloc::format!("\r{done} MiB, {percent} %{end}"),
                    None => alloc::format!("\r{done} MiB{end}"),
                }
            }
        };
        let _ = match &self.listener {
            Listener::Program(fd) => rustix::io::write(fd, line.as_bytes()),
            _ => rustix::io::write(call::standard(2), line.as_bytes()),
        };
    }
}

fn percent(sent: u64, total: u64) -> Option<u64> {
    // Names and headers are sent, too, and were not counted before.
    (total > 0).then(|| (u128::from(sent) * 100 / u128::from(total)).min(100) as u64)
}

fn program(number: &[u8]) -> Listener {
    if decimal(number).is_none() {
        return Listener::Nobody;
    }
    let path = c_string(&[b"/proc/self/fd/", number]);
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty()).map_or(Listener::Nobody, Listener::Program)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Never more than all, and nothing where the total is not known.
    #[test]
    fn percentages() {
        assert_eq!(percent(1, 0), None);
        assert_eq!(percent(0, 7), Some(0));
        assert_eq!(percent(1 << 40, 1 << 41), Some(50));
        assert_eq!(percent(u64::MAX, 1), Some(100));
    }
}
