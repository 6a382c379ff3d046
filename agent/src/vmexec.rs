//! Service `qubes.VMExec`: run the command that the service's argument spells.
//!
//! Parts of the command are joined by `+`; letters, digits, `.` and `_` stand for themselves, `--`
//! for a dash, `-HH` for the byte with that upper-case hexadecimal number.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::io::Errno;

use crate::speak::{Reason, Shown};
use crate::sys::call;
use crate::text::c_string;
use crate::{code, environment, say};

/// The shell's code for a program that is there and cannot be started.
const NOT_STARTED: i32 = 126;

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
    let error = execute(&parts, environment);
    say!("error: cannot run `{}`: {error}", Shown(parts[0].to_bytes()), error = Reason(error));
    if error == Errno::NOENT {
        code::NOT_FOUND
    } else {
        NOT_STARTED
    }
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

/// Run a program, looked for along PATH where its name has no slash.
pub fn execute(command: &[&CStr], environment: &[&CStr]) -> Errno {
    let name = command[0].to_bytes();
    if name.contains(&b'/') || name.is_empty() {
        return try_path(command[0], command, environment);
    }
    let path = environment::get(environment, b"PATH").unwrap_or(environment::PATH);
    let mut worst = Errno::NOENT;
    for directory in path.split(|&byte| byte == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let error = try_path(&c_string(&[directory, b"/", name]), command, environment);
        if error != Errno::NOENT && error != Errno::NOTDIR {
            worst = error;
        }
    }
    worst
}

fn try_path(path: &CStr, command: &[&CStr], environment: &[&CStr]) -> Errno {
    let error = call::execute(path, command, environment);
    if error != Errno::NOEXEC {
        return error;
    }
    let shell = c_string(&[b"/bin/sh"]);
    let mut arguments: Vec<&CStr> = alloc::vec![&shell, path];
    arguments.extend(&command[1..]);
    call::execute(&shell, &arguments, environment)
}

#[cfg(test)]
mod tests {
    use super::*;
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
