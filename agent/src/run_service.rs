//! `qrexec-run-service`: find and run a service here, as the agent would for its own user.

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::arguments::{one_option, Known};
use crate::service::{self, Request, Settings};
use crate::{code, process, say, speak, users};

const NAME: &str = "qrexec-run-service";
const KNOWN: [Known; 2] = [Known::value(b'u', "user"), Known::flag(b'h', "help")];
const USAGE: &str = "\
usage: qrexec-run-service [--user NAME] SERVICE[+ARGUMENT] SOURCE [name|keyword TARGET]

Run a service of this qube with this program's standard streams, as if the qube SOURCE had called it.

  -u, --user NAME   run it as this user (default: who you are; a service may force another)
  -h, --help        show this

Services lie in $QREXEC_SERVICE_PATH (default /run/qubes-rpc, /usr/local/etc/qubes-rpc and
/etc/qubes-rpc), their settings in $QUBES_RPC_CONFIG_PATH.

Exit code: that of the service, 0 for one behind a socket. 125 it could not be started,
127 there is no such service.
";

/// Run with the arguments after the program's name; the exit code.
pub fn run(arguments: &[&'static CStr], environment: &'static [&'static CStr]) -> i32 {
    process::occupy_standard_descriptors();
    let (user, operands) = match one_option(NAME, USAGE, &KNOWN, arguments) {
        Ok(given) => given,
        Err(code) => return code,
    };
    let words: Vec<&[u8]> = operands.iter().map(|word| word.to_bytes()).collect();
    let (descriptor, source, rest) = match words[..] {
        [descriptor, source] => (descriptor, source, Vec::new()),
        [descriptor, source, kind, target] => (descriptor, source, [b" ", kind, b" ", target].concat()),
        _ => {
            let text = "expected a service, the calling qube, and nothing or a type and a target";
            return speak::wrong_usage(NAME, text);
        }
    };
    let user = match user.map_or_else(own_name, |name| Ok(name.to_vec())) {
        Ok(user) => user,
        Err(text) => {
            say!("error: {text}");
            return code::PROBLEM;
        }
    };
    let request = Request { rest: &rest, ..Request::new(descriptor, source) };
    let settings = Settings { inherited: Some(environment), ..Settings::new(environment) };
    service::serve_here(&request, &user, &settings)
}

/// The name of the user that we run as.
pub fn own_name() -> Result<Vec<u8>, String> {
    let id = rustix::process::geteuid().as_raw();
    users::read_file(b"/etc/passwd")
        .ok()
        .and_then(|passwd| users::find_id(&passwd, id).map(|user| user.name.to_vec()))
        .filter(|name| !name.is_empty())
        .ok_or_else(|| alloc::format!("no user of this qube has the id {id}"))
}
