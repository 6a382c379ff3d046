//! Environment variables: what we were given, and what we give to services.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::text;

/// Where programs are looked for.
pub const PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The value of a variable.
pub fn get<'a>(environment: &[&'a CStr], name: &[u8]) -> Option<&'a [u8]> {
    environment.iter().find_map(|entry| {
        let (found, value) = text::split_once(entry.to_bytes(), b'=')?;
        (found == name).then_some(value)
    })
}

/// An environment under construction.
#[derive(Default)]
pub struct Environment(Vec<CString>);

impl Environment {
    /// Add a variable.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        self.0.push(text::c_string(&[name, b"=", value]));
    }

    /// All entries, as `exec` wants them.
    pub fn entries(&self) -> Vec<&CStr> {
        self.0.iter().map(CString::as_c_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole name counts, the value may hold `=`.
    #[test]
    fn variables() {
        let mut built = Environment::default();
        built.set(b"AB", b"1=2");
        built.set(b"A", b"");
        let entries = built.entries();
        assert_eq!(get(&entries, b"AB"), Some(&b"1=2"[..]));
        assert_eq!(get(&entries, b"A"), Some(&b""[..]));
        assert_eq!(get(&entries, b"B"), None);
    }
}
