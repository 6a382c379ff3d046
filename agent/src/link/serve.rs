//! The process that serves one call: the data link on one side, the service on the other.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::child::{self, watch_signals, Forked};
use super::ends::Source;
use super::log::Log;
use super::peer::Peer;
use super::rules::{Rules, Stream};
use super::run::Link;
use crate::process::exit_code;
use crate::relay::End;
use crate::service::{self, command, Request, Settings, Work};
use crate::speak::Reason;
use crate::sys::call;
use crate::{code, say};

/// What to serve.
pub struct Call<'a> {
    /// `USER:COMMAND` as the daemon sent it.
    pub line: &'a [u8],
    /// Start the service and end the call at once.
    pub just_start: bool,
    /// The socket of the log to which errors of services are copied.
    pub log: &'a [u8],
}

impl Call<'_> {
    /// Serve the call to its end; the exit code that the caller was told, or `LOST`.
    ///
    /// All signals have to be blocked.
    pub fn serve(&self, peer: Peer, settings: &Settings) -> i32 {
        let (user, work) = match command::parse(self.line) {
            Ok(parsed) => parsed,
            Err(wrong) if self.just_start => {
                say!("error: a call is refused: {wrong}");
                return Link::new(Rules::of_started_service(code::PROBLEM), peer).run();
            }
            Err(wrong) => return refuse(peer, wrong),
        };
        if self.just_start {
            let errors = match work {
                Work::Service(request) => log_errors(self.log, request),
                Work::Command(_) => None,
            };
            let code = start(work, user, settings, errors);
            return Link::new(Rules::of_started_service(code), peer).run();
        }
        let begin = || -> Result<_, Errno> {
            let (stderr, its_stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            Ok((watch_signals()?, stderr, its_stderr, child::fork()?))
        };
        match begin() {
            Ok((signals, stderr, its_stderr, Forked::New { stdin, stdout })) => {
                // It may wait for long before it executes anything.
                drop((peer, signals, stderr));
                let descriptors = [Some(stdin), Some(stdout), Some(its_stderr)];
                service::become_service(work, user, descriptors, settings)
            }
            Ok((signals, stderr, its_stderr, Forked::Ours(service))) => {
                drop(its_stderr);
                let mut link = service.serving(signals, peer);
                link.sources.push((Stream::Errors, Source::new(End::Pipe(stderr))));
                if let Work::Service(request) = work {
                    link.log = Log::open(self.log, request.descriptor, request.source);
                }
                link.run()
            }
            Err(error) => refuse(peer, &alloc::format!("cannot make a process: {}", Reason(error))),
        }
    }
}

/// Tell the caller on its stderr why there is no service.
fn refuse(peer: Peer, why: &str) -> i32 {
    let mut link = Link::new(Rules::of_service(), peer);
    link.peer.queue_data(Stream::Errors, alloc::format!("error: {why}\n").as_bytes());
    link.rules.ended(Stream::Output);
    link.rules.ended(Stream::Errors);
    link.rules.exited(code::PROBLEM);
    link.run()
}

/// Start a service that nobody waits for: 0, or why it does not run.
fn start(work: Work<'_>, user: &[u8], settings: &Settings, errors: Option<OwnedFd>) -> i32 {
    match call::fork() {
        Ok(None) => service::start_and_leave(work, user, settings, errors),
        Ok(Some(pid)) => {
            drop(errors);
            call::wait_for(pid).map_or(code::PROBLEM, exit_code)
        }
        Err(error) => {
            say!("error: cannot make a process: {error}", error = Reason(error));
            code::PROBLEM
        }
    }
}

/// Where a service that outlives its call writes its errors: a process copies them to the log, if
/// there is one.
fn log_errors(log: &[u8], request: Request<'_>) -> Option<OwnedFd> {
    let open = || Log::open(log, request.descriptor, request.source);
    open()?;
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).ok()?;
    match call::fork().ok()? {
        Some(_) => Some(writer),
        None => {
            // Neither the call nor our starter waits for the service's end because of us.
            let reader = call::keep_only(reader);
            service::take_descriptors(&[None, None, None]);
            service::enter_session();
            if let Some(mut log) = open() {
                log.add_all(&reader);
            }
            call::exit(0)
        }
    }
}
