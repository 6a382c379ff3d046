//! Lines for people, on standard error.

use core::fmt;

use rustix::io::Errno;

use crate::code;
use crate::sys::call;

/// Print one line on standard error; a reader that is gone is no error.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {
        $crate::speak::line(format_args!($($argument)*))
    };
}

/// A line is written at once, so that lines of several processes do not mix.
struct Line {
    bytes: [u8; 1024],
    used: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.len() - 1 - self.used;
        let taken = text.len().min(room);
        self.bytes[self.used..self.used + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.used += taken;
        Ok(())
    }
}

/// See `say!`.
pub fn line(arguments: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; 1024], used: 0 };
    let _ = fmt::write(&mut line, arguments);
    line.bytes[line.used] = b'\n';
    let _ = rustix::io::write(call::standard(2), &line.bytes[..=line.used]);
}

/// Print a problem that the broker tells, line by line.
pub fn problem(message: &[u8]) {
    if message.iter().all(|&byte| byte == b'\n') {
        say!("error: the call failed, and the broker gives no reason");
    }
    for (at, text) in message.split(|&byte| byte == b'\n').filter(|text| !text.is_empty()).enumerate() {
        if at == 0 {
            say!("error: {}", Shown(text));
        } else {
            say!("{}", Shown(text));
        }
    }
}

/// Say what is wrong with a command line, and how to see what would be right; the exit code.
pub fn wrong_usage(program: &str, text: &str) -> i32 {
    say!("error: {text}");
    say!("hint: `{program} --help` shows the options");
    code::USAGE
}

/// Say that what a service sent is lost on our side.
pub fn unwritten(error: Errno) {
    say!("error: output cannot be written: {}", Reason(error));
}

/// Bytes of unknown origin, safe to show on a terminal.
pub struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LIMIT: usize = 200;
        for &byte in self.0.iter().take(LIMIT) {
            match byte {
                b' '..=b'~' => fmt::Write::write_char(out, char::from(byte))?,
                _ => write!(out, "\\x{byte:02x}")?,
            }
        }
        if self.0.len() > LIMIT {
            out.write_str("…")?;
        }
        Ok(())
    }
}

/// Why the kernel refused, in words where the reason is a usual one.
pub struct Reason(pub Errno);

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self.0 {
            Errno::PERM => "operation not permitted",
            Errno::NOENT => "no such file or directory",
            Errno::IO => "input/output error",
            Errno::SRCH => "no such process",
            Errno::INTR => "interrupted",
            Errno::NXIO | Errno::NODEV => "no such device",
            Errno::TOOBIG => "the arguments are too long",
            Errno::BADF => "it is closed, or not open for that",
            Errno::BUSY => "busy",
            Errno::EXIST => "it exists already",
            Errno::XDEV => "on another file system",
            Errno::NOSPC => "no space left on device",
            Errno::DQUOT => "more than the quota allows",
            Errno::SPIPE => "no seeking in it",
            Errno::MLINK => "too many links",
            Errno::NOTEMPTY => "the directory is not empty",
            Errno::OVERFLOW => "a value is too large",
            Errno::OPNOTSUPP => "not supported there",
            Errno::MSGSIZE => "the message is too long",
            Errno::PROTO | Errno::PROTONOSUPPORT => "protocol error",
            Errno::NOTSOCK => "not a socket",
            Errno::AFNOSUPPORT => "this kind of address is not supported",
            Errno::ADDRINUSE => "the address is in use",
            Errno::ADDRNOTAVAIL => "this machine does not have the address",
            Errno::NETUNREACH => "the network is unreachable",
            Errno::HOSTUNREACH => "the host is unreachable",
            Errno::NOBUFS => "no buffer space available",
            Errno::NOTCONN => "not connected",
            Errno::CONNABORTED => "connection aborted",
            Errno::STALE => "the file is not there any more",
            Errno::NOEXEC => "not an executable format",
            Errno::CHILD => "no child processes",
            Errno::AGAIN => "resource temporarily unavailable",
            Errno::NOMEM => "cannot allocate memory",
            Errno::ACCESS => "permission denied",
            Errno::NOTDIR => "not a directory",
            Errno::ISDIR => "is a directory",
            Errno::INVAL => "invalid argument",
            Errno::MFILE | Errno::NFILE => "too many open files",
            Errno::NOTTY => "not a terminal",
            Errno::TXTBSY => "the file is being written",
            Errno::FBIG => "file too large",
            Errno::ROFS => "read-only file system",
            Errno::PIPE => "broken pipe",
            Errno::NAMETOOLONG => "file name too long",
            Errno::NOSYS => "not offered by this kernel",
            Errno::LOOP => "too many symbolic links",
            Errno::CONNRESET => "connection reset",
            Errno::CONNREFUSED => "connection refused",
            Errno::TIMEDOUT => "timed out",
            Errno::PROTOTYPE => "wrong type of socket",
            other => return write!(out, "error {}", other.raw_os_error()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Usual reasons have words; one without keeps its number.
    #[test]
    fn reasons_are_words() {
        assert_eq!(alloc::format!("{}", Reason(Errno::NOSPC)), "no space left on device");
        assert_eq!(alloc::format!("{}", Reason(Errno::ADDRINUSE)), "the address is in use");
        assert_eq!(alloc::format!("{}", Reason(Errno::from_raw_os_error(133))), "error 133");
    }

    /// Escape sequences never reach a terminal.
    #[test]
    fn shown_text_is_printable() {
        assert_eq!(alloc::format!("{}", Shown(b"a\x1b[31m\xffz")), "a\\x1b[31m\\xffz");
        assert!(alloc::format!("{}", Shown(&[b'x'; 999])).ends_with('…'));
    }
}
