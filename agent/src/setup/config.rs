//! Settings that say which paths a qube keeps: `binds+=( '/path' … )`.
//!
//! They have the form of shell assignments and are parsed, never run: a file with anything else in
//! it counts for nothing.

use alloc::vec::Vec;

/// Longest path, in bytes.
const LONGEST: usize = 4095;
/// Most paths in one file.
pub const MOST: usize = 256;
/// What has a volume of its own, or is made anew at each start.
const ELSEWHERE: [&[u8]; 8] = [b"/dev", b"/home", b"/proc", b"/run", b"/rw", b"/sys", b"/tmp", b"/usr/local"];
/// What no qube could start without.
const NEEDED: [&[u8]; 9] =
    [b"/", b"/bin", b"/boot", b"/etc", b"/lib", b"/lib32", b"/lib64", b"/sbin", b"/usr"];

/// One file, read: `None` where it begins with paths of its own (`binds=`), which drops others.
#[derive(Debug, PartialEq, Eq, Default)]
pub struct Binds {
    /// The paths, in order, as they stand there.
    pub paths: Vec<Vec<u8>>,
    /// True where what other files said before counts no more.
    pub anew: bool,
}

/// Read a file; the number of the line that makes no sense otherwise.
pub fn parse(content: &[u8]) -> Result<Binds, usize> {
    let mut reader = Reader { rest: content, line: 1 };
    let mut found = Binds::default();
    while reader.skip() {
        if !reader.takes(b"binds") {
            return Err(reader.line);
        }
        if reader.takes(b"=(") {
            found = Binds { anew: true, ..Binds::default() };
        } else if !reader.takes(b"+=(") {
            return Err(reader.line);
        }
        loop {
            if !reader.skip() {
                return Err(reader.line);
            }
            if reader.takes(b")") {
                break;
            }
            let path = reader.word().ok_or(reader.line)?;
            if found.paths.len() >= MOST {
                return Err(reader.line);
            }
            found.paths.push(path.to_vec());
            if !matches!(reader.rest.first(), Some(b' ' | b'\t' | b'\n' | b')')) {
                return Err(reader.line);
            }
        }
        if !matches!(reader.rest.first(), None | Some(b' ' | b'\t' | b'\n' | b';' | b'#')) {
            return Err(reader.line);
        }
        reader.takes(b";");
    }
    Ok(found)
}

struct Reader<'a> {
    rest: &'a [u8],
    line: usize,
}

impl<'a> Reader<'a> {
    /// Skip blanks and comments; false at the end.
    fn skip(&mut self) -> bool {
        loop {
            match self.rest {
                [] => return false,
                [b'\n', rest @ ..] => {
                    self.line += 1;
                    self.rest = rest;
                }
                [b' ' | b'\t', rest @ ..] => self.rest = rest,
                [b'#', ..] => {
                    let end = self.rest.iter().position(|&byte| byte == b'\n');
                    self.rest = &self.rest[end.unwrap_or(self.rest.len())..];
                }
                _ => return true,
            }
        }
    }

    fn takes(&mut self, text: &[u8]) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// A word, quoted or of characters that mean nothing to a shell.
    fn word(&mut self) -> Option<&'a [u8]> {
        let (word, rest) = match self.rest {
            [quote @ (b'\'' | b'"'), rest @ ..] => {
                let end = rest.iter().position(|byte| byte == quote)?;
                let word = &rest[..end];
                let meant = |byte: &u8| *quote == b'"' && b"$`\\!".contains(byte);
                if word.iter().any(|byte| *byte == b'\n' || meant(byte)) {
                    return None;
                }
                (word, &rest[end + 1..])
            }
            text => {
                let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._+:@%=,-".contains(byte);
                let end = text.iter().position(|byte| !plain(byte)).unwrap_or(text.len());
                text.split_at(end)
            }
        };
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }
}

/// A path that can be kept, without a slash at its end; the reason where it cannot.
pub fn checked(path: &[u8]) -> Result<&[u8], &'static str> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    if path.len() > LONGEST || path.contains(&0) {
        return Err("is too long or contains a NUL");
    }
    let Some(relative) = path.strip_prefix(b"/") else {
        return Err("is not absolute, or is all of the qube");
    };
    if relative.split(|&byte| byte == b'/').any(|part| matches!(part, b"" | b"." | b"..")) {
        return Err("has an empty part, `.` or `..` in it");
    }
    let inside = |other: &&[u8]| {
        path.strip_prefix(*other).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    if ELSEWHERE.iter().any(inside) {
        return Err("is kept already, or made anew at each start");
    }
    if NEEDED.contains(&path) {
        return Err("is needed as a whole before paths are kept; name what is in it");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    fn paths(text: &[u8]) -> Vec<Vec<u8>> {
        parse(text).unwrap().paths
    }

    /// The forms that people use.
    #[test]
    fn forms() {
        assert_eq!(paths(b"binds+=( '/var/lib/x' )\n"), [b"/var/lib/x"]);
        assert_eq!(paths(b"# why\nbinds+=('/a b' \"/c\" /d.e)"), [&b"/a b"[..], b"/c", b"/d.e"]);
        assert_eq!(paths(b"binds+=(\n  '/a' # one\n  '/b'\n)\nbinds+=( '/c' );"), [b"/a", b"/b", b"/c"]);
        assert_eq!(
            parse(b"binds+=( /a )\nbinds=( /b )").unwrap(),
            Binds { paths: alloc::vec![b"/b".to_vec()], anew: true }
        );
        assert_eq!(parse(b"binds=()").unwrap(), Binds { paths: Vec::new(), anew: true });
        assert_eq!(paths(b"binds+=( '/a$b`c' )"), [b"/a$b`c"]);
        assert!(paths(b"").is_empty());
    }

    /// Whatever a shell would do more than assign makes the file void, and names its line.
    #[test]
    fn anything_else() {
        for (text, line) in [
            (&b"rm -rf /"[..], 1),
            (b"\n\nbinds+=( $(id) )", 3),
            (b"binds+=( \"/$HOME\" )", 1),
            (b"binds+=( \"`id`\" )", 1),
            (b"binds+=( '/a'\n", 2),
            (b"binds+=( '/a", 1),
            (b"binds+=( '/a\n' )", 1),
            (b"binds+=( /a )x", 1),
            (b"binds+=( /a ) && id", 1),
            (b"binds+=( /a'b' )", 1),
            (b"binds +=( /a )", 1),
            (b"binds+=( /a\\ b )", 1),
            (b"binds+=( /* )", 1),
            (b"binds+=( ~/a )", 1),
            (b"binds+=( '' )", 1),
            (b"binds+=( /a );;", 1),
            (b"binds", 1),
            (b"\x00", 1),
        ] {
            assert_eq!(parse(text), Err(line), "{:?}", alloc::string::String::from_utf8_lossy(text));
        }
        let many = [b"binds+=(".to_vec(), b" /a".repeat(MOST + 1), b")".to_vec()].concat();
        assert!(parse(&many).is_err());
    }

    /// Paths that lead elsewhere, or that a qube needs, are not kept.
    #[test]
    fn which_paths() {
        assert_eq!(checked(b"/var/lib/x/"), Ok(&b"/var/lib/x"[..]));
        assert_eq!(checked(b"/etc/x"), Ok(&b"/etc/x"[..]));
        assert_eq!(checked(b"/homes"), Ok(&b"/homes"[..]));
        for wrong in [
            &b""[..],
            b"/",
            b"//",
            b"x",
            b"../x",
            b"/var/../etc/passwd",
            b"/var/./x",
            b"/var//x",
            b"/etc",
            b"/etc/",
            b"/usr",
            b"/usr/local/bin",
            b"/rw/x",
            b"/proc/1",
            b"/run/qubes",
            b"/a\0b",
        ] {
            assert!(checked(wrong).is_err(), "{wrong:?}");
        }
        assert!(checked(&[b"/", &[b'a'; 4096][..]].concat()).is_err());
    }

    /// No content makes the parser panic, or find what it does not say.
    #[test]
    fn any_content_is_survived() {
        let mut random = Generator::new(7);
        for _ in 0..50_000 {
            let mut text = b"binds+=(".to_vec();
            for _ in 0..random.below(20) {
                text.push(*random.pick(b"/a' \")(=+#\n$;b"));
            }
            if let Ok(found) = parse(&text) {
                for path in found.paths {
                    assert!(text.windows(path.len()).any(|part| part == path));
                    let _ = checked(&path);
                }
            }
        }
    }
}
