//! Addresses of unix sockets whose paths may be longer than an address.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use crate::text;

/// Longer paths do not fit.
const LONGEST: usize = 107;

/// An address, and the directory that it leads through, if it does.
pub struct Address {
    address: SocketAddrUnix,
    _directory: Option<OwnedFd>,
}

impl Address {
    /// The address of the socket at `path`.
    pub fn of(path: &[u8]) -> Result<Self, Errno> {
        if path.len() <= LONGEST {
            return Ok(Self { address: SocketAddrUnix::new(path)?, _directory: None });
        }
        // The kernel follows a descriptor's link in /proc, which is short.
        let name = text::basename(path);
        let directory = rustix::fs::open(
            &path[..path.len() - name.len()],
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let number = directory.as_raw_fd();
        let short = text::c_string(&[alloc::format!("/proc/self/fd/{number}/").as_bytes(), name]);
        Ok(Self { address: SocketAddrUnix::new(short.as_bytes())?, _directory: Some(directory) })
    }

    /// For `bind` and `connect`, as long as this lives.
    pub fn get(&self) -> &SocketAddrUnix {
        &self.address
    }
}
