//! A user's session server: where there is one, it serves that user's calls in our place, inside
//! the session.

use rustix::fd::OwnedFd;
use rustix::io::Errno;

use super::data_process::DataProcess;
use crate::connection;
use crate::flow;
use crate::rpc_config;
use crate::say;
use crate::service::{self, command, Settings, Work};
use crate::speak::{Reason, Shown};
use crate::text::split_once;
use crate::users::{self, User};
use crate::vchan::new_socket;
use crate::wire::{ExecParams, Kind};

/// Where session servers are; `%s` stands for the user.
pub const PATTERN: &[u8] = b"/run/qubes/qrexec-server.%s.sock";

/// Hand a call over to the session server of its user and wait for its end; false where there is
/// none, or where the call is not for it.
pub fn hand_over(pattern: &[u8], call: &DataProcess, params: ExecParams, settings: &Settings) -> bool {
    let Some((server, line)) = find(pattern, call, settings) else {
        return false;
    };
    let kind = if call.just_start { Kind::JustExec } else { Kind::ExecCmdline };
    let request = request(kind, params, line);
    if let Err(error) = flow::write_all(&server, &request) {
        say!("error: a session server did not take a call: {error}", error = Reason(error));
        return false;
    }
    // The process that serves the call holds the other end until it has ended.
    let mut nothing = [0; 64];
    while matches!(rustix::io::read(&server, &mut nothing), Ok(1..) | Err(Errno::INTR)) {}
    true
}

/// The connection, and the command without its user.
fn find<'a>(pattern: &[u8], call: &'a DataProcess, settings: &Settings) -> Option<(OwnedFd, &'a [u8])> {
    let (user, line) = split_once(&call.line, b':')?;
    if line.starts_with(command::NO_GUI) {
        return None;
    }
    let mut user = user.to_vec();
    let mut waiting = None;
    if let Ok((_, Work::Service(request))) = command::parse(&call.line) {
        // Settings that cannot be read are told to the caller, by the service that does not start.
        let argument = request.argument().unwrap_or(b"");
        let config = rpc_config::load(settings.config_path, request.name(), argument).ok()?;
        if config.skip_service_descriptor || config.exit_on_client_eof || config.exit_on_service_eof {
            return None;
        }
        user = config.force_user.unwrap_or(user);
        waiting = config.wait_for_session.then_some(request.source);
    }
    if user.is_empty() || user == b"DEFAULT" {
        user = b"user".to_vec();
    }
    let path = path(pattern, &user)?;
    let passwd = users::read_file(b"/etc/passwd").ok()?;
    let user = users::find(&passwd, &user)?;
    if let Some(source) = waiting {
        // The server is a part of the session: before it there may be none.
        // Nothing here is the caller's yet.
        service::wait_for_session(&user, source, &Settings { callers: &[], ..*settings });
    }
    Some((connect(&path, &user)?, line))
}

/// `%s` of the pattern replaced; `None` for a user that no file can be named after.
fn path(pattern: &[u8], user: &[u8]) -> Option<alloc::vec::Vec<u8>> {
    if user.contains(&b'/') || user.contains(&0) {
        return None;
    }
    match pattern.windows(2).position(|pair| pair == b"%s") {
        Some(at) => Some([&pattern[..at], user, &pattern[at + 2..]].concat()),
        None => Some(pattern.to_vec()),
    }
}

/// Connect to the user's server; one that belongs to neither the user nor root is none.
fn connect(path: &[u8], user: &User<'_>) -> Option<OwnedFd> {
    let socket = new_socket().ok()?;
    connection::connect(&socket, path).ok()?;
    let owner = rustix::net::sockopt::socket_peercred(&socket).ok()?.uid.as_raw();
    if owner != 0 && owner != user.uid {
        say!("`{}` belongs to user {owner}, not to `{}`: it is not used", Shown(path), Shown(user.name));
        return None;
    }
    Some(socket)
}

/// Kind, domain, port and length as four numbers; then the command and its NUL.
fn request(kind: Kind, params: ExecParams, line: &[u8]) -> alloc::vec::Vec<u8> {
    let length = line.len() as u32 + 1;
    let head = [(kind as u32).to_le_bytes(), params.domain.to_le_bytes(), params.port.to_le_bytes()];
    [&head.concat()[..], &length.to_le_bytes(), line, b"\0"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 16 bytes before the command, and its one NUL.
    #[test]
    fn a_request_of_the_sheet() {
        let params = ExecParams { domain: 7, port: 514 };
        assert_eq!(
            request(Kind::ExecCmdline, params, b"ls"),
            b"\x00\x02\0\0\x07\0\0\0\x02\x02\0\0\x03\0\0\0ls\0"
        );
    }

    /// A user's name never leads out of the directory.
    #[test]
    fn paths_of_servers() {
        assert_eq!(path(PATTERN, b"user").unwrap(), b"/run/qubes/qrexec-server.user.sock");
        assert_eq!(path(b"/x", b"user").unwrap(), b"/x");
        for wrong in [&b"../user"[..], b"a/b", b"a\0"] {
            assert_eq!(path(PATTERN, wrong), None);
        }
    }
}
