//! Service `qubes.VMExec`: run the command that the service's argument spells.
//!
//! Parts of the command are joined by `+`; letters, digits, `.` and `_` stand for themselves, `--`
//! for a dash, `-HH` for the byte with that upper-case hexadecimal number.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::speak::Shown;
use crate::{code, program, say};

/// Run with the arguments after the program's name; returns only on failure.
pub fn run(arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    // As the interpreter of a service's file (`#!`), the file's path comes first.
    let arguments = match arguments {
        [script, rest @ ..] if script.to_bytes().starts_with(b"/") => rest,
        all => all,
    };
    let encoded = arguments.first().map_or(&b""[..], |text| text.to_bytes());
    let Some(parts) = decode(encoded) else {
        say!("error: `{}` does not spell a command", Shown(encoded));
        return code::FAILURE;
    };
    let parts: Vec<&CStr> = parts.iter().map(CString::as_c_str).collect();
    program::become_or_exit(&parts, environment)
}

/// Decode the argument; at least one part, none with a NUL.
pub fn decode(encoded: &[u8]) -> Option<Vec<CString>> {
    encoded.split(|&byte| byte == b'+').map(decode_part).collect()
}

fn decode_part(mut encoded: &[u8]) -> Option<CString> {
    let mut decoded = Vec::with_capacity(encoded.len());
    loop {
        encoded = match encoded {
            [] => return CString::new(decoded).ok(),
            [b'-', b'-', rest @ ..] => {
                decoded.push(b'-');
                rest
            }
            [b'-', high, low, rest @ ..] => {
                decoded.push((digit(*high)? << 4) | digit(*low)?);
                rest
            }
            [byte @ (b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'.' | b'_'), rest @ ..] => {
                decoded.push(*byte);
                rest
            }
            _ => return None,
        };
    }
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::c_string;
    use crate::text::tests_support::Generator;

    fn encode(parts: &[std::vec::Vec<u8>]) -> std::string::String {
        let part = |part: &std::vec::Vec<u8>| {
            part.iter().fold(std::string::String::new(), |text, &byte| match byte {
                b'-' => text + "--",
                _ if byte.is_ascii_alphanumeric() || b"._".contains(&byte) => {
                    text + &std::string::String::from(byte as char)
                }
                _ => text + &std::format!("-{byte:02X}"),
            })
        };
        parts.iter().map(part).collect::<std::vec::Vec<_>>().join("+")
    }

    /// Every command comes out as it was spelt.
    #[test]
    fn commands_survive_the_round() {
        let mut random = Generator::new(5);
        for _ in 0..5_000 {
            let count = random.below(4) + 1;
            let parts: std::vec::Vec<std::vec::Vec<u8>> = (0..count)
                .map(|_| {
                    let length = random.below(9);
                    random.bytes(length).into_iter().map(|byte| byte.max(1)).collect()
                })
                .collect();
            let decoded = decode(encode(&parts).as_bytes()).unwrap();
            assert!(decoded.iter().map(|part| part.to_bytes()).eq(parts.iter().map(|part| &part[..])));
        }
    }

    /// Anything but the one spelling is refused.
    #[test]
    fn wrong_spellings_are_refused() {
        for wrong in ["-", "a-", "-2", "-2f", "-zz", "a b", "ls+/", "-00", "é", "a-0a"] {
            assert!(decode(wrong.as_bytes()).is_none(), "{wrong}");
        }
        assert_eq!(
            decode(b"ls++--l-2Fx").unwrap(),
            [c_string(&[b"ls"]), c_string(&[]), c_string(&[b"-l/x"])]
        );
    }
}
