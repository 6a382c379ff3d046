//! Become a service: everything between the fork and the `exec`.
//!
//! All of it runs in the new process, so that a hostile file system can make only its own call
//! wait. Order: descriptors, session, settings, user, home, look-up, `exec`.

use alloc::ffi::CString;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags, CWD};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Gid, Uid};

use crate::code;
use crate::connection::Descriptors;
use crate::environment::{self, Environment};
use crate::rpc_config;
use crate::say;
use crate::speak::{Reason, Shown};
use crate::sys::call;
use crate::text::{basename, c_string, split_once};
use crate::users::{self, User};

/// Where services are looked for.
pub const DIRECTORIES: &[u8] = b"/run/qubes-rpc:/usr/local/etc/qubes-rpc:/etc/qubes-rpc";
/// A service's name before `+` is no longer, nor is a file's name.
const LONGEST_NAME: usize = 255;

/// What to start.
#[derive(Clone, Copy)]
pub enum Work<'a> {
    /// A service by name, called from another qube.
    Service {
        /// `name` or `name+argument`.
        descriptor: &'a [u8],
        /// The calling qube.
        source: &'a [u8],
    },
    /// A command line for the user's shell.
    Command(&'a [u8]),
}

/// What the agent knows that a service needs.
pub struct Settings {
    /// Colon-separated directories of services.
    pub service_path: &'static [u8],
    /// True where the service is told of them, because they are not the usual ones.
    pub service_path_given: bool,
    /// Colon-separated directories of settings.
    pub config_path: &'static [u8],
    /// The agent's own process id.
    pub agent: i32,
}

/// Why a call ends before its service begins.
struct Failure(i32, String);

type Attempt<T> = Result<T, Failure>;

fn problem<T>(text: String) -> Attempt<T> {
    Err(Failure(code::PROBLEM, text))
}

/// Become the service; the descriptors become its stdin, stdout and stderr.
pub fn become_service(work: Work<'_>, user: &[u8], descriptors: Descriptors, settings: &Settings) -> ! {
    take_descriptors(&descriptors);
    enter_session();
    let Failure(code, text) = start(work, user, settings);
    say!("error: {text}");
    call::exit(code)
}

/// Start the service and end at once, with 0 where it has begun.
pub fn start_and_leave(work: Work<'_>, user: &[u8], settings: &Settings) -> ! {
    take_descriptors(&[None, None, None]);
    enter_session();
    let Ok((reader, writer)) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC) else { call::exit(code::PROBLEM) };
    match call::fork() {
        Ok(None) => {
            let Failure(code, _) = start(work, user, settings);
            let _ = rustix::io::write(&writer, &[code as u8]);
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

fn take_descriptors(descriptors: &Descriptors) {
    let null = if descriptors.iter().any(Option::is_none) {
        rustix::fs::open(c_string(&[b"/dev/null"]), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()
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

fn enter_session() {
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    call::unblock_signals();
}

/// Everything that can fail; returns only then.
fn start(work: Work<'_>, user: &[u8], settings: &Settings) -> Failure {
    match try_start(work, user, settings) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

fn try_start(work: Work<'_>, user: &[u8], settings: &Settings) -> Attempt<core::convert::Infallible> {
    let mut forced = None;
    if let Work::Service { descriptor, .. } = work {
        let (name, argument) = split_once(descriptor, b'+').unwrap_or((descriptor, b""));
        check_names(descriptor, name)?;
        forced = match rpc_config::load(settings.config_path, name, argument) {
            Ok(config) => config.force_user,
            Err(text) => return problem(text),
        };
    }
    let user = forced.as_deref().unwrap_or(match user {
        b"" | b"DEFAULT" => b"user",
        other => other,
    });
    let passwd = match users::read_file(b"/etc/passwd") {
        Ok(content) => content,
        Err(error) => {
            return problem(alloc::format!("cannot read `/etc/passwd`: {error}", error = Reason(error)))
        }
    };
    let Some(user) = users::find(&passwd, user) else {
        return problem(alloc::format!("there is no user `{}` in this qube", Shown(user)));
    };
    switch_user(&user)?;
    if rustix::process::chdir(user.home).is_err() {
        let _ = rustix::process::chdir(&b"/"[..]);
    }
    let mut environment = Environment::default();
    describe_user(&mut environment, &user, settings);
    match work {
        Work::Service { descriptor, source } => run_service(descriptor, source, environment, settings),
        Work::Command(line) => run_command(line, &user, &environment),
    }
}

fn check_names(descriptor: &[u8], name: &[u8]) -> Attempt<()> {
    if name.is_empty() || name.len() > LONGEST_NAME {
        return problem(alloc::format!("a service name has 1 to {LONGEST_NAME} characters"));
    }
    if descriptor.iter().any(|&byte| byte == b'/' || byte == 0) {
        return problem("a service name contains no `/`".into());
    }
    Ok(())
}

fn switch_user(user: &User<'_>) -> Attempt<()> {
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

fn describe_user(environment: &mut Environment, user: &User<'_>, settings: &Settings) {
    environment.set(b"HOME", user.home);
    environment.set(b"SHELL", user.shell);
    environment.set(b"USER", user.name);
    environment.set(b"LOGNAME", user.name);
    environment.set(b"PATH", environment::PATH);
    environment.set(b"LANG", b"C.UTF-8");
    environment.set(b"QREXEC_AGENT_PID", alloc::format!("{}", settings.agent).as_bytes());
    if settings.service_path_given {
        environment.set(b"QREXEC_SERVICE_PATH", settings.service_path);
    }
}

fn run_command(
    line: &[u8],
    user: &User<'_>,
    environment: &Environment,
) -> Attempt<core::convert::Infallible> {
    if line.contains(&0) {
        return problem("a command line contains no NUL".into());
    }
    let shell = c_string(&[user.shell]);
    // A leading `-` makes it a login shell, which reads the profile.
    let name = c_string(&[b"-", basename(user.shell)]);
    let line = c_string(&[line]);
    let dash_c = c_string(&[b"-c"]);
    let error = call::execute(&shell, &[&name, &dash_c, &line], &environment.entries());
    exec_failed(&shell, error)
}

fn run_service(
    descriptor: &[u8],
    source: &[u8],
    mut environment: Environment,
    settings: &Settings,
) -> Attempt<core::convert::Infallible> {
    environment.set(b"QREXEC_SERVICE_FULL_NAME", descriptor);
    environment.set(b"QREXEC_REMOTE_DOMAIN", source);
    environment.set(b"QREXEC_REQUESTED_TARGET_TYPE", b"");
    let argument = split_once(descriptor, b'+').map(|(_, argument)| argument);
    if let Some(argument) = argument {
        environment.set(b"QREXEC_SERVICE_ARGUMENT", argument);
    }
    let path = find(descriptor, settings.service_path)?;
    let argument = c_string(&[argument.unwrap_or(b"")]);
    let mut arguments: Vec<&CStr> = alloc::vec![&path];
    if !argument.as_bytes().is_empty() {
        arguments.push(&argument);
    }
    let mut error = call::execute(&path, &arguments, &environment.entries());
    if error == Errno::NOEXEC {
        // One line of shell without `#!` is a service too.
        let shell = c_string(&[b"/bin/sh"]);
        arguments.insert(0, &shell);
        error = call::execute(&shell, &arguments, &environment.entries());
    }
    exec_failed(&path, error)
}

fn exec_failed<T>(path: &CStr, error: Errno) -> Attempt<T> {
    let code = if error == Errno::NOENT { code::NOT_FOUND } else { code::PROBLEM };
    Err(Failure(
        code,
        alloc::format!("cannot start `{}`: {error}", Shown(path.to_bytes()), error = Reason(error)),
    ))
}

/// Find the program of a service: the one made for this argument in any directory first.
fn find(descriptor: &[u8], directories: &[u8]) -> Attempt<CString> {
    let (name, _) = split_once(descriptor, b'+').unwrap_or((descriptor, b""));
    let specific =
        if name.len() == descriptor.len() { [descriptor, b"+"].concat() } else { descriptor.to_vec() };
    for file in [&specific[..], name] {
        if file.len() > LONGEST_NAME {
            continue;
        }
        for directory in directories.split(|&byte| byte == b':') {
            let path = c_string(&[directory, b"/", file]);
            if is_program(&path)? {
                return Ok(path);
            }
        }
    }
    Err(Failure(code::NOT_FOUND, alloc::format!("there is no service `{}` in this qube", Shown(descriptor))))
}

/// True for a program, false for nothing; anything else ends the search.
fn is_program(path: &CStr) -> Attempt<bool> {
    let shown = Shown(path.to_bytes());
    let unreachable =
        |error: Errno| problem(alloc::format!("cannot look at `{shown}`: {error}", error = Reason(error)));
    let link = match rustix::fs::lstat(path) {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return unreachable(error),
    };
    let mut kind = FileType::from_raw_mode(link.st_mode);
    if kind == FileType::Symlink {
        let target = rustix::fs::readlink(path, Vec::new()).unwrap_or_default();
        if target.as_bytes() == b"/dev/tcp" || target.as_bytes().starts_with(b"/dev/tcp/") {
            return problem(alloc::format!("`{shown}` is a TCP service; these are not supported yet"));
        }
        kind = match rustix::fs::stat(path) {
            Ok(found) => FileType::from_raw_mode(found.st_mode),
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return unreachable(error),
        };
    }
    match kind {
        FileType::RegularFile => {}
        FileType::Socket => {
            return problem(alloc::format!("`{shown}` is a socket service; these are not supported yet"));
        }
        _ => return problem(alloc::format!("`{shown}` is not a program")),
    }
    match rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) => Ok(true),
        // An old kernel or a filter without faccessat2: the `exec` will tell.
        Err(Errno::NOSYS) => Ok(true),
        Err(error) => problem(alloc::format!("`{shown}` is not executable: {error}", error = Reason(error))),
    }
}
