//! Names of unix sockets whose paths may be longer than an address.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;

use crate::text;

/// Longer paths do not fit.
const LONGEST: usize = 107;

/// Bind a socket to `path`; `connection::connect` is how the other side gets there.
pub fn bind(socket: &OwnedFd, path: &[u8]) -> Result<(), Errno> {
    if path.len() <= LONGEST {
        return rustix::net::bind(socket, &SocketAddrUnix::new(path)?);
    }
    // The kernel follows a descriptor's link in /proc, which is short.
    let name = text::basename(path);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(&path[..path.len() - name.len()], flags, Mode::empty())?;
    let prefix = alloc::format!("/proc/self/fd/{}/", directory.as_raw_fd());
    rustix::net::bind(socket, &SocketAddrUnix::new(&[prefix.as_bytes(), name].concat()[..])?)
}
