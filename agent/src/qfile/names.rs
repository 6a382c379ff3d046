//! Which names and link targets a receiver takes (fact sheet qrexec, 6.1). Pure.
//!
//! What is safe to display is an allow-list: printable ASCII; and letters, marks, numbers,
//! punctuation and symbols by Unicode's general category, but those that show nothing. Whatever is
//! not on the list is refused: control and format characters (U+202E among them), unusual spaces,
//! private and unassigned code points.

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

use super::codes;

/// A component of a path is no longer on any usual file system.
const LONGEST_COMPONENT: usize = 255;
/// So deep may a tree be: the receiver holds one descriptor a level.
pub const DEEPEST: usize = 256;

/// Up to the first NUL: what follows it is ignored, as in a C string.
pub fn c_text(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or(b"")
}

/// The components of a path.
pub fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
}

/// Check the name of an entry; the error is a code of a result.
pub fn check(name: &[u8], all_characters: bool) -> Result<(), u32> {
    let mut depth = 0;
    for component in components(name) {
        if matches!(component, b"" | b"." | b"..") || component.contains(&0) {
            return Err(codes::BAD_NAME);
        }
        depth += 1;
        if component.len() > LONGEST_COMPONENT || depth > DEEPEST {
            return Err(codes::NAME_TOO_LONG);
        }
    }
    if all_characters || is_displayable(name) {
        Ok(())
    } else {
        Err(codes::BAD_NAME)
    }
}

/// Check the target of the link `name`: it stays below the first component of `name`.
pub fn check_link(name: &[u8], target: &[u8], all_characters: bool) -> Result<(), u32> {
    let depth = components(name).count();
    if depth < 2 || target.is_empty() || target[0] == b'/' {
        return Err(codes::UNSAFE_LINK);
    }
    let is_up = |component: &&[u8]| *component == b"..";
    let steps = || components(target).filter(|step| !matches!(*step, b"" | b"."));
    let up = steps().take_while(is_up).count();
    if up > depth - 2 || steps().skip(up).any(|step| step == b"..") {
        return Err(codes::UNSAFE_LINK);
    }
    if all_characters || is_displayable(target) {
        Ok(())
    } else {
        Err(codes::BAD_NAME)
    }
}

/// Check a name for a flat drop box: one plain component with one of the suffixes.
pub fn check_flat(name: &[u8], suffixes: &[&[u8]]) -> Result<(), u32> {
    let plain = |&byte: &u8| byte.is_ascii_alphanumeric() || b"._+~^:%-".contains(&byte);
    let starts_well = name.first().is_some_and(u8::is_ascii_alphanumeric);
    if !starts_well || !name.iter().all(plain) {
        return Err(codes::BAD_NAME);
    }
    if name.len() > LONGEST_COMPONENT {
        return Err(codes::NAME_TOO_LONG);
    }
    let fits = |suffix: &&[u8]| name.len() > suffix.len() && name.ends_with(suffix);
    if suffixes.is_empty() || suffixes.iter().any(fits) {
        Ok(())
    } else {
        Err(codes::BAD_NAME)
    }
}

/// True where every character is safe to show.
pub fn is_displayable(text: &[u8]) -> bool {
    if text.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return true;
    }
    core::str::from_utf8(text).is_ok_and(|text| text.chars().all(is_safe))
}

fn is_safe(character: char) -> bool {
    use GeneralCategoryGroup::{Letter, Mark, Number, Punctuation, Symbol};
    match character {
        ' '..='~' => true,
        // Joiners, fillers, vowels and selectors that show nothing (Default_Ignorable_Code_Point);
        // an empty Braille cell, a note without a head, and what stands for an object.
        '\u{34f}'
        | '\u{115f}'
        | '\u{1160}'
        | '\u{17b4}'
        | '\u{17b5}'
        | '\u{180b}'..='\u{180f}'
        | '\u{2800}'
        | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffd}'
        | '\u{1d159}'
        | '\u{e0000}'..='\u{e0fff}' => false,
        _ => matches!(character.general_category_group(), Letter | Mark | Number | Punctuation | Symbol),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    const BAD: Result<(), u32> = Err(codes::BAD_NAME);

    /// Relative and canonical names only.
    #[test]
    fn names() {
        for right in [
            "a",
            "a/b",
            "...",
            "..a/.b",
            "-x",
            "a b",
            "~",
            "ä/日本語.txt",
            "e\u{301}",
            "🙂",
            "हिन्दी",
            "น้ำ",
            "שָׁלוֹם",
            "عربي",
            "か\u{3099}",
            "€ ½ «x» – №…",
            "Ω≈ç√",
        ] {
            assert_eq!(check(right.as_bytes(), false), Ok(()), "{right}");
        }
        for wrong in
            ["", "/", "/a", "a/", "a//b", ".", "..", "a/.", "a/..", "../a", "a/../b", "./a", "a\nb", "\x1b[m"]
        {
            assert_eq!(check(wrong.as_bytes(), false), BAD, "{wrong}");
        }
        assert_eq!(check(b"a\0b", true), BAD);
        assert_eq!(check(&[b'x'; 255], false), Ok(()));
        assert_eq!(check(&[b'x'; 256], false), Err(codes::NAME_TOO_LONG));
        assert_eq!(check(&b"d/".repeat(300)[..599], false), Err(codes::NAME_TOO_LONG));
    }

    /// What turns, hides or is no text is not shown; `allow-all-names` lifts this rule and no other.
    #[test]
    fn characters() {
        for wrong in [
            "\u{202e}",
            "\u{200b}",
            "\u{200f}",
            "\u{2066}",
            "\u{feff}",
            "\u{ad}",
            "\u{a0}",
            "\u{3164}",
            "\u{e000}",
            "\u{2028}",
            "\u{85}",
            "\u{7f}",
            "\u{e0041}",
            "\u{fe0f}",
            "\u{2800}",
            "\u{3000}",
            "\u{34f}",
            "\u{180e}",
            "\u{2000}",
        ] {
            assert_eq!(check(wrong.as_bytes(), false), BAD, "{wrong:?}");
            assert_eq!(check(wrong.as_bytes(), true), Ok(()), "{wrong:?}");
        }
        for wrong in [&b"\xff"[..], b"\xc0\xaf", b"\xed\xa0\x80", b"a\xe2\x80"] {
            assert_eq!(check(wrong, false), BAD);
            assert_eq!(check(wrong, true), Ok(()));
        }
        assert_eq!(check(b"\x01/..", true), BAD);
    }

    /// A link stays below the first component of its own name.
    #[test]
    fn links() {
        let check = |name: &str, target: &str| check_link(name.as_bytes(), target.as_bytes(), false);
        for (name, target) in [
            ("d/l", "x"),
            ("d/l", "./x/./y"),
            ("d/l", "..."),
            ("d/e/l", "../x"),
            ("d/e/f/l", "../../x"),
            ("d/e/l", "./../x"),
        ] {
            assert_eq!(check(name, target), Ok(()), "{name} {target}");
        }
        for (name, target) in [
            ("l", "x"),
            ("d/l", ""),
            ("d/l", "/etc"),
            ("d/l", ".."),
            ("d/l", "../x"),
            ("d/l", "./../x"),
            ("d/l", ".//../x"),
            ("d/e/l", "../../x"),
            ("d/e/l", "x/.."),
            ("d/e/l", "x/../../y"),
        ] {
            assert_eq!(check(name, target), Err(codes::UNSAFE_LINK), "{name} {target}");
        }
        assert_eq!(check("d/l", "\u{202e}"), BAD);
    }

    /// No link that passes leads out, wherever one walks from it.
    #[test]
    fn no_link_that_passes_leads_out() {
        let mut random = Generator::new(14);
        for _ in 0..50_000 {
            let name: std::vec::Vec<&str> = (0..random.below(5) + 1).map(|_| "d").collect();
            let target: std::vec::Vec<&str> =
                (0..random.below(6)).map(|_| *random.pick(&["..", ".", "", "x"])).collect();
            let (name, target) = (name.join("/"), target.join("/"));
            if check_link(name.as_bytes(), target.as_bytes(), false).is_err() {
                continue;
            }
            let mut depth = name.matches('/').count();
            for step in target.split('/') {
                match step {
                    ".." => depth -= 1,
                    "." | "" => {}
                    _ => depth += 1,
                }
                assert!(depth >= 1, "{name} -> {target}");
            }
            assert!(!target.starts_with('/'));
        }
    }

    /// A drop box takes plain names with the right end.
    #[test]
    fn flat_names() {
        let suffixes = [&b".rpm"[..], b".deb"];
        for right in ["a.rpm", "gcc-c++-4.8~rc1^x:1%3a.deb"] {
            assert_eq!(check_flat(right.as_bytes(), &suffixes), Ok(()));
        }
        for wrong in
            ["", "a", ".rpm", "-a.rpm", "a/b.rpm", "../a.rpm", "a b.rpm", "ä.rpm", "a.rpm\n", "a.rpm.sh"]
        {
            assert_eq!(check_flat(wrong.as_bytes(), &suffixes), BAD, "{wrong}");
        }
        assert_eq!(check_flat(b"anything", &[]), Ok(()));
    }

    /// Whatever comes in is judged without a panic.
    #[test]
    fn any_bytes_are_survived() {
        let mut random = Generator::new(8);
        for _ in 0..20_000 {
            let length = random.below(40);
            let bytes = random.bytes(length);
            let _ = check(&bytes, false);
            let _ = check_link(b"d/e/l", &bytes, true);
            let _ = check_flat(&bytes, &[b".x"]);
            assert!(!c_text(&bytes).contains(&0));
        }
    }
}
