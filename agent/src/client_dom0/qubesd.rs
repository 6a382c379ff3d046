//! The one thing that this client asks of qubesd: to kill a qube once its call has ended.

use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{SendFlags, Shutdown};

use crate::speak::{Reason, Shown};
use crate::text::split_once;
use crate::{connection, vchan};

/// qubesd answers in this time or not at all.
const PATIENCE: Duration = Duration::from_secs(60);
const LONGEST_ANSWER: usize = 4096;

/// Kill the qube.
pub fn kill(socket: &[u8], qube: &[u8]) -> Result<(), String> {
    let answer = ask(socket, &[b"admin.vm.Kill dom0 name ", qube, b"\0"].concat()).map_err(|error| {
        alloc::format!("cannot reach qubesd at `{}`: {error}", Shown(socket), error = Reason(error))
    })?;
    if answer.starts_with(b"0\0") {
        return Ok(());
    }
    let kind =
        answer.strip_prefix(b"2\0").and_then(|rest| split_once(rest, 0)).map_or(&b""[..], |(kind, _)| kind);
    // It ended by itself before we asked, and a disposable is gone with that.
    if matches!(kind, b"QubesVMNotStartedError" | b"QubesVMNotRunningError" | b"QubesVMNotFoundError") {
        return Ok(());
    }
    Err(alloc::format!("qubesd does not kill `{}`: {}", Shown(qube), Shown(kind)))
}

fn ask(socket: &[u8], request: &[u8]) -> Result<Vec<u8>, Errno> {
    let stream: OwnedFd = vchan::new_socket()?;
    sockopt::set_socket_timeout(&stream, Timeout::Send, Some(PATIENCE))?;
    sockopt::set_socket_timeout(&stream, Timeout::Recv, Some(PATIENCE))?;
    connection::connect(&stream, socket)?;
    let mut rest = request;
    while !rest.is_empty() {
        let count = rustix::net::send(&stream, rest, SendFlags::NOSIGNAL)?;
        rest = &rest[count..];
    }
    rustix::net::shutdown(&stream, Shutdown::Write)?;
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    loop {
        match rustix::io::read(&stream, &mut piece)? {
            0 => return Ok(answer),
            count if answer.len() < LONGEST_ANSWER => answer.extend_from_slice(&piece[..count]),
            _ => return Ok(answer),
        }
    }
}
