//! What hangs on our side of a data link: our own streams, a local command, or a service.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fd::OwnedFd;
use rustix::fs::Access;
use rustix::io::Errno;

use super::options::Wishes;
use crate::link::{self, Child, Forked, Link, Peer, Rules, Sink, Source, Stream};
use crate::relay::End;
use crate::service::{self, Request, Settings, Work};
use crate::speak::Reason;
use crate::sys::call;
use crate::text::{c_string, directories};
use crate::{code, environment, run_service};

/// Our side of a call that only starts something: nothing is said, and nothing but the code is told.
pub fn starter(peer: Peer) -> Link {
    let mut link = Link::new(Rules::of_caller(false), peer);
    link.rules.ended(Stream::Input);
    link
}

/// Our side of a call that a service of ours makes in our place.
pub fn calling_service(wishes: &Wishes, child: Child, peer: Peer) -> Link {
    let mut link = Link::new(Rules::of_caller(true), peer);
    link.peer.queue_data(Stream::Input, wishes.prefix);
    link.process = child.process;
    link.sources.push((Stream::Input, Source::new(End::Pipe(child.stdout))));
    link.sinks.push((Stream::Output, Sink::filtered(End::Pipe(child.stdin), wishes.filter_stdout)));
    link.sinks.push((Stream::Errors, Sink::filtered(End::Standard(2), wishes.filter_stderr)));
    link
}

/// Our side where a service of ours is called. Its errors stay here: no qube is to read them.
pub fn service(child: Child, signals: OwnedFd, peer: Peer) -> Link {
    let mut link = child.serving(signals, peer);
    link.rules.ended(Stream::Errors);
    link
}

/// Start a service of ours.
pub fn start_service(
    request: Request<'_>,
    user: &[u8],
    environment: &'static [&'static CStr],
) -> Result<Child, String> {
    let named = !matches!(user, b"" | b"DEFAULT");
    let user = local_user(user)?;
    // The errors are ours, not the caller's.
    let settings = Settings { callers: &[1], ..local_settings(environment) };
    let start = || -> Result<Child, Errno> {
        let stderr = rustix::io::fcntl_dupfd_cloexec(call::standard(2), 3).ok();
        match link::fork()? {
            Forked::New { stdin, stdout } => {
                call::default_broken_pipes();
                if named && rustix::thread::set_no_new_privs(true).is_err() {
                    // Somebody else than we was named so that it has fewer rights, and gains none.
                    call::exit(code::PROBLEM);
                }
                let descriptors = [Some(stdin), Some(stdout), stderr];
                service::become_service(Work::Service(request), &user, descriptors, &settings)
            }
            Forked::Ours(child) => Ok(child),
        }
    };
    start().map_err(|error| alloc::format!("cannot make a process: {}", Reason(error)))
}

/// The words that have a shell run the line of `-l`.
pub fn shell(line: &'static [u8]) -> Vec<&'static CStr> {
    let bash = c_string(&[b"/bin/bash"]);
    // Bash takes a socket as its input for a remote shell, and would read its rc file.
    let words: &[&[u8]] = if rustix::fs::access(&bash, Access::EXEC_OK).is_ok() {
        &[b"/bin/bash", b"--norc", b"-c", line]
    } else {
        &[b"/bin/sh", b"-c", line]
    };
    words.iter().map(|word| -> &'static CStr { Box::leak(c_string(&[word]).into_boxed_c_str()) }).collect()
}

/// What services of the admin qube are started with: the usual places lie below its root.
pub fn local_settings(environment: &'static [&'static CStr]) -> Settings {
    let given = |name: &[u8]| environment::get(environment, name).is_some();
    let root = environment::get(environment, b"CAISSON_ROOT").unwrap_or(b"");
    let below_root = |path: &'static [u8]| -> &'static [u8] {
        let moved: Vec<Vec<u8>> = directories(path).map(|directory| [root, directory].concat()).collect();
        Vec::leak(moved.join(&b':'))
    };
    let mut settings = Settings { inherited: Some(environment), ..Settings::new(environment) };
    if !given(b"QREXEC_SERVICE_PATH") {
        settings.service_path = below_root(settings.service_path);
    }
    if !given(b"QUBES_RPC_CONFIG_PATH") {
        settings.config_path = below_root(settings.config_path);
    }
    if !given(b"CAISSON_SESSION_LOCKS") {
        settings.locks = below_root(settings.locks);
    }
    settings
}

/// Services of the admin qube are run by whoever we are, unless another user is named.
pub fn local_user(user: &[u8]) -> Result<Vec<u8>, String> {
    match user {
        b"" | b"DEFAULT" => run_service::own_name(),
        named => Ok(named.to_vec()),
    }
}
