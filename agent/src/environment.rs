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
    /// What a service may inherit of `given`: nothing that speaks of another call.
    pub fn inherited(given: &[&CStr]) -> Self {
        const KEPT: [&[u8]; 2] = [b"QREXEC_SERVICE_PATH=", b"QREXEC_AGENT_PID="];
        let of_no_call = |entry: &&&CStr| {
            let entry = entry.to_bytes();
            !entry.starts_with(b"QREXEC") || KEPT.iter().any(|kept| entry.starts_with(kept))
        };
        Self(given.iter().filter(of_no_call).map(|entry| CString::from(*entry)).collect())
    }

    /// Set a variable, in place of one that has its name.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        let is_other = |entry: &CString| {
            let rest = entry.as_bytes().strip_prefix(name);
            !rest.is_some_and(|rest| rest.first() == Some(&b'='))
        };
        self.0.retain(is_other);
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

    /// A variable that is set again has its last value, and only that.
    #[test]
    fn the_last_value_counts() {
        let mut built = Environment::default();
        built.set(b"A", b"1");
        built.set(b"AB", b"2");
        built.set(b"A", b"3");
        let kept = ["AB=2", "A=3"].map(|text| text::c_string(&[text.as_bytes()]));
        assert_eq!(built.0, kept);
    }

    /// Nothing of another call is passed on to a service.
    #[test]
    fn other_calls_stay_behind() {
        let given = [
            "PATH=/bin",
            "QREXEC_REMOTE_DOMAIN=x",
            "QREXECUTE=1",
            "QREXEC_SERVICE_PATH=/a",
            "QREXEC_SERVICE_PATHS=/b",
            "QREXEC_AGENT_PID=1",
            "XQREXEC=1",
            "QREXEC",
        ]
        .map(|text| text::c_string(&[text.as_bytes()]));
        let given: Vec<&CStr> = given.iter().map(CString::as_c_str).collect();
        assert_eq!(Environment::inherited(&given).entries(), [given[0], given[3], given[5], given[6]]);
    }
}
