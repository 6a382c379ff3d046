//! Socket services: connect, say what is called and by whom, and move bytes until both sides are done.

use core::convert::Infallible;
use core::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, Ipv4Addr, Ipv6Addr, SendFlags, Shutdown, SocketAddrV4, SocketAddrV6, SocketFlags,
    SocketType,
};

use super::tcp::{Host, Place, Zone};
use super::{problem, Attempt, Begin, Request};
use crate::relay::{End, Finish, Stream};
use crate::rpc_config::RpcConfig;
use crate::speak::{Reason, Shown};
use crate::sys::call;
use crate::{connection, process};

/// A service that does not take the connection, or its first bytes, in this time is not there.
const PATIENCE: Duration = Duration::from_secs(30);
/// Once the caller is gone, a service that takes no more of what it sent has this long, in seconds.
const LINGER: i64 = 60;

/// Connect to a Unix socket; its path may be longer than an address.
pub fn connect_unix(path: &[u8]) -> Attempt<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .and_then(|socket| {
            sockopt::set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
            connection::connect(&socket, path)?;
            Ok(socket)
        })
        .or_else(|error| {
            problem(alloc::format!("cannot connect to `{}`: {error}", Shown(path), error = Reason(error)))
        })
}

/// Connect to a TCP service.
pub fn connect_tcp(place: &Place) -> Attempt<OwnedFd> {
    try_connect_tcp(place).or_else(|error| {
        problem(alloc::format!(
            "cannot connect to the service's port {}: {error}",
            place.port,
            error = Reason(error)
        ))
    })
}

fn try_connect_tcp(place: &Place) -> Result<OwnedFd, Errno> {
    let open = |family| {
        let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
        Ok(socket)
    };
    let socket: OwnedFd = match &place.host {
        Host::V4([a, b, c, d]) => {
            let socket = open(AddressFamily::INET)?;
            rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::new(*a, *b, *c, *d), place.port))?;
            socket
        }
        Host::V6([a, b, c, d, e, f, g, h], zone) => {
            let socket = open(AddressFamily::INET6)?;
            let zone = match zone {
                Zone::Any => 0,
                Zone::Index(index) => *index,
                Zone::Interface(name) => {
                    let name = core::str::from_utf8(name).map_err(|_| Errno::INVAL)?;
                    rustix::net::netdevice::name_to_index(&socket, name)?
                }
            };
            let address = Ipv6Addr::new(*a, *b, *c, *d, *e, *f, *g, *h);
            rustix::net::connect(&socket, &SocketAddrV6::new(address, place.port, 0, zone))?;
            socket
        }
    };
    // Small messages, as of a terminal, are not held back.
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    Ok(socket)
}

/// Serve the call through the connected socket; returns only where it could not begin.
pub fn serve(
    socket: OwnedFd,
    request: &Request<'_>,
    config: &RpcConfig,
    begin: Begin,
) -> Attempt<Infallible> {
    call::ignore_broken_pipes();
    if !config.skip_service_descriptor {
        let told = [request.descriptor, b" ", request.source, request.rest, b"\0"].concat();
        // A service that has closed already has served its call.
        if let Err(error @ Errno::AGAIN) = send_all(&socket, &told) {
            return problem(alloc::format!("the service takes no call: {error}", error = Reason(error)));
        }
    }
    if begin == Begin::AndLeave {
        call::exit(0);
    }
    // Nothing of what the agent had open may live on in this process.
    let socket = call::keep_only(socket);
    if let Ok(null) = rustix::fs::open(&b"/dev/null"[..], OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    relay(socket, config);
    call::exit(0)
}

fn send_all(socket: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Move bytes until both directions have ended.
fn relay(socket: OwnedFd, config: &RpcConfig) {
    let _ = rustix::fs::fcntl_setfl(&socket, OFlags::NONBLOCK);
    let (Ok(reading), Ok(writing)) =
        (rustix::io::fcntl_dupfd_cloexec(&socket, 0), rustix::io::fcntl_dupfd_cloexec(&socket, 0))
    else {
        return;
    };
    let mut input = Some(Stream::new(End::Standard(0), End::Pipe(writing), false, b""));
    let mut output = Some(Stream::new(End::Pipe(reading), End::Standard(1), false, b""));
    let mut caller_gone = false;
    while input.is_some() || output.is_some() {
        let undelivered = caller_gone && input.as_ref().is_some_and(Stream::waits_for_sink);
        let linger = Timespec { tv_sec: LINGER, tv_nsec: 0 };
        let ready = match wait(&input, &output, &socket, undelivered.then_some(&linger)) {
            Ok(ready) => ready,
            Err(Errno::INTR) => continue,
            Err(_) => return,
        };
        if ready.input {
            match input.as_mut().and_then(Stream::advance) {
                Some(Finish::SourceEnded) => {
                    input = None;
                    if config.exit_on_client_eof {
                        return;
                    }
                    let _ = rustix::net::shutdown(&socket, Shutdown::Write);
                }
                Some(Finish::SinkClosed) => {
                    input = None;
                    call::close_standard_input();
                }
                None => {}
            }
        }
        if ready.output {
            match output.as_mut().and_then(Stream::advance) {
                Some(Finish::SourceEnded) => {
                    output = None;
                    if config.exit_on_service_eof {
                        return;
                    }
                    process::let_go_of_standard_output();
                }
                Some(Finish::SinkClosed) => caller_gone = true,
                None => {}
            }
        }
        caller_gone |= ready.caller_gone;
        if caller_gone && output.take().is_some() {
            refuse_output(&socket);
            process::let_go_of_standard_output();
        }
        if ready.service_gone && input.is_some() {
            // Closed both ways: nobody reads the input any more.
            input = None;
            call::close_standard_input();
        }
    }
}

/// Let the service's writes fail, also one that waits for room.
fn refuse_output(socket: &OwnedFd) {
    const MOST: usize = 64;
    let _ = rustix::net::shutdown(socket, Shutdown::Read);
    let mut chunk = [0; 16 * 1024];
    for _ in 0..MOST {
        if !matches!(rustix::io::read(socket, &mut chunk), Ok(1..)) {
            return;
        }
    }
}

#[derive(Default)]
struct Ready {
    input: bool,
    output: bool,
    service_gone: bool,
    caller_gone: bool,
}

/// Wait for something to do; `TIMEDOUT` where nothing comes in time.
fn wait(
    input: &Option<Stream>,
    output: &Option<Stream>,
    socket: &OwnedFd,
    timeout: Option<&Timespec>,
) -> Result<Ready, Errno> {
    let nothing = PollFlags::empty();
    let entries = [
        input.as_ref().map(Stream::poll_entry),
        output.as_ref().map(Stream::poll_entry),
        input.as_ref().map(|_| PollFd::new(socket, nothing)),
        output.as_ref().map(|_| PollFd::from_borrowed_fd(call::standard(1), nothing)),
    ];
    let present: [bool; 4] = core::array::from_fn(|at| entries[at].is_some());
    let mut waiting: alloc::vec::Vec<PollFd<'_>> = entries.into_iter().flatten().collect();
    if rustix::event::poll(&mut waiting, timeout)? == 0 {
        return Err(Errno::TIMEDOUT);
    }
    let mut found = waiting.iter();
    let mut next = |there: bool| if there { found.next().map(PollFd::revents) } else { None };
    let [input, output, service, caller] = present.map(|there| next(there).unwrap_or(nothing));
    Ok(Ready {
        input: !input.is_empty(),
        output: !output.is_empty(),
        service_gone: service.intersects(PollFlags::HUP | PollFlags::ERR),
        caller_gone: caller.intersects(PollFlags::HUP | PollFlags::ERR),
    })
}
