//! What runs inside a qube: its first process and the clients of its calls.
//!
//! One binary; the name it is called by chooses what it does:
//!
//! | name | role |
//! |---|---|
//! | `qrexec-agent` | first process of a qube: proves the barriers, runs services, reaps |
//! | `qrexec-client-vm` | a call from this qube to another |
//! | `qrexec-client` | a call from the admin qube into a qube |
//! | `qrexec-run-service` | run a service here, with our own standard streams |
//! | `qrexec-link` | the service's side of a call's data link, for a service that runs elsewhere |
//! | `qubes-vmexec` | service `qubes.VMExec`: runs the program that its argument spells |
//!
//! It trusts the broker's socket, and nothing else that it reads: files and processes of a qube may
//! be hostile. It uses neither the standard library nor libc, so that it starts in 0.1 ms.
#![cfg_attr(not(any(test, fuzzing)), no_std)]
#![deny(unsafe_code)]

extern crate alloc;

pub mod agent;
pub mod agent_wire;
pub mod arguments;
pub mod barriers;
pub mod call;
pub mod children;
pub mod client;
pub mod client_dom0;
pub mod client_wire;
pub mod connection;
pub mod environment;
pub mod filter;
#[cfg(any(test, fuzzing))]
pub mod fuzzed;
pub mod link;
pub mod link_program;
pub mod local_program;
pub mod message;
pub mod process;
pub mod qfile;
pub mod relay;
pub mod rpc_config;
pub mod run_service;
pub mod service;
pub mod speak;
pub mod sys;
pub mod text;
pub mod users;
pub mod vchan;
pub mod vmexec;
pub mod wire;

use core::ffi::CStr;

/// Exit codes with a meaning of their own.
pub mod code {
    /// The command line makes no sense.
    pub const USAGE: i32 = 2;
    /// Something failed on this side before the call.
    pub const FAILURE: i32 = 1;
    /// The call could not be set up.
    pub const PROBLEM: i32 = 125;
    /// Policy or the person said no.
    pub const REFUSED: i32 = 126;
    /// There is no such service.
    pub const NOT_FOUND: i32 = 127;
    /// The broker went away during the call.
    pub const LOST: i32 = 255;
}

/// Do what the program was called for; the result is its exit code.
pub fn run(arguments: &[&'static CStr], environment: &'static [&'static CStr]) -> i32 {
    let name = arguments.first().map_or(&b""[..], |name| name.to_bytes());
    let rest = arguments.get(1..).unwrap_or(&[]);
    match text::basename(name) {
        b"qrexec-client-vm" => client::run(rest, environment),
        b"qrexec-client" => client_dom0::run(rest, environment),
        b"qrexec-run-service" => run_service::run(rest, environment),
        b"qrexec-link" => link_program::run(rest, environment),
        b"qfile-agent" => qfile::sender::run(rest, environment),
        name @ (b"qvm-copy" | b"qvm-move" | b"qvm-copy-to-vm" | b"qvm-move-to-vm") => {
            qfile::copy::run(name, rest, environment)
        }
        b"qfile-unpacker" => qfile::unpacker::run(rest, environment),
        b"qubes-vmexec" => vmexec::run(rest, environment),
        _ if agent_wire::is_wanted(rest, environment) => agent_wire::run(rest, environment),
        _ => agent::run(environment),
    }
}
