//! Desktop entries: what a `.desktop` file says (Desktop Entry Specification 1.5, sections 3 to 6).

use alloc::vec::Vec;

use crate::text::split_once;

/// Larger files are not read; those with many translations have about 50 kB.
pub const LARGEST: usize = 512 * 1024;
const GROUP: &[u8] = b"[Desktop Entry]";

/// The keys of the main group, in their order, without translations. Values are as in the file.
#[derive(Debug, Default)]
pub struct Entry<'a>(Vec<(&'a [u8], &'a [u8])>);

impl<'a> Entry<'a> {
    /// Read a file's content; `None` where it has no main group as its first.
    pub fn parse(content: &'a [u8]) -> Option<Self> {
        let mut entry: Option<Self> = None;
        for line in content.split(|&byte| byte == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() || line[0] == b'#' {
                continue;
            }
            if line[0] == b'[' {
                match &entry {
                    None if trimmed(line) == GROUP => entry = Some(Self::default()),
                    None => return None,
                    // Actions and other groups follow.
                    Some(_) => break,
                }
                continue;
            }
            let Some((key, value)) = split_once(line, b'=') else { continue };
            let key = trimmed(key);
            if !is_plain_key(key) {
                continue;
            }
            let entry = entry.as_mut()?;
            // Of a key that stands there twice the first counts, in all programs alike.
            if entry.get(key).is_none() {
                entry.0.push((key, trimmed(value)));
            }
        }
        entry
    }

    /// The value of a key as it stands in the file.
    pub fn get(&self, key: &[u8]) -> Option<&'a [u8]> {
        self.0.iter().find_map(|(found, value)| (*found == key).then_some(*value))
    }

    /// The value of a key with its escapes read.
    pub fn text(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.get(key).map(unescaped)
    }

    /// True where a key says `true`.
    pub fn says(&self, key: &[u8]) -> bool {
        self.get(key) == Some(b"true")
    }

    /// All keys and values.
    pub fn keys(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + '_ {
        self.0.iter().copied()
    }

    /// True for a program that can be started: not a link or directory, and not marked as deleted.
    pub fn is_program(&self) -> bool {
        self.get(b"Type") == Some(b"Application") && !self.says(b"Hidden") && self.get(b"Exec").is_some()
    }
}

/// True for a key without a translation mark.
fn is_plain_key(key: &[u8]) -> bool {
    !key.is_empty() && key.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

fn trimmed(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// Read `\s`, `\n`, `\t`, `\r` and `\\`; any other backslash stands for itself.
fn unescaped(value: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(value.len());
    let mut rest = value;
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'\\', [b's', after @ ..]) => (b' ', after),
            (b'\\', [b'n', after @ ..]) => (b'\n', after),
            (b'\\', [b't', after @ ..]) => (b'\t', after),
            (b'\\', [b'r', after @ ..]) => (b'\r', after),
            (b'\\', [b'\\', after @ ..]) => (b'\\', after),
            (byte, after) => (*byte, after),
        };
        text.push(byte);
        rest = after;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    const FULL: &[u8] =
        b"# x\n\n[Desktop Entry]\r\nType = Application \nName=A\nName[de]=B\nExec=a\\sb \\\\n\n\
        Name=C\nNoDisplay=true\nbroken\n[Desktop Action x]\nExec=evil\nIcon=y\n";

    /// Only the main group counts, and in it the first value of a key.
    #[test]
    fn entries() {
        let entry = Entry::parse(FULL).unwrap();
        assert_eq!(entry.get(b"Name"), Some(&b"A"[..]));
        assert_eq!(entry.text(b"Exec").unwrap(), b"a b \\n");
        assert_eq!(entry.get(b"Icon"), None);
        assert!(entry.says(b"NoDisplay") && entry.is_program());
        assert_eq!(entry.keys().count(), 4);
    }

    /// What is deleted, a link or no entry at all starts nothing.
    #[test]
    fn what_is_no_program() {
        for text in [
            &b"[Desktop Entry]\nType=Link\nExec=x"[..],
            b"[Desktop Entry]\nType=Application\nHidden=true\nExec=x",
            b"[Desktop Entry]\nType=Application\nName=x",
            b"[Desktop Entry]\nExec=x",
        ] {
            assert!(!Entry::parse(text).unwrap().is_program());
        }
        for text in
            [&b""[..], b"[Other]\n[Desktop Entry]\nType=Application", b"Exec=x\n[Desktop Entry]\n", b"\0"]
        {
            assert!(Entry::parse(text).is_none());
        }
    }

    /// Any content is survived.
    #[test]
    fn any_content_is_survived() {
        let mut random = Generator::new(31);
        for _ in 0..20_000 {
            let length = random.below(60);
            let rest: Vec<u8> = (0..length).map(|_| *random.pick(b"Type=Exec[]\n\r \t#\\s\0a")).collect();
            if let Some(entry) = Entry::parse(&[GROUP, b"\n", &rest].concat()) {
                entry.keys().for_each(|(key, value)| {
                    assert!(is_plain_key(key) && !value.contains(&b'\n'));
                    assert!(entry.text(key).unwrap().len() <= value.len());
                });
            }
        }
    }
}
