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
//! | `qubesdb-*` | what this qube is told of itself: read, list, watch; notes of its own |
//! | `qubes-setup` | keeps chosen paths of this qube; the agent does it at the start |
//! | `qubes-set-clock`, `qvm-sync-clock` | dates from other qubes, and the clock |
//! | `qvm-connect-tcp` | a port of this qube that leads to another one |
//! | `qvm-copy` and five others | files between qubes, see `qfile` |
//! | `tar2qfile` | an archive as files for another qube |
//! | `qubes-vmexec` | service `qubes.VMExec`: runs the program that its argument spells |
//! | `qvm-run-vm` | a shell command in another qube |
//! | `qvm-open-in-vm` and three others | files and addresses opened in another qube, see `open` |
//! | `qubes-desktop-run` and two others | programs by their desktop entries, see `desktop` |
//! | `qvm-convert-img` and two others | pictures between qubes, see `image` |
//! | `qvm-log`, `qubes-log-sink` | logs between qubes, see `remote_log` |
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
pub mod caller;
pub mod children;
pub mod client;
pub mod client_dom0;
pub mod client_wire;
pub mod clock;
pub mod connection;
pub mod conversation;
pub mod desktop;
pub mod environment;
pub mod exchange;
pub mod facts;
pub mod filter;
pub mod flow;
pub mod forward;
#[cfg(any(test, fuzzing))]
pub mod fuzzed;
pub mod image;
pub mod link;
pub mod link_program;
pub mod local_program;
pub mod message;
pub mod open;
pub mod process;
pub mod program;
pub mod qfile;
pub mod relay;
pub mod remote_log;
pub mod rpc_config;
pub mod run_service;
pub mod run_vm;
pub mod service;
pub mod setup;
pub mod speak;
pub mod sys;
pub mod tar;
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
    let name = text::basename(name);
    match name {
        b"qrexec-client-vm" => client::run(rest, environment),
        b"qrexec-client" => client_dom0::run(rest, environment),
        b"qrexec-run-service" => run_service::run(rest, environment),
        b"qrexec-link" => link_program::run(rest, environment),
        b"qubesdb-read" | b"qubesdb-list" | b"qubesdb-multiread" | b"qubesdb-watch" | b"qubesdb-write"
        | b"qubesdb-rm" => facts::run(name, rest, environment),
        b"qubes-setup" => setup::run(),
        b"qubes-set-clock" => clock::set_from_input(),
        b"qvm-sync-clock" => clock::synchronise(rest, environment),
        b"qvm-connect-tcp" => forward::run(rest, environment),
        b"qfile-agent" => qfile::sender::run(rest, environment),
        b"qfile-unpacker" => qfile::unpacker::run(rest, environment),
        b"qvm-copy" | b"qvm-move" | b"qvm-copy-to-vm" | b"qvm-move-to-vm" => {
            qfile::copy::run(name, rest, environment)
        }
        b"tar2qfile" => tar::program::run(rest, environment),
        b"qubes-vmexec" => vmexec::run(rest, environment),
        b"qvm-open-in-vm" | b"qvm-open-in-dvm" | b"vm-file-editor" | b"qubes-open-url" => {
            open::run(name, rest, environment)
        }
        b"qubes-desktop-run" | b"qubes-start-app" | b"qubes-get-appmenus" => {
            desktop::run(name, rest, environment)
        }
        b"qubes-get-image" | b"qubes-image-source" | b"qvm-convert-img" => {
            image::run(name, rest, environment)
        }
        b"qubes-log-sink" | b"qvm-log" => remote_log::run(name, rest, environment),
        b"qvm-run-vm" => run_vm::run(rest, environment),
        _ if agent_wire::is_wanted(rest, environment) => agent_wire::run(rest, environment),
        _ => agent::run(environment),
    }
}
