//! TCP ports of this qube that lead to a service of another one.
//!
//! `qvm-connect-tcp [LOCALPORT]:[QUBE]:PORT` listens on 127.0.0.1; each connection becomes a call,
//! with the connection as the call's both directions. Policy decides about each.

use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{sockopt, AddressFamily, Ipv4Addr, SocketAddrV4, SocketFlags, SocketType};

use crate::arguments::{one_option, Known};
use crate::code;
use crate::say;
use crate::speak::{self, Reason, Shown};
use crate::sys::call::{self, signal};
use crate::text::{c_string, decimal};

/// Connections at once; more wait until one ends.
const MOST: usize = 64;
const LONGEST_TARGET: usize = 63;
/// What a call names that names no target.
const DEFAULT: &[u8] = b"@default";
/// Until it is tried again to take a connection that there was no room for.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
const OWN_PROGRAM: &[u8] = b"/proc/self/exe";
const NAME: &str = "qvm-connect-tcp";
const KNOWN: [Known; 2] = [Known::value(b'a', "agent-socket"), Known::flag(b'h', "help")];
const USAGE: &str = "\
usage: qvm-connect-tcp [LOCALPORT]:[QUBE]:PORT

Let connections to 127.0.0.1:LOCALPORT reach PORT of another qube, until this program is ended.
LOCALPORT is PORT unless it is given; without QUBE the policy chooses one. The policy has to allow
`qubes.ConnectTCP +PORT`.

  -a, --agent-socket=PATH   the broker's socket (default /run/qubes/qrexec)
  -h, --help                show this
";

/// Where connections go.
pub struct Way<'a> {
    /// The port of this qube.
    pub port: u16,
    /// The qube that is called, as `qrexec-client-vm` takes it.
    pub target: &'a [u8],
    /// The service, with its argument.
    pub service: &'a [u8],
    /// The broker's socket, where not the usual one.
    pub socket: Option<&'a [u8]>,
}

/// `qvm-connect-tcp`; the exit code.
pub fn run(arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    let (socket, operands) = match one_option(NAME, USAGE, &KNOWN, arguments) {
        Ok(given) => given,
        Err(code) => return code,
    };
    let [specification] = operands else {
        return wrong("expected one `[LOCALPORT]:[QUBE]:PORT`");
    };
    let Some((port, target, remote)) = parse(specification.to_bytes()) else {
        return wrong(&alloc::format!(
            "`{}` is not `[LOCALPORT]:[QUBE]:PORT`, with ports from 1 to 65535",
            Shown(specification.to_bytes())
        ));
    };
    let service = alloc::format!("qubes.ConnectTCP+{remote}");
    let way = Way { port, target, service: service.as_bytes(), socket };
    match serve(&way, environment, || {
        if target == DEFAULT {
            say!("127.0.0.1:{port} leads to port {remote} of the qube that policy chooses");
        } else {
            say!("127.0.0.1:{port} leads to port {remote} of `{}`", Shown(target));
        }
    }) {
        Ok(()) => 0,
        Err(error) => {
            say!("error: cannot listen on 127.0.0.1:{port}: {error}", error = Reason(error));
            code::FAILURE
        }
    }
}

fn wrong(text: &str) -> i32 {
    speak::wrong_usage(NAME, text)
}

/// `[LOCALPORT]:[QUBE]:PORT` as local port, target and remote port.
fn parse(text: &[u8]) -> Option<(u16, &[u8], u16)> {
    let first = text.iter().position(|&byte| byte == b':')?;
    let last = text.iter().rposition(|&byte| byte == b':')?;
    // A target such as `@dispvm:NAME` has a colon of its own.
    let target = text.get(first + 1..last)?;
    let remote = port(&text[last + 1..])?;
    let local = if first == 0 { remote } else { port(&text[..first])? };
    let named = target.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_.@:-".contains(byte));
    if !named || target.len() > LONGEST_TARGET {
        return None;
    }
    Some((local, if target.is_empty() { DEFAULT } else { target }, remote))
}

fn port(digits: &[u8]) -> Option<u16> {
    let value = u16::try_from(decimal(digits)?).ok()?;
    (value > 0 && digits[0] != b'0').then_some(value)
}

/// Listen and make calls until asked to end; `ready` is run once connections are taken.
pub fn serve(way: &Way<'_>, environment: &[&'static CStr], ready: impl FnOnce()) -> Result<(), Errno> {
    let listener = listen(way.port)?;
    call::block_signals();
    let signals = call::signal_descriptor(&[signal::CHILD, signal::TERMINATE, signal::INTERRUPT])?;
    let mut children: Vec<i32> = Vec::new();
    ready();
    loop {
        let mut waiting = [PollFd::new(&signals, PollFlags::IN), PollFd::new(&listener, PollFlags::IN)];
        let watched = if children.len() < MOST { 2 } else { 1 };
        match rustix::event::poll(&mut waiting[..watched], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        if asked_to_end(&signals) {
            children.iter().for_each(|&pid| call::kill(pid, signal::TERMINATE));
            return Ok(());
        }
        while let Ok(Some((pid, _))) = call::reap() {
            children.retain(|&child| child != pid);
        }
        if children.len() >= MOST {
            continue;
        }
        match rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) {
            Ok(connection) => match call::fork() {
                Ok(None) => become_call(way, &connection, environment),
                Ok(Some(pid)) => children.push(pid),
                Err(error) => say!("error: a connection is closed: {error}", error = Reason(error)),
            },
            // It has gone already.
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => {}
            // Short for a moment, be it by a neighbour's doing: the connection stays in the queue.
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                let _ = rustix::event::poll(&mut [PollFd::new(&signals, PollFlags::IN)], Some(&PAUSE));
            }
            Err(error) => return Err(error),
        }
    }
}

fn listen(port: u16) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    rustix::net::bind(&listener, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    rustix::net::listen(&listener, MOST as i32)?;
    Ok(listener)
}

fn asked_to_end(signals: &OwnedFd) -> bool {
    const RECORD: usize = 128;
    let mut record = [0; RECORD];
    let mut end = false;
    while let Ok(RECORD) = rustix::io::read(signals, &mut record) {
        end |= u32::from_ne_bytes([record[0], record[1], record[2], record[3]]) != signal::CHILD;
    }
    end
}

fn become_call(way: &Way<'_>, connection: &OwnedFd, environment: &[&'static CStr]) -> ! {
    call::unblock_signals();
    if rustix::stdio::dup2_stdin(connection).is_ok() {
        let socket = way.socket.map(|path| c_string(&[b"--agent-socket=", path]));
        let parts = [&b"qrexec-client-vm"[..], b"--use-stdin-socket", b"--", way.target, way.service];
        let [name, option, end, target, service] = parts.map(|part| c_string(&[part]));
        let mut arguments: Vec<&CStr> = alloc::vec![&name, &option];
        arguments.extend(socket.as_deref());
        arguments.extend([&*end, &*target, &*service]);
        call::execute(&c_string(&[OWN_PROGRAM]), &arguments, environment);
    }
    call::exit(code::PROBLEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The forms that people know.
    #[test]
    fn forms() {
        assert_eq!(parse(b"2222:vault:22"), Some((2222, &b"vault"[..], 22)));
        assert_eq!(parse(b":vault:22"), Some((22, &b"vault"[..], 22)));
        assert_eq!(parse(b"::65535"), Some((65535, &b"@default"[..], 65535)));
        assert_eq!(parse(b"1:@dispvm:web:80"), Some((1, &b"@dispvm:web"[..], 80)));
        assert_eq!(parse(b":@dispvm:80"), Some((80, &b"@dispvm"[..], 80)));
    }

    /// What is no form is refused: ports, options and characters that a service name must not have.
    #[test]
    fn no_forms() {
        for wrong in [
            &b""[..],
            b":",
            b"::",
            b"22",
            b"vault:22",
            b":vault:",
            b":vault:0",
            b":vault:65536",
            b":vault:022",
            b":vault:+22",
            b":vault:22+x",
            b"0:vault:22",
            b"x:vault:22",
            b"-1:vault:22",
            b":va ult:22",
            b":va\nult:22",
            b":$(id):22",
            b":../x:22",
            b"::22 ",
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
        let long = [b":", &[b'a'; 64][..], b":22"].concat();
        assert_eq!(parse(&long), None);
    }
}
