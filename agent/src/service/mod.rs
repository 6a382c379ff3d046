//! Become a service: everything between the fork and the `exec`, or the connection to a socket.
//!
//! All of it runs in the new process, so that a hostile file system can make only its own call
//! wait. Order: descriptors, session, settings, user, look-up, the user's session where the service
//! waits for it, then the program, or the socket that serves.
//!
//! `command` reads what is to be started, `find` looks it up, `socket` and `tcp` serve through
//! sockets, `session` waits for the user's.

pub mod command;
mod find;
mod session;
mod socket;
pub mod tcp;

use alloc::string::String;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::ffi::CStr;

use rustix::fd::OwnedFd;
use rustix::fs::{Access, AtFlags, Mode, OFlags, CWD};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Gid, Uid};

pub use command::{Request, Requested, Work};
use find::Found;
pub use session::wait as wait_for_session;

use crate::code;
use crate::connection::Descriptors;
use crate::environment::{self, Environment};
use crate::rpc_config;
use crate::say;
use crate::speak::{Reason, Shown};
use crate::sys::call;
use crate::text::{basename, c_string};
use crate::users::{self, User};

/// Where services are looked for.
pub const DIRECTORIES: &[u8] = b"/run/qubes-rpc:/usr/local/etc/qubes-rpc:/etc/qubes-rpc";
/// A service's name before `+` is no longer, nor is a file's name.
pub const LONGEST_NAME: usize = 255;
/// Where the calls that wait for a session share a lock.
const LOCKS: &[u8] = b"/run";

/// What the agent knows that a service needs.
pub struct Settings {
    /// Colon-separated directories of services.
    pub service_path: &'static [u8],
    /// True where the service is told of them, because they are not the usual ones.
    pub service_path_given: bool,
    /// Colon-separated directories of settings.
    pub config_path: &'static [u8],
    /// Directory of the locks that waiting calls share.
    pub locks: &'static [u8],
    /// The agent's own process id.
    pub agent: i32,
    /// Start programs from a login shell, which reads the profile.
    pub login_shell: bool,
    /// Whether a socket may serve, or only a program.
    pub sockets: bool,
    /// Those of the standard descriptors by which the caller hears the service: one that is somebody
    /// else's, such as a log, stays open when the caller leaves.
    pub callers: &'static [u8],
    /// What a service that runs as our own user inherits; `None` for nothing.
    pub inherited: Option<&'static [&'static CStr]>,
}

impl Settings {
    /// As the environment says, for services that are executed directly and inherit nothing.
    pub fn new(environment: &[&'static CStr]) -> Self {
        let service_path = environment::get(environment, b"QREXEC_SERVICE_PATH");
        Self {
            service_path: service_path.unwrap_or(DIRECTORIES),
            service_path_given: service_path.is_some(),
            config_path: environment::get(environment, b"QUBES_RPC_CONFIG_PATH")
                .unwrap_or(rpc_config::DIRECTORIES),
            locks: environment::get(environment, b"CAISSON_SESSION_LOCKS").unwrap_or(LOCKS),
            agent: rustix::process::getpid().as_raw_nonzero().get(),
            login_shell: false,
            sockets: true,
            callers: &[1, 2],
            inherited: None,
        }
    }
}

/// Whether anybody waits for the end of what is started.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    AndServe,
    AndLeave,
}

/// Why a call ends before its service begins: its exit code, and what its caller is told.
pub struct Failure(pub i32, pub String);

type Attempt<T> = Result<T, Failure>;

fn problem<T>(text: impl Into<String>) -> Attempt<T> {
    Err(Failure(code::PROBLEM, text.into()))
}

/// Become the service; the descriptors become its stdin, stdout and stderr.
pub fn become_service(work: Work<'_>, user: &[u8], descriptors: Descriptors, settings: &Settings) -> ! {
    take_descriptors(&descriptors);
    enter_session();
    let Failure(code, text) = start(work, user, settings, Begin::AndServe);
    say!("error: {text}");
    call::exit(code)
}

/// Become the service with our own standard streams; returns only where that fails, with the exit code.
pub fn serve_here(request: &Request<'_>, user: &[u8], settings: &Settings) -> i32 {
    let Failure(code, text) = start(Work::Service(*request), user, settings, Begin::AndServe);
    say!("error: {text}");
    code
}

/// Start the service and end at once, with 0 where it has begun; `errors` is its stderr, if anybody
/// reads it.
pub fn start_and_leave(work: Work<'_>, user: &[u8], settings: &Settings, errors: Option<OwnedFd>) -> ! {
    take_descriptors(&[None, None, errors]);
    enter_session();
    let Ok((reader, writer)) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC) else { call::exit(code::PROBLEM) };
    match call::fork() {
        Ok(None) => {
            let Failure(code, text) = start(work, user, settings, Begin::AndLeave);
            let _ = rustix::io::write(&writer, &[code as u8]);
            say!("error: {text}");
            call::exit(code)
        }
        Ok(Some(_)) => {
            drop(writer);
            let mut code = [0];
            // The writing end closes with the `exec`: no byte means that the service runs.
            match rustix::io::read(&reader, &mut code) {
                Ok(0) => call::exit(0),
                Ok(_) => call::exit(i32::from(code[0])),
                Err(_) => call::exit(code::PROBLEM),
            }
        }
        Err(_) => call::exit(code::PROBLEM),
    }
}

/// Make these our standard descriptors; one that is not given is `/dev/null`.
pub fn take_descriptors(descriptors: &Descriptors) {
    let null = if descriptors.iter().any(Option::is_none) {
        rustix::fs::open(&b"/dev/null"[..], OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()
    } else {
        None
    };
    let [stdin, stdout, stderr] =
        core::array::from_fn(|at: usize| descriptors[at].as_ref().or(null.as_ref()));
    // Standard error first: it carries the messages about what fails after it.
    let taken = stderr.is_some_and(|fd| rustix::stdio::dup2_stderr(fd).is_ok())
        && stdin.is_some_and(|fd| rustix::stdio::dup2_stdin(fd).is_ok())
        && stdout.is_some_and(|fd| rustix::stdio::dup2_stdout(fd).is_ok());
    if !taken {
        call::exit(code::PROBLEM);
    }
}

/// Leave our starter's session, and be open to signals.
pub fn enter_session() {
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    call::unblock_signals();
}

/// Everything that can fail; returns only then.
fn start(work: Work<'_>, user: &[u8], settings: &Settings, begin: Begin) -> Failure {
    let never = match work {
        Work::Service(request) => start_service(&request, user, settings, begin),
        Work::Command(line) => start_command(line, user, settings),
    };
    match never {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

fn start_command(line: &[u8], user: &[u8], settings: &Settings) -> Attempt<Infallible> {
    let passwd = read_users()?;
    let user = find_user(&passwd, user)?;
    let environment = base_environment(&user, settings);
    // An agent without privilege reads nobody's profile.
    let (shell, name) = if rustix::process::geteuid().is_root() {
        // A leading `-` makes it a login shell.
        (user.shell, [b"-", basename(user.shell)].concat())
    } else {
        (&b"/bin/sh"[..], b"/bin/sh".to_vec())
    };
    switch_user(&user)?;
    run_command(line, shell, &name, &environment)
}

fn start_service(
    request: &Request<'_>,
    user: &[u8],
    settings: &Settings,
    begin: Begin,
) -> Attempt<Infallible> {
    request.check().or_else(problem)?;
    let argument = request.argument().unwrap_or(b"");
    let config = rpc_config::load(settings.config_path, request.name(), argument).or_else(problem)?;
    let passwd = read_users()?;
    let user = find_user(&passwd, config.force_user.as_deref().unwrap_or(user))?;
    let found = find::find(request, settings.service_path)?;
    if config.wait_for_session && request.with_session {
        wait_for_session(&user, request.source, settings);
    }
    match found {
        Found::Program(path) => {
            let mut environment = base_environment(&user, settings);
            switch_user(&user)?;
            describe_call(&mut environment, request)?;
            run_service(&path, argument, &environment, settings)
        }
        _ if !settings.sockets => problem("a socket service cannot serve a call from dom0 to dom0"),
        Found::Socket { path, placed_by_root: true } => {
            // Root's socket may take root's agent only, whose word on the caller counts.
            let socket = socket::connect_unix(path.as_bytes())?;
            switch_user(&user)?;
            socket::serve(socket, request, &config, begin)
        }
        Found::Socket { path, placed_by_root: false } => {
            switch_user(&user)?;
            socket::serve(socket::connect_unix(path.as_bytes())?, request, &config, begin)
        }
        Found::Tcp(link) => {
            switch_user(&user)?;
            socket::serve(connect_tcp(&link, argument)?, request, &config, begin)
        }
    }
}

fn connect_tcp(link: &[u8], argument: &[u8]) -> Attempt<OwnedFd> {
    socket::connect_tcp(&tcp::place(link, argument).or_else(problem)?)
}

fn read_users() -> Attempt<Vec<u8>> {
    users::read_file(b"/etc/passwd")
        .or_else(|error| problem(alloc::format!("cannot read `/etc/passwd`: {error}", error = Reason(error))))
}

fn find_user<'a>(passwd: &'a [u8], name: &[u8]) -> Attempt<User<'a>> {
    let name = match name {
        b"" | b"DEFAULT" => b"user",
        other => other,
    };
    users::find(passwd, name)
        .map_or_else(|| problem(alloc::format!("the called qube has no user `{}`", Shown(name))), Ok)
}

/// Become the user, in its home directory where there is one.
fn switch_user(user: &User<'_>) -> Attempt<()> {
    take_ids(user)?;
    if rustix::process::chdir(user.home).is_err() {
        let _ = rustix::process::chdir(&b"/"[..]);
    }
    Ok(())
}

fn take_ids(user: &User<'_>) -> Attempt<()> {
    if !rustix::process::geteuid().is_root() {
        // Only in tests: an agent without privilege serves the user that it is.
        return if rustix::process::geteuid().as_raw() == user.uid {
            Ok(())
        } else {
            problem(alloc::format!("cannot become user `{}`", Shown(user.name)))
        };
    }
    let group = users::read_file(b"/etc/group").unwrap_or_default();
    let groups: Vec<Gid> = users::groups(&group, user).into_iter().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_groups(&groups)
        .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
        .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid))
        .or_else(|error| {
            problem(alloc::format!(
                "cannot become user `{}`: {error}",
                Shown(user.name),
                error = Reason(error)
            ))
        })
}

/// What everything that is started finds in its environment; called before the user is switched.
fn base_environment(user: &User<'_>, settings: &Settings) -> Environment {
    let own = rustix::process::geteuid().as_raw() == user.uid;
    let mut environment = match settings.inherited {
        Some(given) if own => Environment::inherited(given),
        _ => Environment::default(),
    };
    environment.set(b"HOME", user.home);
    environment.set(b"SHELL", user.shell);
    environment.set(b"USER", user.name);
    environment.set(b"LOGNAME", user.name);
    if settings.inherited.is_none() || !own {
        environment.set(b"PATH", environment::PATH);
        environment.set(b"LANG", b"C.UTF-8");
    }
    environment.set(b"QREXEC_AGENT_PID", alloc::format!("{}", settings.agent).as_bytes());
    if settings.service_path_given {
        environment.set(b"QREXEC_SERVICE_PATH", settings.service_path);
    }
    environment
}

/// What a program learns of the call that it serves.
fn describe_call(environment: &mut Environment, request: &Request<'_>) -> Attempt<()> {
    environment.set(b"QREXEC_SERVICE_FULL_NAME", request.descriptor);
    environment.set(b"QREXEC_REMOTE_DOMAIN", request.source);
    if let Some(argument) = request.argument() {
        environment.set(b"QREXEC_SERVICE_ARGUMENT", argument);
    }
    let (kind, more) = match request.requested().or_else(problem)? {
        Requested::Untold => (&b""[..], None),
        Requested::Name(name) => (&b"name"[..], Some((&b"QREXEC_REQUESTED_TARGET"[..], name))),
        Requested::Keyword(word) => (&b"keyword"[..], Some((&b"QREXEC_REQUESTED_TARGET_KEYWORD"[..], word))),
    };
    environment.set(b"QREXEC_REQUESTED_TARGET_TYPE", kind);
    if let Some((name, value)) = more {
        environment.set(name, value);
    }
    Ok(())
}

fn run_command(line: &[u8], shell: &[u8], name: &[u8], environment: &Environment) -> Attempt<Infallible> {
    if line.contains(&0) {
        return problem("a command line contains no NUL");
    }
    let [shell, name, dash_c, line] = [shell, name, b"-c", line].map(|text| c_string(&[text]));
    let error = call::execute(&shell, &[&name, &dash_c, &line], &environment.entries());
    exec_failed(&shell, error)
}

fn run_service(
    path: &CStr,
    argument: &[u8],
    environment: &Environment,
    settings: &Settings,
) -> Attempt<Infallible> {
    check_executable(path)?;
    let argument = c_string(&[argument]);
    let mut arguments: Vec<&CStr> = alloc::vec![path];
    if !argument.as_bytes().is_empty() {
        arguments.push(&argument);
    }
    let entries = environment.entries();
    let shell = c_string(&[b"/bin/sh"]);
    if settings.login_shell {
        // The name and the argument are words for the script, not part of it.
        let (options, script) = (c_string(&[b"-lc"]), c_string(&[b"exec \"$0\" \"$@\""]));
        let mut words: Vec<&CStr> = alloc::vec![&shell, &options, &script];
        words.extend(arguments);
        return exec_failed(&shell, call::execute(&shell, &words, &entries));
    }
    let mut error = call::execute(path, &arguments, &entries);
    if error == Errno::NOEXEC {
        // One line of shell without `#!` is a service too.
        arguments.insert(0, &shell);
        error = call::execute(&shell, &arguments, &entries);
    }
    exec_failed(path, error)
}

fn check_executable(path: &CStr) -> Attempt<()> {
    match rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        // An old kernel or a filter without faccessat2: the `exec` will tell.
        Ok(()) | Err(Errno::NOSYS) => Ok(()),
        Err(error) => {
            let shown = Shown(path.to_bytes());
            problem(alloc::format!("`{shown}` is not executable: {error}", error = Reason(error)))
        }
    }
}

fn exec_failed<T>(path: &CStr, error: Errno) -> Attempt<T> {
    let code = if error == Errno::NOENT { code::NOT_FOUND } else { code::PROBLEM };
    Err(Failure(
        code,
        alloc::format!("cannot start `{}`: {error}", Shown(path.to_bytes()), error = Reason(error)),
    ))
}
