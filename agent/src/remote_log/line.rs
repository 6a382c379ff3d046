//! A line of a log: its priority (RFC 3164, section 4.1.1) and text that is safe to show.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

use crate::text::{decimal, split_once};

/// Longer lines are cut, in bytes as they arrive.
pub const LONGEST: usize = 4096;
const HIGHEST: u64 = 191;
/// `user.notice`, where a line names no priority.
const USUAL: Priority = Priority(13);
const SEVERITIES: [&str; 8] = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];

/// A facility times eight plus a severity, 191 at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority(u8);

impl Priority {
    /// Check a number.
    pub fn new(untrusted_number: u64) -> Option<Self> {
        (untrusted_number <= HIGHEST).then_some(Self(untrusted_number as u8))
    }

    /// As a number for syslog. What another qube says is never said by our kernel (facility 0).
    pub fn number(self) -> u8 {
        if self.0 < 8 {
            self.0 + 8
        } else {
            self.0
        }
    }

    /// The severity's name.
    pub fn severity(self) -> &'static str {
        SEVERITIES[usize::from(self.0 % 8)]
    }
}

/// Split `<PRI>` from a line; without a right one, all of it is text.
pub fn parse(untrusted_line: &[u8]) -> (Priority, &[u8]) {
    let found = untrusted_line.strip_prefix(b"<").and_then(|rest| {
        let (number, text) = split_once(rest, b'>')?;
        let number = decimal(number).filter(|_| number.len() <= 3)?;
        Some((Priority::new(number)?, text))
    });
    found.unwrap_or((USUAL, untrusted_line))
}

/// Make text harmless on a terminal: printable ASCII stays, all else is spelt `\xNN`.
pub fn shown(untrusted_text: &[u8], cut: bool) -> String {
    let mut text = String::with_capacity(untrusted_text.len());
    for &byte in untrusted_text {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(byte)),
            b'\t' => text.push(' '),
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    if cut {
        text.push_str(" [cut]");
    }
    text
}

/// Seconds since 1970 as `YYYY-MM-DDTHH:MM:SSZ`.
pub fn time(seconds: i64) -> String {
    let (days, rest) = (seconds.max(0) / 86_400, seconds.max(0) % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    alloc::format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The date so many days after 1970-01-01. Years begin in March here, so that leap days come last.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// Cut a line into pieces that fit, each with the same prefix.
pub fn pieces(prefix: &[u8], line: &[u8]) -> Vec<Vec<u8>> {
    let room = LONGEST - prefix.len();
    if line.is_empty() {
        return alloc::vec![prefix.to_vec()];
    }
    line.chunks(room).map(|piece| [prefix, piece].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    /// A right priority is taken off, anything like one is text.
    #[test]
    fn priorities() {
        assert_eq!(parse(b"<11>x"), (Priority(11), &b"x"[..]));
        assert_eq!(parse(b"<0>"), (Priority(0), &b""[..]));
        for text in [&b"<192>x"[..], b"<>x", b"<-1>x", b"< 1>x", b"<1x", b"<0013>x", b"x<1>", b""] {
            assert_eq!(parse(text), (USUAL, text));
        }
        assert_eq!((Priority(3).number(), Priority(3).severity()), (11, "err"));
        assert_eq!(Priority(191).number(), 191);
    }

    /// No byte of another qube steers a terminal or forges a line (QSB-087).
    #[test]
    fn text_is_harmless() {
        assert_eq!(
            shown(b"a\x1b[2J\r\n\0\xe2\x80\xae\\x41\tz", false),
            "a\\x1b[2J\\x0d\\x0a\\x00\\xe2\\x80\\xae\\\\x41 z"
        );
        let mut random = Generator::new(51);
        for _ in 0..5_000 {
            let length = random.below(80);
            let line = random.bytes(length);
            let (_, text) = parse(&line);
            assert!(shown(text, true).bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }

    /// Dates, checked against known ones.
    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (-5, "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(time(seconds), text);
        }
    }

    /// A long line is sent in pieces that are each taken whole.
    #[test]
    fn long_lines_are_cut_in_pieces() {
        assert_eq!(pieces(b"<1>", b""), [b"<1>".to_vec()]);
        let long = [b'x'; 10_000];
        let found = pieces(b"<13>", &long);
        assert_eq!(found.iter().map(|piece| piece.len() - 4).sum::<usize>(), 10_000);
        assert!(found.iter().all(|piece| piece.len() <= LONGEST && piece.starts_with(b"<13>")));
    }
}
