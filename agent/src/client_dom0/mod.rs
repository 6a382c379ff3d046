//! `qrexec-client`: run a command or a service in a qube, from the admin qube.
//!
//! A qube behind a qrexec-daemon is reached through the daemon's socket and a data link; any other
//! qube through our broker. What runs in the admin qube itself is started here.
//!
//! | file | purpose |
//! |---|---|
//! | `options` | the command line |
//! | `daemon` | the local socket of a qrexec-daemon |
//! | `ends` | what hangs on our side of a data link |
//! | `qubesd` | `-k` |

mod daemon;
mod ends;
mod options;
mod qubesd;

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use daemon::Daemon;
use options::{Answer, Wishes};

use crate::call::Call;
use crate::caller::Caller;
use crate::link::{self, Peer};
use crate::process::exit_code;
use crate::service::{self, command, Request, Settings, Work};
use crate::speak::{self, Reason, Shown};
use crate::sys::call;
use crate::text::{c_string, split_once};
use crate::vchan::{Line, Place};
use crate::wire::ExecParams;
use crate::{code, environment, message, process, say};

const BROKER: &[u8] = b"/run/qubes/broker/dom0/qrexec";
const DAEMONS: &[u8] = b"/run/qubes";
const QUBESD: &[u8] = b"/run/qubesd.sock";
/// Milliseconds: more than a century.
const FOR_EVER: i64 = 1 << 42;
/// What ends a call between two qubes that could not be set up.
const NOT_CONNECTED: i32 = 137;
const USAGE: &str = "\
usage: qrexec-client -d QUBE [OPTIONS] USER:COMMAND

Run COMMAND as USER (DEFAULT for the qube's default user) in a running qube.
COMMAND is a shell command, or `QUBESRPC SERVICE[+ARGUMENT] SOURCE`;
with `nogui:` before it, it does not wait for the user's session.
In the admin qube, dom0, COMMAND is always a service.

  -d QUBE             the qube: its name, `uuid:UUID`, or dom0
  -e                  start it and do not wait for it
  -l COMMAND          run COMMAND here, connected to the one in the qube
  -c ID,NAME,NUMBER   answer the call ID of the qube NAME with the number NUMBER
  -W                  with -c: wait for the end of the call
  -k                  kill the qube at the end
  -E                  exit with 0 whatever the command's code
  -t, -T              replace control characters on stdout, on stderr
  -p DATA             send DATA before standard input
  -w SECONDS          time for the qube to connect (default 10, 0 for no limit)
  --use-stdin-socket  standard input is a socket: use it both ways
  --socket-dir DIR    where the sockets of qrexec-daemons lie (default below $CAISSON_ROOT:
                      run/qubes; a qube that has none there is reached through the broker)
  --socket PATH       the broker's socket (default below $CAISSON_ROOT: run/qubes/broker/dom0/qrexec)
  -h, --help          show this

Exit code: that of the command. 1 it could not be reached, or its output not be written here, 125 it could not be set up, 126 refused,
127 no such service, 137 a call between two qubes could not be connected, 255 the connection was lost.
";

/// Run with the arguments after the program's name; the exit code.
pub fn run(arguments: &[&'static CStr], environment: &'static [&'static CStr]) -> i32 {
    process::occupy_all_but_output();
    let wishes = match options::read(arguments) {
        Ok(Some(wishes)) => wishes,
        Ok(None) => {
            let _ = rustix::io::write(call::standard(1), USAGE.as_bytes());
            return 0;
        }
        Err(text) => return speak::wrong_usage("qrexec-client", &text),
    };
    let client = Client { wishes, environment };
    let code = client.call();
    if client.wishes.kill {
        if let Err(text) = qubesd::kill(&client.below_root(QUBESD), client.wishes.qube) {
            say!("error: {text}");
        }
    }
    if client.wishes.hide_code {
        0
    } else {
        code
    }
}

/// One run of the program.
struct Client {
    wishes: Wishes,
    environment: &'static [&'static CStr],
}

/// The exit code, or the code and the text of what went wrong.
type Outcome = Result<i32, (i32, String)>;

fn failed(code: i32) -> impl Fn(String) -> (i32, String) {
    move |text| (code, text)
}

impl Client {
    fn call(&self) -> i32 {
        let outcome = match &self.wishes.answer {
            Some(answer) if self.wishes.here() => self.serve(answer),
            Some(answer) => self.connect(answer).map_err(failed(NOT_CONNECTED)),
            None if self.wishes.socket.is_some() => self.call_through_broker(),
            None if self.wishes.here() => self.run_here(),
            None if self.has_daemon() => self.call_through_daemon(),
            None => self.call_through_broker(),
        };
        outcome.unwrap_or_else(|(code, text)| {
            say!("error: {text}");
            code
        })
    }

    fn below_root(&self, path: &[u8]) -> Vec<u8> {
        let root = environment::get(self.environment, b"CAISSON_ROOT").unwrap_or(b"");
        [root.strip_suffix(b"/").unwrap_or(root), path].concat()
    }

    fn daemon_socket(&self, qube: &[u8]) -> Vec<u8> {
        let directory = match self.wishes.socket_dir {
            Some(directory) => directory.to_vec(),
            None => self.below_root(DAEMONS),
        };
        [&directory[..], b"/qrexec.", qube].concat()
    }

    fn has_daemon(&self) -> bool {
        let path = c_string(&[&self.daemon_socket(self.wishes.qube)]);
        self.wishes.socket_dir.is_some() || rustix::fs::stat(&path).is_ok()
    }

    /// When the other side of a data link has to have come.
    fn deadline(&self) -> i64 {
        call::milliseconds() + self.wishes.patience.unwrap_or(FOR_EVER)
    }

    // Through our broker.

    fn call_through_broker(&self) -> Outcome {
        let wishes = &self.wishes;
        let (user, line) = split_once(wishes.command, b':')
            .ok_or((code::USAGE, String::from("expected `USER:COMMAND`, found no `:`")))?;
        let user = if user == b"DEFAULT" { b"" } else { user };
        let line = if wishes.just_start { in_background(line) } else { line.to_vec() };
        let local = match wishes.local {
            Some(local) if local.starts_with(b"QUBESRPC") => {
                let text = "`-l` takes no service in a call through the broker";
                return Err((code::PROBLEM, text.into()));
            }
            Some(local) => ends::shell(local),
            None => Vec::new(),
        };
        let below_root = self.below_root(BROKER);
        Ok(Call {
            socket: wishes.socket.unwrap_or(&below_root),
            request: message::admin_request(wishes.qube, user, &line, wishes.just_start),
            caller: self.caller(&local),
        }
        .run())
    }

    // Through a qrexec-daemon.

    /// Call the qube; its agent connects to us.
    fn call_through_daemon(&self) -> Outcome {
        let wishes = &self.wishes;
        command::parse(wishes.command).map_err(|wrong| (code::PROBLEM, wrong.into()))?;
        call::ignore_broken_pipes();
        let place = self.place().map_err(failed(code::FAILURE))?;
        let mut daemon = Daemon::connect(&self.daemon_socket(wishes.qube)).map_err(failed(code::FAILURE))?;
        let there = daemon.execute(wishes.just_start, 0, wishes.command).map_err(failed(code::FAILURE))?;
        let until = self.deadline();
        let stream =
            place.accept(there.domain, there.port, until, Some(daemon.stream())).map_err(|error| {
                (code::FAILURE, alloc::format!("the qube does not connect: {}", Reason(error)))
            })?;
        let mut peer = self.greet(stream, until)?;
        let daemon = watched(&place, daemon, &mut peer);
        // The daemon takes our leaving for the end of the call.
        let code = self.be_caller(peer);
        drop(daemon);
        code
    }

    /// What we were asked to hang on our side of the call.
    fn be_caller(&self, peer: Peer) -> Outcome {
        let wishes = &self.wishes;
        if wishes.just_start {
            return Ok(ends::starter(peer).run());
        }
        let problem = |text: &str| (code::PROBLEM, String::from(text));
        let local = wishes.local.map(|line| command::parse_work(line).map_err(problem)).transpose()?;
        let program = match local {
            Some(Work::Service(request)) => {
                let child = ends::start_service(request, b"DEFAULT", self.environment)
                    .map_err(failed(code::PROBLEM))?;
                return Ok(ends::calling_service(wishes, child, peer).run());
            }
            Some(Work::Command(line)) => ends::shell(line),
            None => Vec::new(),
        };
        Ok(self.caller(&program).run(peer))
    }

    /// Our own streams as the options want them, or a local program.
    fn caller<'a>(&'a self, program: &'a [&'static CStr]) -> Caller<'a> {
        let wishes = &self.wishes;
        Caller {
            filter_stdout: wishes.filter_stdout,
            filter_stderr: wishes.filter_stderr,
            prefix: wishes.prefix,
            both_ways: wishes.both_ways,
            program,
            environment: self.environment,
        }
    }

    fn place(&self) -> Result<Place, String> {
        Place::of(self.environment)
    }

    fn greet(&self, line: Line, until: i64) -> Result<Peer, (i32, String)> {
        Peer::open(line, until)
            .map_err(|refusal| (code::FAILURE, alloc::format!("the qube does not answer: {refusal}")))
    }

    /// Bring two qubes together, one of which has triggered the call.
    fn connect(&self, answer: &Answer) -> Result<i32, String> {
        let wishes = &self.wishes;
        command::parse(wishes.command)?;
        call::ignore_broken_pipes();
        let mut target = Daemon::connect(&self.daemon_socket(wishes.qube))?;
        let there = target.execute(false, answer.domain, wishes.command)?;
        let mut source = Daemon::connect(&self.daemon_socket(answer.source))?;
        source.connect_trigger(there, &answer.ident)?;
        if wishes.wait || wishes.kill {
            target.wait_for_end();
        }
        Ok(0)
    }

    /// Serve a call that a qube has triggered, with a service of the admin qube.
    fn serve(&self, answer: &Answer) -> Outcome {
        let (user, request) = here(self.wishes.command).map_err(failed(code::PROBLEM))?;
        call::ignore_broken_pipes();
        let place = self.place().map_err(failed(code::FAILURE))?;
        let mut daemon =
            Daemon::connect(&self.daemon_socket(answer.source)).map_err(failed(code::FAILURE))?;
        let there = daemon.serve_trigger(&answer.ident).map_err(failed(code::FAILURE))?;
        let signals = link::watch_signals().map_err(|error| {
            (code::FAILURE, alloc::format!("cannot watch for signals: {}", Reason(error)))
        })?;
        let child = ends::start_service(request, user, self.environment).map_err(failed(code::PROBLEM))?;
        let until = self.deadline();
        let ExecParams { domain, port } = there;
        let stream = place.connect(domain, port, until, Some(daemon.stream())).map_err(|error| {
            let source = Shown(answer.source);
            (code::FAILURE, alloc::format!("cannot connect to `{source}`: {}", Reason(error)))
        })?;
        let mut peer = self.greet(stream, until)?;
        let daemon = watched(&place, daemon, &mut peer);
        let code = ends::service(child, signals, peer).run();
        drop(daemon);
        Ok(code)
    }

    // In the admin qube.

    /// A call from the admin qube to itself: the service takes our place.
    fn run_here(&self) -> Outcome {
        let wishes = &self.wishes;
        let problem = |text: &str| (code::PROBLEM, String::from(text));
        if !wishes.command.starts_with(b"DEFAULT:QUBESRPC ") {
            return Err(problem("a call from dom0 to dom0 is `DEFAULT:QUBESRPC SERVICE[+ARGUMENT] SOURCE`"));
        }
        let in_the_way = wishes.local.is_some()
            || !wishes.prefix.is_empty()
            || wishes.filter_stdout
            || wishes.filter_stderr;
        if in_the_way {
            return Err(problem("`-l`, `-p`, `-t` and `-T` cannot be used in a call from dom0 to dom0"));
        }
        let (user, request) = here(wishes.command).map_err(failed(code::PROBLEM))?;
        let user = ends::local_user(user).map_err(failed(code::PROBLEM))?;
        let settings = Settings { sockets: false, ..ends::local_settings(self.environment) };
        process::occupy_standard_descriptors();
        if wishes.both_ways {
            let _ = rustix::stdio::dup2_stdout(call::standard(0));
        }
        if !wishes.just_start && !wishes.hide_code {
            return Ok(service::serve_here(&request, &user, &settings));
        }
        match call::fork() {
            Ok(None) if wishes.just_start => {
                service::start_and_leave(Work::Service(request), &user, &settings, None)
            }
            Ok(None) => call::exit(service::serve_here(&request, &user, &settings)),
            Ok(Some(pid)) => Ok(call::wait_for(pid).map_or(code::PROBLEM, exit_code)),
            Err(error) => Err(problem(&alloc::format!("cannot make a process: {}", Reason(error)))),
        }
    }
}

/// Let the peer's end be known by the daemon's, where the stream hides it; else the connection is
/// given back.
fn watched(place: &Place, daemon: Daemon, peer: &mut Peer) -> Option<Daemon> {
    if place.hides_ends() {
        peer.announced_by(daemon.into_stream());
        return None;
    }
    Some(daemon)
}

/// The user and the service that a command for the admin qube names; it may leave out the user.
fn here(text: &'static [u8]) -> Result<(&'static [u8], Request<'static>), String> {
    let (user, work) = if text.starts_with(b"QUBESRPC ") {
        (&b"DEFAULT"[..], command::parse_work(text)?)
    } else {
        command::parse(text)?
    };
    match work {
        Work::Service(request) => Ok((user, request)),
        Work::Command(_) => Err("in the admin qube only services are called".into()),
    }
}

/// A command line that returns at once; for a service the agent itself sees to it.
fn in_background(text: &[u8]) -> Vec<u8> {
    let bare = text.strip_prefix(command::NO_GUI).unwrap_or(text);
    if bare.starts_with(b"QUBESRPC ") {
        return text.to_vec();
    }
    let before = &text[..text.len() - bare.len()];
    [before, b"(", bare, b"\n) </dev/null >/dev/null 2>&1 &"].concat()
}
