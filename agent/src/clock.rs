//! Dates from other qubes, and the clock that they may set.
//!
//! `qubes-set-clock` is service `qubes.SetDateTime`: one line with a date arrives on standard input.
//! `qvm-sync-clock` asks for the date (`qubes.GetDate`) and compares. Both set the clock only where
//! it is off by more than two seconds. A container has the machine's clock: there it is only
//! compared, and where it would have to be set, the reason is told.

use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::arguments::{one_option, Known};
use crate::code;
use crate::process::{self, exit_code};
use crate::say;
use crate::speak::{self, Reason};
use crate::sys::call::{self, signal};
use crate::text::{c_string, decimal};

/// Being off by so many seconds is no reason to set a clock.
const TOLERANCE: i64 = 2;
/// 2026-01-01: this program was not written earlier, so no date before is right.
const EARLIEST: i64 = 1_767_225_600;
/// More is no date. In bytes.
const LONGEST: usize = 64;
/// A clock qube that has to start first takes a while. In milliseconds.
const PATIENCE: i64 = 60_000;
/// In seconds: a call without an answer ends by then, or is ended.
const END_PATIENCE: i64 = 5;
const OWN_PROGRAM: &[u8] = b"/proc/self/exe";
const NAME: &str = "qvm-sync-clock";
const KNOWN: [Known; 2] = [Known::value(b'a', "agent-socket"), Known::flag(b'h', "help")];
const USAGE: &str = "\
usage: qvm-sync-clock

Compare the clock with that of the clock qube, and set it where it is off by more than 2 s.

  -a, --agent-socket=PATH   the broker's socket (default /run/qubes/qrexec)
  -h, --help                show this
";

/// `qubes.SetDateTime`; the exit code.
pub fn set_from_input() -> i32 {
    let mut line = [0; LONGEST];
    let mut used = 0;
    while used < LONGEST && !line[..used].contains(&b'\n') {
        match rustix::io::read(call::standard(0), &mut line[used..]) {
            Ok(0) => break,
            Ok(count) => used += count,
            Err(Errno::INTR) => {}
            Err(error) => return failed("read the date", error),
        }
    }
    let text = &line[..used];
    match instant(text.strip_suffix(b"\n").unwrap_or(text)) {
        Some(wanted) => follow(wanted),
        None => {
            say!("error: that is no date");
            say!("hint: send one line such as `2026-01-31T12:00:00+00:00`");
            code::FAILURE
        }
    }
}

/// `qvm-sync-clock`; the exit code.
pub fn synchronise(arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    let (socket, operands) = match one_option(NAME, USAGE, &KNOWN, arguments) {
        Ok(given) => given,
        Err(code) => return code,
    };
    if !operands.is_empty() {
        return speak::wrong_usage(NAME, "expected no argument");
    }
    let (answer, code) = match ask(socket, environment) {
        Ok(answer) => answer,
        Err(error) => return failed("ask for the date", error),
    };
    match utc(&answer) {
        Some(wanted) if wanted >= EARLIEST => follow(wanted),
        Some(_) => {
            say!("error: the clock qube says that it is before 2026: its clock is wrong");
            code::FAILURE
        }
        None => {
            say_no_date(&answer, code);
            code::FAILURE
        }
    }
}

/// Tell what came in a date's place, from a call that ended with `code`.
fn say_no_date(answer: &[u8], code: i32) {
    if !answer.is_empty() {
        say!("error: the clock qube gave no valid date");
        return;
    }
    say!("error: the clock qube gave no date");
    if code == code::REFUSED {
        say!("hint: see whether policy lets this qube call `qubes.GetDate`");
    }
}

/// Call the service; its first line, cut off where it is too long, and the exit code of the call
/// where there is none.
fn ask(socket: Option<&'static [u8]>, environment: &[&'static CStr]) -> Result<(Vec<u8>, i32), Errno> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let Some(pid) = call::fork()? else {
        let _ = rustix::stdio::dup2_stdout(&writer);
        let socket = socket.map(|path| c_string(&[b"--agent-socket=", path]));
        let parts = [&b"qrexec-client-vm"[..], b"--", b"@default", b"qubes.GetDate"];
        let [name, end, target, service] = parts.map(|part| c_string(&[part]));
        let mut arguments: Vec<&CStr> = alloc::vec![&name];
        arguments.extend(socket.as_deref());
        arguments.extend([&*end, &*target, &*service]);
        call::execute(&c_string(&[OWN_PROGRAM]), &arguments, environment);
        call::exit(code::PROBLEM)
    };
    drop(writer);
    let answer = receive(&reader);
    drop(reader);
    let code = end(pid, answer.as_ref().map_or(true, |answer| !answer.is_empty()));
    Ok((answer?, code))
}

/// End the call; its exit code. Where there was no answer it tells why, if it comes soon: whoever
/// tells a date, or none, does not keep us waiting for its end.
fn end(pid: i32, answered: bool) -> i32 {
    if let (false, Ok(watch)) = (answered, process::watch(pid)) {
        let soon = Timespec { tv_sec: END_PATIENCE, tv_nsec: 0 };
        let _ = rustix::event::poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&soon));
    }
    call::kill(pid, signal::KILL);
    call::wait_for(pid).map_or(code::PROBLEM, exit_code)
}

fn receive(reader: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let until = call::milliseconds() + PATIENCE;
    let mut answer = alloc::vec![0; LONGEST];
    let mut used = 0;
    while used < LONGEST && !answer[..used].contains(&b'\n') {
        let timeout = call::timeout(until - call::milliseconds());
        match rustix::event::poll(&mut [PollFd::new(reader, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Err(Errno::TIMEDOUT),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error),
        }
        match rustix::io::read(reader, &mut answer[used..])? {
            0 => break,
            count => used += count,
        }
    }
    answer.truncate(used);
    Ok(answer)
}

/// Have the clock show `wanted`, in seconds since the epoch; the exit code.
fn follow(wanted: i64) -> i32 {
    let off = wanted.saturating_sub(call::seconds());
    if off.abs() <= TOLERANCE {
        return 0;
    }
    match call::set_seconds(wanted) {
        Ok(()) => {
            say!("the clock was set, by {off} s");
            0
        }
        Err(Errno::PERM) => {
            say!("error: the clock is off by {off} s, and this qube has no clock of its own to set");
            say!("hint: a container has the machine's clock: set that one");
            code::FAILURE
        }
        Err(error) => failed("set the clock", error),
    }
}

fn failed(what: &str, error: Errno) -> i32 {
    say!("error: cannot {what}: {error}", error = Reason(error));
    code::FAILURE
}

/// An answer of `qubes.GetDate`: 26 bytes, or 36 with nanoseconds, in UTC.
fn utc(answer: &[u8]) -> Option<i64> {
    let date = answer.strip_suffix(b"\n")?.strip_suffix(b"+00:00")?;
    match (date.len(), date.get(19..)) {
        (19, _) => seconds(date),
        (29, Some([b',', digits @ ..])) if digits.iter().all(u8::is_ascii_digit) => seconds(&date[..19]),
        _ => None,
    }
}

/// A date with any offset, such as `2026-01-31T12:00:00+01:00`, with or without nanoseconds.
fn instant(text: &[u8]) -> Option<i64> {
    let date = text.get(..19)?;
    let zone = match &text[19..] {
        [b',' | b'.', rest @ ..] => {
            let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            (1..=9).contains(&digits).then(|| &rest[digits..])?
        }
        zone => zone,
    };
    let [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] = *zone else {
        return (zone == b"Z").then(|| seconds(date))?;
    };
    let minutes = number(&[h1, h2], 0, 14)? * 60 + number(&[m1, m2], 0, 59)?;
    let local = seconds(date)?;
    Some(if sign == b'+' { local - minutes * 60 } else { local + minutes * 60 })
}

/// Seconds since the epoch of a date in UTC, `YYYY-MM-DDTHH:MM:SS`, from 1970 on.
fn seconds(date: &[u8]) -> Option<i64> {
    const MARKS: [(usize, u8); 5] = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if date.len() != 19 || MARKS.iter().any(|&(at, mark)| date[at] != mark) {
        return None;
    }
    let year = number(&date[..4], 1970, 9999)?;
    let month = number(&date[5..7], 1, 12)?;
    let day = number(&date[8..10], 1, days_of(year, month))?;
    let (hour, minute, second) =
        (number(&date[11..13], 0, 23)?, number(&date[14..16], 0, 59)?, number(&date[17..], 0, 59)?);
    let leap_days = |year: i64| year / 4 - year / 100 + year / 400;
    let days = (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969)
        + (1..month).map(|month| days_of(year, month)).sum::<i64>()
        + day
        - 1;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn number(digits: &[u8], least: i64, most: i64) -> Option<i64> {
    let value = i64::try_from(decimal(digits)?).ok()?;
    (least..=most).contains(&value).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    /// Known instants, leap years among them.
    #[test]
    fn dates() {
        for (text, wanted) in [
            (&b"1970-01-01T00:00:00"[..], 0),
            (b"2000-02-29T12:34:56", 951_827_696),
            (b"2026-01-01T00:00:00", EARLIEST),
            (b"2100-03-01T00:00:00", 4_107_542_400),
            (b"9999-12-31T23:59:59", 253_402_300_799),
        ] {
            assert_eq!(seconds(text), Some(wanted));
        }
        for wrong in [
            &b"2026-02-29T00:00:00"[..],
            b"2026-13-01T00:00:00",
            b"2026-00-01T00:00:00",
            b"2026-01-01T24:00:00",
            b"2026-01-01T00:00:60",
            b"2026-01-01 00:00:00",
            b"1969-12-31T23:59:59",
            b"2026-1-01T00:00:00x",
            b"+026-01-01T00:00:00",
            b"",
        ] {
            assert_eq!(seconds(wrong), None, "{wrong:?}");
        }
    }

    /// Each day follows the one before.
    #[test]
    fn days_follow_each_other() {
        let mut before = -86_400;
        for year in 1970..2110 {
            for month in 1..=12 {
                for day in 1..=days_of(year, month) {
                    let text = alloc::format!("{year:04}-{month:02}-{day:02}T00:00:00");
                    let now = seconds(text.as_bytes()).unwrap();
                    assert_eq!(now, before + 86_400, "{text}");
                    before = now;
                }
            }
        }
    }

    /// The two forms of the service, to the byte.
    #[test]
    fn answers() {
        assert_eq!(utc(b"2026-01-01T00:00:07+00:00\n"), Some(EARLIEST + 7));
        assert_eq!(utc(b"2026-01-01T00:00:07,123456789+00:00\n"), Some(EARLIEST + 7));
        for wrong in [
            &b"2026-01-01T00:00:07+00:00"[..],
            b"2026-01-01T00:00:07+01:00\n",
            b"2026-01-01T00:00:07Z\n",
            b"2026-01-01T00:00:07,12345678+00:00\n",
            b"2026-01-01T00:00:07,12345678x+00:00\n",
            b"2026-01-01T00:00:07.123456789+00:00\n",
            b"2026-01-01T00:00:07+00:00\n\n",
            b" 2026-01-01T00:00:07+00:00\n",
            b"",
        ] {
            assert_eq!(utc(wrong), None, "{wrong:?}");
        }
    }

    /// Offsets count; what a shell would make something of is no date (QSB-038).
    #[test]
    fn instants() {
        for (text, wanted) in [
            (&b"2026-01-01T01:00:00+01:00"[..], EARLIEST),
            (b"2025-12-31T18:30:00-05:30", EARLIEST),
            (b"2026-01-01T00:00:00Z", EARLIEST),
            (b"2026-01-01T00:00:00,5+00:00", EARLIEST),
            (b"2026-01-01T00:00:00.123456789Z", EARLIEST),
        ] {
            assert_eq!(instant(text), Some(wanted));
        }
        for wrong in [
            &b"2026-01-01T00:00:00"[..],
            b"2026-01-01T00:00:00+0000",
            b"2026-01-01T00:00:00+15:00",
            b"2026-01-01T00:00:00,+00:00",
            b"2026-01-01T00:00:00,1234567890Z",
            b"$(reboot)",
            b"2026-01-01T00:00:00Z; reboot",
            b"@0",
            b"now",
        ] {
            assert_eq!(instant(wrong), None, "{wrong:?}");
        }
    }

    /// No text makes the parsers panic.
    #[test]
    fn any_text_is_survived() {
        let mut random = Generator::new(5);
        for _ in 0..50_000 {
            let length = random.below(40);
            let text: Vec<u8> = (0..length).map(|_| *random.pick(b"0129-T:+,.Z\n")).collect();
            let _ = (utc(&text), instant(&text));
        }
    }
}
