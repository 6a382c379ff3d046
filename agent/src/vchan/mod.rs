//! Byte streams between machines, as far as qrexec knows them: whole bytes, both ways, in order.
//!
//! Two kinds, and nobody above this room knows which one it has. *Sockets*: the one side, the
//! server, waits at `$VCHAN_SOCKET_DIR/vchan.SERVER.CLIENT.PORT.sock`, the other connects; domains
//! are numbers, `VCHAN_DOMAIN` is our own. *Plain streams*: port N is the character device (of a
//! virtual machine) or the unix socket `$CAISSON_VCHAN_STREAMS.N`, and it is always we who open it;
//! those for data, which one process after the other uses, begin with a rendezvous.
//! Whoever can put files there is trusted to be the peer.

mod address;
mod rendezvous;
mod server;

pub use address::bind;
pub use rendezvous::Farewell;
pub use server::Server;

use alloc::ffi::CString;
use alloc::string::String;
use core::ffi::CStr;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use self::rendezvous::Side;
use crate::speak::Shown;
use crate::sys::call;
use crate::text::{c_string, decimal};
use crate::{connection, environment, process};

/// Where upstream's library looks for sockets.
const DIRECTORY: &[u8] = b"/var/run/vchan";
/// How long a data link may take to come up, in milliseconds.
pub const PATIENCE: i64 = 120_000;
/// Between two attempts, in microseconds: first and longest.
const FIRST_PAUSE: i64 = 100;
const LONGEST_PAUSE: i64 = 20_000;
/// What the kernel may hold of what we send; a stream turns faster with more.
pub const SEND_BUFFER: usize = 1 << 20;

/// A stream on which the other side is there.
pub struct Line {
    /// The stream; it does not block.
    pub stream: OwnedFd,
    /// How to part, where closing would take from the other side what it has not read yet.
    pub farewell: Option<Farewell>,
}

impl From<OwnedFd> for Line {
    fn from(stream: OwnedFd) -> Self {
        Self { stream, farewell: None }
    }
}

/// Whose leaving takes the port from us before we met anybody there: on a plain stream, the next call
/// may come to it then.
pub type Owner<'a> = Option<&'a OwnedFd>;

/// Where streams are.
#[derive(Clone, Copy)]
pub struct Place {
    own: u32,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Sockets(&'static [u8]),
    Streams(&'static [u8]),
}

impl Place {
    /// As the environment says; the text says what is wrong with it.
    pub fn of(environment: &[&'static CStr]) -> Result<Self, String> {
        if let Some(prefix) = environment::get(environment, b"CAISSON_VCHAN_STREAMS") {
            return Ok(Self { own: 0, kind: Kind::Streams(prefix) });
        }
        let given = environment::get(environment, b"VCHAN_DOMAIN").unwrap_or(b"0");
        let own = decimal(given).and_then(|own| u32::try_from(own).ok());
        let own = own.ok_or_else(|| alloc::format!("`VCHAN_DOMAIN` is `{}`, not a number", Shown(given)))?;
        let directory = environment::get(environment, b"VCHAN_SOCKET_DIR").unwrap_or(DIRECTORY);
        Ok(Self { own, kind: Kind::Sockets(directory) })
    }

    /// The same for a client in a qube: without a number it would wait as the admin qube, domain 0,
    /// to which nobody comes.
    pub fn of_qube(environment: &[&'static CStr]) -> Result<Self, String> {
        let names: [&[u8]; 2] = [b"CAISSON_VCHAN_STREAMS", b"VCHAN_DOMAIN"];
        if names.iter().all(|name| environment::get(environment, name).is_none()) {
            return Err("the number of this qube is not known: `VCHAN_DOMAIN` is not set\n\
                        hint: give the client the variables of its agent, `VCHAN_DOMAIN` and \
                        `VCHAN_SOCKET_DIR`"
                .into());
        }
        Self::of(environment)
    }

    /// Where streams are, to tell a person: a directory, or what plain streams begin with.
    pub fn directory(&self) -> &'static [u8] {
        match self.kind {
            Kind::Sockets(directory) => directory,
            Kind::Streams(prefix) => prefix,
        }
    }

    /// Whether a stream does not tell that the process at its other end has ended.
    pub fn hides_ends(&self) -> bool {
        matches!(self.kind, Kind::Streams(_))
    }

    /// Wait for `peer` at the port of the control link without blocking; see `Server`.
    pub fn serve(&self, peer: u32, port: u32) -> Result<Server, Errno> {
        self.server(peer, port, None)
    }

    /// Be the server for `peer` at a port for data until it has come; `TIMEDOUT` where it does not.
    pub fn accept(&self, peer: u32, port: u32, until: i64, owner: Owner<'_>) -> Result<Line, Errno> {
        self.server(peer, port, Some(Side::Waiting))?.wait(until, owner)
    }

    fn server(&self, peer: u32, port: u32, side: Option<Side>) -> Result<Server, Errno> {
        match self.kind {
            Kind::Sockets(directory) => Server::listen(socket_path(directory, self.own, peer, port)),
            Kind::Streams(prefix) => Ok(Server::stream(stream_path(prefix, port), side)),
        }
    }

    /// Connect to the server `peer` at a port for data, which may still be on its way; `TIMEDOUT`
    /// where it does not come.
    pub fn connect(&self, peer: u32, port: u32, until: i64, owner: Owner<'_>) -> Result<Line, Errno> {
        let path = match self.kind {
            Kind::Sockets(directory) => socket_path(directory, peer, self.own, port),
            Kind::Streams(prefix) => {
                return Server::stream(stream_path(prefix, port), Some(Side::Coming)).wait(until, owner)
            }
        };
        let mut pause = FIRST_PAUSE;
        loop {
            match connect(&path) {
                Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN) => {}
                other => return other.map(Line::from),
            }
            let left = (until - call::milliseconds()) * 1000;
            if left <= 0 {
                return Err(Errno::TIMEDOUT);
            }
            sleep(pause.min(left));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

fn socket_path(directory: &[u8], server: u32, client: u32, port: u32) -> CString {
    c_string(&[directory, alloc::format!("/vchan.{server}.{client}.{port}.sock").as_bytes()])
}

fn stream_path(prefix: &[u8], port: u32) -> CString {
    c_string(&[prefix, alloc::format!(".{port}").as_bytes()])
}

fn sleep(microseconds: i64) {
    let pause = Timespec { tv_sec: microseconds / 1_000_000, tv_nsec: microseconds % 1_000_000 * 1000 };
    let _ = rustix::event::poll(&mut [], Some(&pause));
}

/// A stream socket that is none of the standard descriptors.
pub fn new_socket() -> Result<OwnedFd, Errno> {
    let new =
        || rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let socket = new()?;
    if socket.as_raw_fd() > 2 {
        return Ok(socket);
    }
    drop(socket);
    process::occupy_standard_descriptors();
    new()
}

/// Connect to a stream socket; the result does not block.
pub fn connect(path: &CStr) -> Result<OwnedFd, Errno> {
    // A server whose queue is full must not make us wait without a bound.
    let socket = ready(new_socket()?)?;
    connection::connect(&socket, path.to_bytes())?;
    Ok(socket)
}

/// Make a stream ours: it does not block, and it holds much.
fn ready(stream: OwnedFd) -> Result<OwnedFd, Errno> {
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER);
    let flags = rustix::fs::fcntl_getfl(&stream)?;
    rustix::fs::fcntl_setfl(&stream, flags | OFlags::NONBLOCK)?;
    Ok(stream)
}

/// Open a plain stream; `CONNREFUSED` while nobody is at its other end.
fn open_stream(path: &CStr) -> Result<OwnedFd, Errno> {
    let found = rustix::fs::stat(path)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Socket => connect(path),
        FileType::CharacterDevice => {
            let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
            let device = rustix::fs::open(path, flags, Mode::empty())?;
            let mut waiting = [PollFd::new(&device, PollFlags::OUT)];
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut waiting, Some(&at_once))?;
            if waiting[0].revents().contains(PollFlags::HUP) {
                return Err(Errno::CONNREFUSED);
            }
            Ok(device)
        }
        _ => Err(Errno::NOTSOCK),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// Names as other implementations of the sockets make them.
    #[test]
    fn names_of_sockets() {
        assert_eq!(socket_path(b"/run/v", 1, 2, 513).as_bytes(), b"/run/v/vchan.1.2.513.sock");
        assert_eq!(stream_path(b"/dev/vport", 512).as_bytes(), b"/dev/vport.512");
    }

    /// A client in a qube never takes itself for the admin qube, unless it is told so.
    #[test]
    fn clients_need_a_number() {
        assert!(Place::of_qube(&[]).is_err());
        assert!(Place::of_qube(&[c"VCHAN_SOCKET_DIR=/run/vchan"]).is_err());
        assert!(Place::of_qube(&[c"VCHAN_DOMAIN=x"]).is_err());
        assert!(Place::of_qube(&[c"VCHAN_DOMAIN=7"]).is_ok_and(|place| place.own == 7));
        assert!(Place::of_qube(&[c"CAISSON_VCHAN_STREAMS=/dev/qrexec"]).is_ok());
    }

    /// Nobody is met on a plain stream any more whose port may belong to another call.
    #[test]
    fn who_lost_its_port_meets_nobody() {
        let path = std::env::temp_dir().join(std::format!("caisson-port-{}.513", std::process::id()));
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let name = path.with_extension("").into_os_string().into_encoded_bytes();
        let place = Place { own: 0, kind: Kind::Streams(Vec::leak(name)) };
        let pair =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
        let (owner, its_end) = pair.unwrap();
        let past = call::milliseconds();
        assert_eq!(place.accept(7, 513, past, Some(&owner)).err(), Some(Errno::TIMEDOUT));
        drop(its_end);
        let until = past + 3_600_000;
        assert_eq!(place.accept(7, 513, until, Some(&owner)).err(), Some(Errno::CONNRESET));
        assert_eq!(place.connect(7, 513, until, Some(&owner)).err(), Some(Errno::CONNRESET));
        std::fs::remove_file(&path).unwrap();
        // Named sockets tell their ends themselves, and upstream's daemon may free a port early.
        let sockets = Place {
            own: 0,
            kind: Kind::Sockets(Vec::leak(std::env::temp_dir().into_os_string().into_encoded_bytes())),
        };
        assert_eq!(sockets.accept(7, 513, past, Some(&owner)).err(), Some(Errno::TIMEDOUT));
        assert!(place.hides_ends() && !sockets.hides_ends());
    }

    /// A plain stream that ends before anybody is met is opened again.
    #[test]
    fn ends_before_the_meeting_do_not_count() {
        let path = std::env::temp_dir().join(std::format!("caisson-again-{}.513", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let name = path.with_extension("").into_os_string().into_encoded_bytes();
        let place = Place { own: 0, kind: Kind::Streams(Vec::leak(name)) };
        let until = call::milliseconds() + 20_000;
        let waiting = std::thread::spawn(move || place.accept(7, 513, until, None).map(|_| ()));
        for _ in 0..2 {
            drop(listener.accept().unwrap());
        }
        // Nobody can come any more.
        std::fs::remove_file(&path).unwrap();
        drop(listener);
        drop(waiting);
    }

    /// Both sides meet whoever comes first, bytes pass, and the name is gone once they met.
    #[test]
    fn sides_meet_in_any_order() {
        let directory = std::env::temp_dir().join(std::format!("caisson-vchan-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let name: &'static [u8] =
            std::boxed::Box::leak(directory.as_os_str().as_encoded_bytes().to_vec().into_boxed_slice());
        let place = move |own| Place { own, kind: Kind::Sockets(name) };
        // A name that a server before us left behind is no obstacle.
        drop(std::os::unix::net::UnixListener::bind(directory.join("vchan.5.6.513.sock")).unwrap());
        let until = call::milliseconds() + 20_000;
        let client = std::thread::spawn(move || place(6).connect(5, 513, until, None).unwrap());
        let server = place(5).accept(6, 513, until, None).unwrap();
        let client = client.join().unwrap();
        rustix::io::write(&client.stream, b"x").unwrap();
        let mut found = [0];
        assert_eq!(rustix::io::read(&server.stream, &mut found), Ok(1));
        assert_eq!(rustix::io::read(&server.stream, &mut found), Err(Errno::AGAIN));
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
        let past = call::milliseconds();
        assert_eq!(place(6).connect(5, 513, past, None).err(), Some(Errno::TIMEDOUT));
        assert_eq!(place(5).accept(6, 513, past, None).err(), Some(Errno::TIMEDOUT));
        // One that gives up late leaves the name of whoever took its place.
        let late = place(5).serve(6, 513).unwrap();
        let other = place(5).serve(6, 513).unwrap();
        drop(late);
        assert!(place(6).connect(5, 513, past, None).is_ok());
        drop(other);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
