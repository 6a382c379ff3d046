//! A call that a program of ours makes for itself: the client runs as its child, over two pipes.
//!
//! A child and not a local program of the client, because only so do we learn how the service ended
//! before we believe what it sent.

use core::ffi::CStr;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::program::{self, Streams};
use crate::sys::call;
use crate::text::{c_string, literal};

/// The client, looked for along PATH.
const CLIENT: &CStr = literal(b"qrexec-client-vm\0");

/// A call in progress.
pub struct Conversation {
    /// What the service reads; dropped to tell it the end.
    pub to: Option<OwnedFd>,
    /// What the service writes.
    pub from: OwnedFd,
    pid: i32,
}

impl Conversation {
    /// Call `service` of `target`.
    pub fn start(target: &[u8], service: &[u8], environment: &[&CStr]) -> Result<Self, Errno> {
        call::ignore_broken_pipes();
        let (stdin, to) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (from, stdout) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (target, service) = (c_string(&[target]), c_string(&[service]));
        // After `--` neither a target nor a service is an option.
        let command = [CLIENT, literal(b"--\0"), &target, &service];
        let streams = Streams { stdin: Some(&stdin), stdout: Some(&stdout), quiet: false };
        let pid = program::start(&command, &streams, environment)?;
        Ok(Self { to: Some(to), from, pid })
    }

    /// End the call at once, whatever the service does.
    pub fn abandon(self) {
        call::kill(self.pid, call::signal::KILL);
        self.finish();
    }

    /// Close both ways and wait; the exit code of the call.
    pub fn finish(self) -> i32 {
        let Self { to, from, pid } = self;
        drop((to, from));
        program::code_of(pid)
    }
}
