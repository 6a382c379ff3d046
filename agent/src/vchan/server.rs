//! The side that waits.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::event::{PollFd, PollFlags};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::rendezvous::{Rendezvous, Side};
use super::{bind, new_socket, open_stream, ready, Line, Owner};
use crate::sys::call;

/// Between two looks at a plain stream that nobody uses yet, in milliseconds: first and longest,
/// and longest where somebody is known to come.
const FIRST_PAUSE: i64 = 1;
const LONGEST_PAUSE: i64 = 500;
const LONGEST_WHERE_EXPECTED: i64 = 50;

/// Waits for the one peer of a port.
pub enum Server {
    /// A socket listens under its name.
    Listening {
        /// Readable when the peer has come.
        socket: OwnedFd,
        /// Its name, which goes when the peer has come or nobody waits any more.
        path: CString,
        /// Device and number of what we made there.
        made: (u64, u64),
    },
    /// A plain stream is looked at from time to time.
    Stream {
        /// The device or socket.
        path: CString,
        /// How to meet the other side there; none where its first word is enough.
        side: Option<Side>,
        /// Where it is open and the other side is not met yet.
        meeting: Option<Rendezvous>,
        /// Until the next look, in milliseconds.
        pause: i64,
        /// When that is.
        retry_at: i64,
    },
}

impl Server {
    /// Listen at `path`, in the place of a socket that was left there.
    pub(super) fn listen(path: CString) -> Result<Self, Errno> {
        let socket = new_socket()?;
        match rustix::fs::unlink(path.as_c_str()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        bind(&socket, path.as_bytes())?;
        let made = identity(&path)?;
        let server = Self::Listening { socket: ready(socket)?, path, made };
        if let Self::Listening { socket, .. } = &server {
            rustix::net::listen(socket, 1)?;
        }
        Ok(server)
    }

    /// Look at `path` for the other side.
    pub(super) fn stream(path: CString, side: Option<Side>) -> Self {
        Self::Stream { path, side, meeting: None, pause: FIRST_PAUSE, retry_at: 0 }
    }

    /// What to wait for before `take`, where it can be waited for.
    pub fn poll_entry(&self) -> Option<PollFd<'_>> {
        match self {
            Self::Listening { socket, .. } => Some(PollFd::new(socket, PollFlags::IN)),
            Self::Stream { meeting, .. } => meeting.as_ref().map(Rendezvous::poll_entry),
        }
    }

    /// When to call `take` whatever happens, on the clock of `call::milliseconds`.
    pub fn retry_at(&self) -> Option<i64> {
        match self {
            Self::Listening { .. } => None,
            Self::Stream { meeting: Some(meeting), .. } => meeting.retry_at(),
            Self::Stream { retry_at, .. } => Some(*retry_at),
        }
    }

    /// The peer, if it has come.
    pub fn take(&mut self) -> Result<Option<Line>, Errno> {
        match self {
            Self::Listening { socket, .. } => {
                match rustix::net::accept_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                    Ok(peer) => Ok(Some(ready(peer)?.into())),
                    Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
                    Err(error) => Err(error),
                }
            }
            Self::Stream { path, side, meeting, pause, retry_at } => {
                if meeting.is_none() && call::milliseconds() < *retry_at {
                    return Ok(None);
                }
                match look(path, *side, meeting) {
                    Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN | Errno::BUSY) => {}
                    Err(Errno::CONNRESET | Errno::PIPE) if side.is_some() => {}
                    other => return other,
                }
                *meeting = None;
                *retry_at = call::milliseconds() + *pause;
                let longest = if side.is_some() { LONGEST_WHERE_EXPECTED } else { LONGEST_PAUSE };
                *pause = (*pause * 2).min(longest);
                Ok(None)
            }
        }
    }

    /// Do not look for the peer before so many milliseconds have passed, where we look for it.
    pub fn pause(&mut self, milliseconds: i64) {
        if let Self::Stream { retry_at, .. } = self {
            *retry_at = call::milliseconds() + milliseconds;
        }
    }

    /// Wait for the peer; `CONNRESET` where the owner of a plain stream leaves before it came.
    pub(super) fn wait(mut self, until: i64, owner: Owner<'_>) -> Result<Line, Errno> {
        let owner = owner.filter(|_| matches!(self, Self::Stream { .. }));
        loop {
            let peer = self.take()?;
            // Behind it: whom we met after the owner left has come to another call.
            if owner.is_some_and(has_left) {
                return Err(Errno::CONNRESET);
            }
            if let Some(peer) = peer {
                return Ok(peer);
            }
            let left = until - call::milliseconds();
            if left <= 0 {
                return Err(Errno::TIMEDOUT);
            }
            let left = self.retry_at().map_or(left, |at| (at - call::milliseconds()).clamp(0, left));
            let timeout = call::timeout(left);
            let owner = owner.map(|owner| PollFd::new(owner, PollFlags::IN));
            let mut waiting: Vec<PollFd<'_>> = self.poll_entry().into_iter().chain(owner).collect();
            let _ = rustix::event::poll(&mut waiting, Some(&timeout));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A name without a listener makes clients wait in vain; one whose peer has come would let
        // the next client connect to nobody. Another server of this port may have taken our place.
        if let Self::Listening { path, made, .. } = self {
            if identity(path) == Ok(*made) {
                let _ = rustix::fs::unlink(path.as_c_str());
            }
        }
    }
}

/// Open a plain stream and meet the other side on it, as far as that can be done now.
fn look(path: &CStr, side: Option<Side>, meeting: &mut Option<Rendezvous>) -> Result<Option<Line>, Errno> {
    let mut met = match (meeting.take(), side) {
        (Some(begun), _) => begun,
        (None, Some(side)) => Rendezvous::new(open_stream(path)?, side)?,
        (None, None) => return Ok(Some(open_stream(path)?.into())),
    };
    if met.advance()? {
        return Ok(Some(met.into_line()));
    }
    *meeting = Some(met);
    Ok(None)
}

fn has_left(owner: &OwnedFd) -> bool {
    let at_once = call::timeout(0);
    rustix::event::poll(&mut [PollFd::new(owner, PollFlags::IN)], Some(&at_once)) == Ok(1)
}

fn identity(path: &CStr) -> Result<(u64, u64), Errno> {
    let found = rustix::fs::lstat(path)?;
    Ok((found.st_dev, found.st_ino))
}
