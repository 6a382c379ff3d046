//! What hangs on the calling side of a call, whatever carries it.

use core::ffi::CStr;

/// Our own standard streams, or a program in their place.
pub struct Caller<'a> {
    /// Replace control characters on stdout.
    pub filter_stdout: bool,
    /// Replace control characters on stderr.
    pub filter_stderr: bool,
    /// Bytes to send before our stdin.
    pub prefix: &'a [u8],
    /// Stdin is a socket that takes the output too.
    pub both_ways: bool,
    /// A program, with its arguments, that speaks with the service in our place.
    pub program: &'a [&'static CStr],
    /// Our own environment, for that program.
    pub environment: &'a [&'static CStr],
}
