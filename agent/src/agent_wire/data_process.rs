//! The process of one call that the daemon asked for.

use alloc::vec::Vec;
use core::ffi::CStr;

use super::fork_server;
use crate::environment;
use crate::link::{self, serve, Peer};
use crate::service::Settings;
use crate::speak::Reason;
use crate::sys::call;
use crate::vchan::{Place, PATIENCE};
use crate::wire::ExecParams;
use crate::{code, say};

/// What to serve.
pub struct DataProcess {
    /// `USER:COMMAND`.
    pub line: Vec<u8>,
    /// Nobody waits for its end.
    pub just_start: bool,
}

impl DataProcess {
    /// Serve the call; the exit code of this process. Its parent closed nothing for it but what the
    /// agent held.
    pub fn run(
        &self,
        params: ExecParams,
        place: &Place,
        fork_server: Option<&'static [u8]>,
        given: &[&'static CStr],
    ) -> i32 {
        let root = rustix::process::geteuid().is_root();
        let settings = Settings { login_shell: root, ..Settings::new(given) };
        if let Some(pattern) = fork_server {
            if fork_server::hand_over(pattern, self, params, &settings) {
                return 0;
            }
        }
        let until = call::milliseconds() + PATIENCE;
        let ExecParams { domain, port } = params;
        let stream = match place.connect(domain, port, until, None) {
            Ok(stream) => stream,
            Err(error) => {
                let error = Reason(error);
                say!("error: cannot connect to domain {domain} at port {port}: {error}");
                return code::FAILURE;
            }
        };
        match Peer::open(stream, until) {
            Ok(peer) => {
                let log = environment::get(given, b"CAISSON_LOG_SOCKET").unwrap_or(link::LOG);
                serve::Call { line: &self.line, just_start: self.just_start, log }.serve(peer, &settings)
            }
            Err(refusal) => {
                say!("error: the link to domain {domain} at port {port} did not come up: {refusal}");
                code::FAILURE
            }
        }
    }
}
