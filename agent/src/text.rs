//! Small readings of byte strings.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

/// The part after the last slash.
pub fn basename(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}

/// Split at the first `separator`, which is dropped.
pub fn split_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|&byte| byte == separator)?;
    Some((&text[..at], &text[at + 1..]))
}

/// A decimal number: digits only, no sign, no overflow.
pub fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// The directories of a search path; an empty piece names none.
pub fn directories(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b':').filter(|directory| !directory.is_empty())
}

/// Join byte strings into a C string; a NUL inside ends it.
pub fn c_string(parts: &[&[u8]]) -> CString {
    let mut bytes: Vec<u8> = Vec::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>() + 1);
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(end);
    }
    CString::new(bytes).unwrap_or_default()
}

/// A C string that stands in the code; `bytes` end with their only NUL.
pub const fn literal(bytes: &'static [u8]) -> &'static CStr {
    match CStr::from_bytes_with_nul(bytes) {
        Ok(text) => text,
        Err(_) => panic!("a literal ends with its only NUL"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number is digits only and fits.
    #[test]
    fn decimals() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        for wrong in [&b""[..], b"-1", b"+1", b" 1", b"1x", b"18446744073709551616"] {
            assert_eq!(decimal(wrong), None);
        }
    }

    /// Names and pieces.
    #[test]
    fn pieces() {
        assert_eq!(basename(b"/usr/bin/x"), b"x");
        assert_eq!(basename(b"x"), b"x");
        assert_eq!(split_once(b"a:b:c", b':'), Some((&b"a"[..], &b"b:c"[..])));
        assert_eq!(split_once(b"abc", b':'), None);
        assert_eq!(c_string(&[b"a/", b"b\0c"]).as_bytes(), b"a/b");
    }
}

/// What property tests share: a small deterministic source of chance.
#[cfg(test)]
pub mod tests_support {
    /// A linear congruential generator; the high bits are good enough to find mistakes.
    pub struct Generator(u64);

    impl Generator {
        /// The same seed gives the same run.
        pub fn new(seed: u64) -> Self {
            Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
        }

        /// A number below `limit`, 0 where the limit is 0.
        pub fn below(&mut self, limit: usize) -> usize {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) as usize % limit.max(1)
        }

        /// `length` bytes of any value.
        pub fn bytes(&mut self, length: usize) -> std::vec::Vec<u8> {
            (0..length).map(|_| self.below(256) as u8).collect()
        }

        /// One of `choices`.
        pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
            &choices[self.below(choices.len())]
        }
    }
}
