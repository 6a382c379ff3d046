//! Addresses that may be opened: `http://`, `https://` and `ftp://`, spelt in plain ASCII.

use alloc::vec::Vec;

/// Longer addresses are refused, in bytes as they arrive.
pub const LONGEST: usize = 16 * 1024;
const SCHEMES: [&[u8]; 3] = [b"http://", b"https://", b"ftp://"];
/// Printable, but not allowed in an address (RFC 3986, section 2).
const FOREIGN: &[u8] = b"\"<>\\^`{|}";

/// Why an address is not opened.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It begins with none of the three.
    Scheme,
    /// It is longer than `LONGEST`.
    Length,
    /// It holds a blank or a control character.
    Character,
    /// It names no host, or one that looks like an option (QSB-071).
    Host,
}

impl Wrong {
    /// In words.
    pub fn text(&self) -> &'static str {
        match self {
            Self::Scheme => "it does not begin with `http://`, `https://` or `ftp://`",
            Self::Length => "it is too long",
            Self::Character => "it contains a blank or a control character",
            Self::Host => "it names no host",
        }
    }
}

/// True where a word on the command line is meant as an address.
pub fn looks_like_one(word: &[u8]) -> bool {
    SCHEMES.iter().any(|scheme| word.starts_with(scheme))
}

/// Check an address; what is not plain in it comes out percent-encoded.
///
/// The result has no blank, quote or backslash: it stays one word even in a program that splits it.
pub fn check(untrusted_address: &[u8]) -> Result<Vec<u8>, Wrong> {
    if untrusted_address.len() > LONGEST {
        return Err(Wrong::Length);
    }
    let rest =
        SCHEMES.iter().find_map(|scheme| untrusted_address.strip_prefix(*scheme)).ok_or(Wrong::Scheme)?;
    if untrusted_address.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        return Err(Wrong::Character);
    }
    if matches!(rest.first(), None | Some(b'/' | b'?' | b'#' | b'-')) {
        return Err(Wrong::Host);
    }
    let mut address = Vec::with_capacity(untrusted_address.len());
    for &byte in untrusted_address {
        if byte.is_ascii() && !FOREIGN.contains(&byte) {
            address.push(byte);
        } else {
            address.extend_from_slice(alloc::format!("%{byte:02X}").as_bytes());
        }
    }
    Ok(address)
}

/// The path that an address `file:///…` names, without a NUL.
pub fn path_of(word: &[u8]) -> Option<Vec<u8>> {
    let mut rest = word.strip_prefix(b"file://")?;
    let mut path = Vec::with_capacity(rest.len());
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'%', [high, low, after @ ..]) => (hexadecimal(*high)? << 4 | hexadecimal(*low)?, after),
            (b'%', _) => return None,
            (byte, after) => (*byte, after),
        };
        path.push(byte);
        rest = after;
    }
    (path.first() == Some(&b'/') && !path.contains(&0)).then_some(path)
}

fn hexadecimal(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    /// Addresses come out as they went in; what is foreign to them is encoded.
    #[test]
    fn addresses() {
        for right in ["https://example.org/a?b=c&d=$(x)'#e", "http://[::1]:80/", "ftp://h", "http://h/%20~"] {
            assert_eq!(check(right.as_bytes()), Ok(right.as_bytes().to_vec()));
        }
        assert_eq!(check("https://é.example/\"`\\".as_bytes()).unwrap(), b"https://%C3%A9.example/%22%60%5C");
    }

    /// Other schemes, options, blanks and control characters are refused (QSB-071).
    #[test]
    fn wrong_addresses_are_refused() {
        for wrong in [
            "",
            "file:///etc/passwd",
            "javascript:x",
            "--version",
            "HTTP://h",
            " http://h",
            "http:/h",
            "data:text/html,x",
            "http://a b",
            "http://a\tb",
            "http://a\x1b[0m",
            "http://a\rb",
            "http://a\x7f",
            "http://",
            "http:///etc",
            "http://-oProxyCommand=x",
            "https://?x",
            "ftp://#x",
        ] {
            assert!(check(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
        assert_eq!(check(&[b"http://", &[b'a'; LONGEST][..]].concat()), Err(Wrong::Length));
    }

    /// Whatever arrives, what is opened is one plain word with a known scheme.
    #[test]
    fn any_text_is_survived() {
        let mut random = Generator::new(23);
        for _ in 0..20_000 {
            let length = random.below(30);
            let text = [*random.pick(&SCHEMES), &random.bytes(length)].concat();
            if let Ok(address) = check(&text) {
                assert!(looks_like_one(&address));
                assert!(address.iter().all(|byte| byte.is_ascii_graphic() && !FOREIGN.contains(byte)));
                assert_eq!(check(&address), Ok(address.clone()));
            }
        }
    }

    /// File managers hand over paths as addresses.
    #[test]
    fn paths() {
        assert_eq!(path_of(b"file:///a%20b%c3%A9"), Some("/a bé".as_bytes().to_vec()));
        for wrong in
            [&b"/a"[..], b"file://host/a", b"file:///a%2", b"file:///%zz", b"file:///a%00b", b"file://"]
        {
            assert_eq!(path_of(wrong), None, "{wrong:?}");
        }
    }
}
