//! The records of a pax header: `LENGTH KEY=VALUE` and a newline (POSIX.1-2017, pax). Pure.

use alloc::vec::Vec;

use crate::text::{decimal, split_once};

/// What records say about a member, instead of its header.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Records {
    /// Its name.
    pub name: Option<Vec<u8>>,
    /// Its link target.
    pub target: Option<Vec<u8>>,
    /// Its size.
    pub size: Option<u64>,
    /// When it was written: seconds and nanoseconds.
    pub modified: Option<(u64, u32)>,
    /// True where its content is not what the file holds (GNU's sparse files).
    pub sparse: bool,
}

/// Read records; `None` for what makes no sense. Unknown keys say nothing to us.
pub fn parse(mut text: &[u8]) -> Option<Records> {
    let mut records = Records::default();
    while !text.is_empty() {
        let (length, _) = split_once(text, b' ')?;
        let skip = length.len() + 1;
        let length = usize::try_from(decimal(length)?).ok()?;
        let record = text.get(..length)?.get(skip..)?.strip_suffix(b"\n")?;
        let (key, value) = split_once(record, b'=')?;
        match key {
            b"path" => records.name = Some(value.to_vec()),
            b"linkpath" => records.target = Some(value.to_vec()),
            b"size" => records.size = Some(decimal(value)?),
            b"mtime" => records.modified = time(value),
            _ if key.starts_with(b"GNU.sparse.") => records.sparse = true,
            _ => {}
        }
        text = &text[length..];
    }
    Some(records)
}

/// A decimal number of seconds with a fraction; `None` before 1970.
fn time(text: &[u8]) -> Option<(u64, u32)> {
    let (seconds, fraction) = split_once(text, b'.').unwrap_or((text, b""));
    let digits = fraction.iter().copied().chain(core::iter::repeat(b'0')).take(9);
    let nanoseconds = digits
        .into_iter()
        .try_fold(0, |value, digit| digit.is_ascii_digit().then(|| value * 10 + u32::from(digit - b'0')))?;
    Some((decimal(seconds)?, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    fn record(key: &str, value: &str) -> std::string::String {
        let rest = std::format!(" {key}={value}\n");
        let length = (1..).find(|length| std::format!("{length}").len() + rest.len() == *length).unwrap();
        std::format!("{length}{rest}")
    }

    /// What records say.
    #[test]
    fn records() {
        let text = record("path", "a=b\u{e4}/0123")
            + &record("linkpath", "a\nb")
            + &record("size", "7")
            + &record("mtime", "12.123456789012")
            + &record("SCHILY.xattr.user.x", "");
        assert_eq!(
            parse(text.as_bytes()),
            Some(Records {
                name: Some("a=b\u{e4}/0123".into()),
                target: Some(b"a\nb".to_vec()),
                size: Some(7),
                modified: Some((12, 123_456_789)),
                sparse: false,
            })
        );
        assert_eq!(
            parse(record("GNU.sparse.major", "1").as_bytes()).map(|records| records.sparse),
            Some(true)
        );
        assert_eq!(parse(b"").map(|records| records.name), Some(None));
        assert_eq!(time(b"5"), Some((5, 0)));
        assert_eq!(time(b"5.5"), Some((5, 500_000_000)));
        assert_eq!(time(b"-5.5"), None);
    }

    /// Lengths that lie, and what is no record.
    #[test]
    fn nonsense_is_refused() {
        for wrong in [
            &b"8 path=a\n"[..],
            b"11 path=a\n",
            b"10 path=a\n ",
            b"0 \n",
            b"3 \n",
            b"x path=a\n",
            b"99999999999999999999 a=b\n",
            b"18446744073709551615 a=b\n",
            b"6 ab=\n\n",
            b"8 abcde\n",
            b"10 size=x\n",
            b"path=a",
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    /// No text makes the parser panic.
    #[test]
    fn any_text_is_survived() {
        let mut random = Generator::new(9);
        for _ in 0..50_000 {
            let length = random.below(24);
            let text: Vec<u8> = (0..length).map(|_| *random.pick(b"0123459 =\npath")).collect();
            parse(&text);
        }
    }
}
