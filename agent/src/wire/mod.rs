//! The qrexec wire protocol as bytes: frames, their bodies, and the bounds of both.
//!
//! Pure: bytes in, bytes out, no I/O. What a peer sent is parsed into a type here or refused here;
//! what we send is built here, with every unused byte zero. Source of the format: qrexec protocol,
//! versions 2 to 4; all numbers are little-endian, as on every machine that it runs on.
//!
//! | piece | for |
//! |---|---|
//! | `Header`, `Way` | 8 bytes before each body, and what each link allows |
//! | `Receiver` | collects one message of bounded size from a stream |
//! | `Version` | the outcome of HELLO |
//! | `ExecParams`, `Ident`, `Trigger` | the bodies |
//! | `command`, `connect`, `terminated`, `exit_code`, `hello` | whole messages |

mod body;
mod frame;
mod trigger;

pub use body::{
    command, connect, exit_code, hello, parse_command, parse_connect, parse_exit_code, parse_hello,
    terminated, ExecParams, Ident, Version,
};
pub use frame::{Header, Kind, Malformed, Receiver, Way};
pub use trigger::Trigger;

/// Bytes of a header.
pub const HEADER: usize = 8;
/// Longest service with its argument and its NUL in a trigger.
pub const LONGEST_SERVICE: usize = 65_000;
/// Longest body that a daemon takes from a client, or an agent from its daemon.
pub const LONGEST_CONTROL: usize = 65_535;
/// Most bytes of data in one message between peers of version 3 and later.
pub const CHUNK: usize = 65_536;
/// Most bytes of data in one message with a peer of version 2.
pub const OLD_CHUNK: usize = 4096;
/// The port on which an agent serves its daemon.
pub const CONTROL_PORT: u32 = 512;
/// Ports of data links, first and last.
pub const DATA_PORTS: core::ops::RangeInclusive<u32> = 513..=768;
