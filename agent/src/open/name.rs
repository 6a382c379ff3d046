//! The first 256 bytes of service `qubes.OpenInVM`: the file's name, padded with NUL.

use alloc::vec::Vec;

/// Bytes of the field.
pub const FIELD: usize = 256;
/// A name that begins so asks for a file that is only looked at.
const VIEW_ONLY: &[u8] = b"view-only-";

/// Why a name is not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The field has no NUL, so the name's end is unknown.
    Endless,
    /// There is no name.
    Empty,
    /// The name would lead out of its directory.
    Slash,
}

/// What a caller asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// A name of letters, digits and `._+@-` that begins with neither `.` nor `-`.
    pub name: Vec<u8>,
    /// The file is looked at and nothing goes back.
    pub view_only: bool,
}

/// Spell the field. A long name keeps its end, which tells the kind of file.
///
/// What follows the name is zero: no byte of our memory goes out with it (QSB-009).
pub fn encode(name: &[u8], view_only: bool) -> [u8; FIELD] {
    let prefix = match (view_only, name.starts_with(VIEW_ONLY)) {
        (true, _) => VIEW_ONLY,
        // The receiver would take this name for the wish to look only.
        (false, true) => b"_",
        (false, false) => b"",
    };
    let kept = &name[name.len().saturating_sub(FIELD - 1 - prefix.len())..];
    let mut field = [0; FIELD];
    field[..prefix.len()].copy_from_slice(prefix);
    field[prefix.len()..prefix.len() + kept.len()].copy_from_slice(kept);
    field
}

/// Read the field.
pub fn decode(untrusted_field: &[u8; FIELD]) -> Result<Wanted, Wrong> {
    let end = untrusted_field.iter().position(|&byte| byte == 0).ok_or(Wrong::Endless)?;
    let untrusted_name = &untrusted_field[..end];
    let (untrusted_name, view_only) = match untrusted_name.strip_prefix(VIEW_ONLY) {
        Some(rest) => (rest, true),
        None => (untrusted_name, false),
    };
    if untrusted_name.is_empty() {
        return Err(Wrong::Empty);
    }
    if untrusted_name.contains(&b'/') {
        return Err(Wrong::Slash);
    }
    let mut name = harmless(untrusted_name);
    // Neither `.`, `..` nor a hidden file, nor an option to a program that is given the bare name.
    if let first @ (b'.' | b'-') = &mut name[0] {
        *first = b'_';
    }
    Ok(Wanted { name, view_only })
}

/// Replace every byte but letters, digits and `._+@-` by `_`.
pub fn harmless(untrusted_text: &[u8]) -> Vec<u8> {
    let kept = |&byte: &u8| byte.is_ascii_alphanumeric() || b"._+@-".contains(&byte);
    untrusted_text.iter().map(|byte| if kept(byte) { *byte } else { b'_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    fn round(name: &[u8], view_only: bool) -> Result<Wanted, Wrong> {
        decode(&encode(name, view_only))
    }

    fn edited(name: &[u8]) -> Wanted {
        Wanted { name: name.to_vec(), view_only: false }
    }

    /// The field is the name and zeros, whatever the name: no stray memory goes out (QSB-009).
    #[test]
    fn padding_is_zero() {
        let mut random = Generator::new(21);
        for _ in 0..2_000 {
            let length = random.below(300);
            let name: Vec<u8> = random.bytes(length).into_iter().map(|byte| byte.max(1)).collect();
            let view_only = random.below(2) == 1;
            let field = encode(&name, view_only);
            let end = field.iter().position(|&byte| byte == 0).unwrap();
            assert!(field[end..].iter().all(|&byte| byte == 0));
            assert!(field[..end].ends_with(&name[name.len().saturating_sub(end.saturating_sub(10))..]));
        }
    }

    /// A long name keeps its end, with and without the wish to look only.
    #[test]
    fn long_names_keep_their_end() {
        let long = [&[b'x'; 400][..], b".pdf"].concat();
        let whole = round(&long, false).unwrap().name;
        assert_eq!((whole.len(), &whole[whole.len() - 4..]), (255, &b".pdf"[..]));
        let viewed = round(&long, true).unwrap();
        assert_eq!((viewed.name.len(), viewed.view_only), (245, true));
        assert!(viewed.name.ends_with(b".pdf"));
    }

    /// A file that is called like the wish is not one.
    #[test]
    fn the_wish_cannot_be_a_name() {
        assert_eq!(round(b"view-only-a", false), Ok(edited(b"_view-only-a")));
        assert_eq!(round(b"a", true), Ok(Wanted { name: b"a".to_vec(), view_only: true }));
    }

    /// Escape sequences, blanks and options in names become underscores (QSB-087, QSB-071).
    #[test]
    fn names_are_harmless() {
        assert_eq!(round(b"a b\x1b[31m\xe2\x80\xaex.txt", false), Ok(edited(b"a_b__31m___x.txt")));
        assert_eq!(round(b"--exec=x", false), Ok(edited(b"_-exec_x")));
        assert_eq!(round(b"..", false), Ok(edited(b"_.")));
        assert_eq!(round(b"Az0._+@-", false), Ok(edited(b"Az0._+@-")));
    }

    /// What is no name is refused.
    #[test]
    fn wrong_fields_are_refused() {
        assert_eq!(round(b"", false), Err(Wrong::Empty));
        assert_eq!(round(b"", true), Err(Wrong::Empty));
        assert_eq!(round(b"../.ssh/id", false), Err(Wrong::Slash));
        assert_eq!(decode(&[b'a'; FIELD]), Err(Wrong::Endless));
    }

    /// No field leads to a name that is anything but harmless.
    #[test]
    fn any_field_is_survived() {
        let mut random = Generator::new(22);
        for _ in 0..20_000 {
            let field: [u8; FIELD] = core::array::from_fn(|_| *random.pick(b"ab./-\0\x1b view-only-"));
            if let Ok(Wanted { name, .. }) = decode(&field) {
                assert!(!name.is_empty() && name[0] != b'.' && name[0] != b'-');
                assert_eq!(harmless(&name), name);
            }
        }
    }
}
