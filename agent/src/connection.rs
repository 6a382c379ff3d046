//! The socket to the broker: connect, send a datagram, receive one with its descriptors.

use core::mem::MaybeUninit;

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, SocketFlags,
    SocketType,
};

use crate::process;
use crate::vchan::Address;

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
        let address = Address::of(path)?;
        rustix::net::connect(&socket, address.get())?;
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

fn new_socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
