//! What a service says on its standard error, copied to this machine's log.
//!
//! One datagram a line (RFC 3164 as local loggers read it, without a time). A log that is full or
//! away costs lines, never time.

use alloc::vec::Vec;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};

use crate::connection;
use crate::filter;

/// Where the local log takes lines.
pub const SOCKET: &[u8] = b"/dev/log";
/// Facility `user`, severity `notice`: what `logger` takes unless it is told otherwise.
const PRIORITY: &[u8] = b"<13>";
/// Longer lines are cut into several.
const LONGEST_LINE: usize = 1024;
const LONGEST_TAG: usize = 255;

/// A log for one service.
pub struct Log {
    socket: OwnedFd,
    line: Vec<u8>,
    head: usize,
}

impl Log {
    /// Lines of `service`, called by `source`, at the log's socket; `None` where there is no log.
    pub fn open(socket: &[u8], service: &[u8], source: &[u8]) -> Option<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let own = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).ok()?;
        connection::connect(&own, socket).ok()?;
        let mut tag = [service, b"-", source].concat();
        tag.truncate(LONGEST_TAG);
        // A tag ends at the first blank or colon; neither may come from a name.
        tag.iter_mut()
            .filter(|byte| !byte.is_ascii_graphic() || **byte == b':')
            .for_each(|byte| *byte = b'_');
        let line = [PRIORITY, &tag, b": "].concat();
        Some(Self { socket: own, head: line.len(), line })
    }

    /// Take bytes; whole lines go to the log.
    pub fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
            }
            if byte == b'\n' || self.line.len() - self.head >= LONGEST_LINE {
                self.send();
            }
        }
    }

    /// Take all bytes up to the end.
    pub fn add_all(&mut self, reader: &OwnedFd) {
        let mut piece = [0; 4096];
        loop {
            match rustix::io::read(reader, &mut piece) {
                Ok(0) => return,
                Ok(count) => self.add(&piece[..count]),
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn send(&mut self) {
        if self.line.len() > self.head {
            filter::clean(&mut self.line[self.head..]);
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let _: Result<usize, Errno> = rustix::net::send(&self.socket, &self.line, flags);
        }
        self.line.truncate(self.head);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.send();
    }
}
