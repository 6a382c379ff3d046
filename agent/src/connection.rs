//! The socket to the broker: connect, send a datagram, receive one with its descriptors.

use core::mem::MaybeUninit;

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};

use crate::{process, text};

/// Longer paths do not fit into a socket address.
const LONGEST_ADDRESS: usize = 107;

/// Descriptors that travel with one message, in the order stdin, stdout, stderr.
pub type Descriptors = [Option<OwnedFd>; 3];

/// A connected sequenced-packet socket.
pub struct Connection(OwnedFd);

/// One datagram: its length in the buffer and what came along.
pub struct Received {
    /// Bytes in the buffer; 0 when the peer is gone.
    pub length: usize,
    /// False where the datagram was longer than the buffer or carried too many descriptors.
    pub complete: bool,
    /// Descriptors, closed on `exec`.
    pub descriptors: Descriptors,
}

impl Connection {
    /// Connect to the socket at `path`.
    pub fn open(path: &[u8]) -> Result<Self, Errno> {
        let mut socket = new_socket()?;
        if socket.as_raw_fd() <= 2 {
            // We were started with a standard descriptor closed: nothing of ours may take its place.
            drop(socket);
            process::occupy_standard_descriptors();
            socket = new_socket()?;
        }
        connect(&socket, path)?;
        Ok(Self(socket))
    }

    /// Send a datagram without waiting: `AGAIN` where the peer does not keep up.
    pub fn send(&self, datagram: &[u8]) -> Result<(), Errno> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::send(&self.0, datagram, flags).map(|_| ())
    }

    /// Receive a datagram; waits for it where `wait` is true, else fails with `AGAIN`.
    pub fn receive(&self, buffer: &mut [u8], wait: bool) -> Result<Received, Errno> {
        let mut flags = RecvFlags::CMSG_CLOEXEC;
        if !wait {
            flags |= RecvFlags::DONTWAIT;
        }
        // Room for one more than wanted, so that too many are noticed.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let result = loop {
            match rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
                Err(Errno::INTR) => {}
                other => break other?,
            }
        };
        let mut received = Received {
            length: result.bytes.min(buffer.len()),
            complete: !result.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC),
            descriptors: [None, None, None],
        };
        let mut count = 0;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                for descriptor in descriptors {
                    match received.descriptors.get_mut(count) {
                        Some(place) => *place = Some(descriptor),
                        None => received.complete = false,
                    }
                    count += 1;
                }
            }
        }
        Ok(received)
    }
}

/// Connect a Unix socket of any type to `path`, which may be longer than an address.
pub fn connect(socket: &OwnedFd, path: &[u8]) -> Result<(), Errno> {
    if path.len() <= LONGEST_ADDRESS {
        return rustix::net::connect(socket, &SocketAddrUnix::new(path)?);
    }
    // The kernel follows a descriptor's link in /proc, which is short.
    let name = text::basename(path);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(&path[..path.len() - name.len()], flags, Mode::empty())?;
    let prefix = alloc::format!("/proc/self/fd/{}/", directory.as_raw_fd());
    let short = text::c_string(&[prefix.as_bytes(), name]);
    if short.as_bytes().len() <= LONGEST_ADDRESS {
        return rustix::net::connect(socket, &SocketAddrUnix::new(short.as_bytes())?);
    }
    // The name alone is too long: by a descriptor of the socket itself.
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let short = alloc::format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::net::connect(socket, &SocketAddrUnix::new(short.as_bytes())?)
}

fn new_socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
