//! The value of key `Exec`: a program and its arguments, with field codes (section 7 of the
//! Desktop Entry Specification). No shell reads it.

use alloc::vec::Vec;

/// More arguments are taken for a mistake.
const MOST: usize = 1_000;

/// What field codes stand for.
#[derive(Default)]
pub struct Fields<'a> {
    /// `%c`: the entry's name.
    pub name: &'a [u8],
    /// `%i`: the entry's icon, nothing where empty.
    pub icon: &'a [u8],
    /// `%k`: the path of the entry's file.
    pub path: &'a [u8],
}

/// Why a value is no command.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    /// There is no program in it.
    Empty,
    /// A quotation has no end.
    Quotation,
    /// An unknown field code.
    Field,
    /// A NUL, or more arguments than any program has.
    Size,
}

/// Split a value into arguments and fill in the field codes. There are never files to fill in.
pub fn arguments(value: &[u8], fields: &Fields<'_>) -> Result<Vec<Vec<u8>>, Wrong> {
    if value.contains(&0) {
        return Err(Wrong::Size);
    }
    let mut found = Vec::new();
    for word in words(value)? {
        fill_in(&word, fields, &mut found)?;
        if found.len() > MOST {
            return Err(Wrong::Size);
        }
    }
    match found.first() {
        Some(program) if !program.is_empty() => Ok(found),
        _ => Err(Wrong::Empty),
    }
}

/// Split at blanks. Double quotes keep blanks and know backslashes, single quotes keep everything.
fn words(value: &[u8]) -> Result<Vec<Vec<u8>>, Wrong> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut rest = value.iter().copied();
    while let Some(byte) = rest.next() {
        match byte {
            b' ' | b'\t' | b'\n' => words.extend(word.take()),
            b'"' => quoted(&mut rest, word.get_or_insert_with(Vec::new))?,
            b'\'' => loop {
                match rest.next().ok_or(Wrong::Quotation)? {
                    b'\'' => {
                        word.get_or_insert_with(Vec::new);
                        break;
                    }
                    byte => word.get_or_insert_with(Vec::new).push(byte),
                }
            },
            b'\\' => word.get_or_insert_with(Vec::new).push(rest.next().ok_or(Wrong::Quotation)?),
            byte => word.get_or_insert_with(Vec::new).push(byte),
        }
    }
    words.extend(word);
    Ok(words)
}

fn quoted(rest: &mut impl Iterator<Item = u8>, word: &mut Vec<u8>) -> Result<(), Wrong> {
    loop {
        match rest.next().ok_or(Wrong::Quotation)? {
            b'"' => return Ok(()),
            b'\\' => match rest.next().ok_or(Wrong::Quotation)? {
                byte @ (b'"' | b'`' | b'$' | b'\\') => word.push(byte),
                byte => word.extend_from_slice(&[b'\\', byte]),
            },
            byte => word.push(byte),
        }
    }
}

/// Fill in the codes of one word; one that is nothing but an empty code is no argument.
fn fill_in(word: &[u8], fields: &Fields<'_>, found: &mut Vec<Vec<u8>>) -> Result<(), Wrong> {
    if word == b"%i" {
        if !fields.icon.is_empty() {
            found.extend([b"--icon".to_vec(), fields.icon.to_vec()]);
        }
        return Ok(());
    }
    let mut filled = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, after @ ..] = rest {
        if *first != b'%' {
            filled.push(*first);
            rest = after;
            continue;
        }
        let (code, after) = after.split_first().ok_or(Wrong::Field)?;
        match code {
            b'%' => filled.push(b'%'),
            b'c' => filled.extend_from_slice(fields.name),
            b'k' => filled.extend_from_slice(fields.path),
            // Files, and codes that mean nothing any more.
            b'f' | b'F' | b'u' | b'U' | b'd' | b'D' | b'n' | b'N' | b'v' | b'm' => {}
            _ => return Err(Wrong::Field),
        }
        rest = after;
    }
    let only_code = word.len() == 2 && word[0] == b'%';
    if !(only_code && filled.is_empty()) {
        found.push(filled);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    fn read(value: &str) -> Result<Vec<String>, Wrong> {
        let fields = Fields { name: b"My Name", icon: b"pic", path: b"/a/b.desktop" };
        let found = arguments(value.as_bytes(), &fields)?;
        Ok(found.into_iter().map(|word| String::from_utf8_lossy(&word).into_owned()).collect())
    }

    /// Quotes, backslashes and codes as the specification has them.
    #[test]
    fn commands() {
        for (value, expected) in [
            ("a", &["a"][..]),
            ("a  b\tc", &["a", "b", "c"]),
            (r#""a b" "c\"\$\`\\d" e\ f"#, &["a b", "c\"$`\\d", "e f"]),
            (r#"sh -c 'x "y" \z' """#, &["sh", "-c", "x \"y\" \\z", ""]),
            ("a %U --x=%f %%", &["a", "--x=", "%"]),
            ("a %i %c %k", &["a", "--icon", "pic", "My Name", "/a/b.desktop"]),
            ("env A=b c %u", &["env", "A=b", "c"]),
        ] {
            assert_eq!(read(value).unwrap(), expected, "{value}");
        }
    }

    /// Nothing in a command is expanded as a shell would (QSB-038).
    #[test]
    fn no_shell_reads_it() {
        assert_eq!(
            read("a $(id) `id` ; b > /x & *").unwrap(),
            ["a", "$(id)", "`id`", ";", "b", ">", "/x", "&", "*"]
        );
    }

    /// What is no command starts nothing.
    #[test]
    fn wrong_commands_are_refused() {
        for wrong in ["", "  ", "%U", "\"\"", "\"a", "'a", "a\\", "a %", "a %q", "a\0b"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(read(&"a ".repeat(2_000)), Err(Wrong::Size));
    }

    /// Every argument survives quoting.
    #[test]
    fn quoting_round() {
        let mut random = Generator::new(32);
        for _ in 0..5_000 {
            let length = random.below(12) + 1;
            let word: Vec<u8> = random.bytes(length).into_iter().map(|byte| byte.max(1)).collect();
            let mut value = b"\"".to_vec();
            for &byte in &word {
                match byte {
                    b'"' | b'`' | b'$' | b'\\' => value.extend_from_slice(&[b'\\', byte]),
                    b'%' => value.extend_from_slice(b"%%"),
                    byte => value.push(byte),
                }
            }
            value.push(b'"');
            assert_eq!(arguments(&value, &Fields::default()), Ok(vec![word]));
        }
    }

    /// Any value is survived.
    #[test]
    fn any_value_is_survived() {
        let mut random = Generator::new(33);
        for _ in 0..20_000 {
            let length = random.below(30);
            let value: Vec<u8> = (0..length).map(|_| *random.pick(b"a \"'\\%fick$\0")).collect();
            let _ = arguments(&value, &Fields::default());
        }
    }
}
