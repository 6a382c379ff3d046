//! `qvm-run-vm`: run a shell command in another qube, from a qube.
//!
//! Service `qubes.VMShell` reads a script; our line is the first of it, and what follows is the input
//! of the command.

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::arguments::{Known, Options};
use crate::sys::call;
use crate::text::{c_string, literal};
use crate::{flow, program, speak};

/// A service's name with its argument is no longer (qrexec wire protocol, `MAX_SERVICE_NAME_LEN`).
const LONGEST_SERVICE: usize = 65_000;
/// Longer arguments are refused by the kernel.
const LONGEST_LINE: usize = 128 * 1024 - 1;
const KNOWN: [Known; 6] = [
    Known::flag(0, "dispvm"),
    Known::flag(0, "no-gui"),
    Known::flag(0, "nogui"),
    Known::flag(0, "gui"),
    Known::flag(b'x', "exec"),
    Known::flag(b'h', "help"),
];
const USAGE: &str = "\
usage: qvm-run-vm [OPTIONS] QUBE COMMAND...
       qvm-run-vm [OPTIONS] --dispvm[=TEMPLATE] COMMAND...

Run a shell command in another qube. Its input and output are this program's.
The words of COMMAND are joined by blanks; the other qube's shell reads the line.

  --dispvm[=TEMPLATE]   in a new disposable, of this template for disposables
  --no-gui              do not wait until the other qube's session is ready
  -x, --exec            run a program with exactly these arguments, without a shell
  -h, --help            show this

Exit code: that of the command. 126 the call was refused, 127 there is no such program or service.
";

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    target: Vec<u8>,
    service: Vec<u8>,
    /// Sent before our own input.
    line: Vec<u8>,
}

/// Run with the arguments after the program's name; the exit code.
pub fn run(arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    let wish = match wish(arguments) {
        Ok(Some(wish)) => wish,
        Ok(None) => {
            let _ = flow::write_all(call::standard(1), USAGE.as_bytes());
            return 0;
        }
        Err(text) => return speak::wrong_usage("qvm-run-vm", &text),
    };
    let line = c_string(&[b"--prefix-data=", &wish.line]);
    let (target, service) = (c_string(&[&wish.target]), c_string(&[&wish.service]));
    let mut command = alloc::vec![literal(b"qrexec-client-vm\0")];
    if !wish.line.is_empty() {
        command.push(&line);
    }
    command.extend([literal(b"--\0"), &target, &service]);
    program::become_or_exit(&command, environment)
}

fn wish(arguments: &[&'static CStr]) -> Result<Option<Wish>, String> {
    let (arguments, disposable) = without_dispvm(arguments);
    let mut options = Options::new(&KNOWN, &arguments);
    let (mut gui, mut exact, mut fresh) = (true, false, disposable);
    while let Some((name, _)) = options.take()? {
        match name {
            "dispvm" => fresh = Some(b""),
            "no-gui" | "nogui" => gui = false,
            "gui" => gui = true,
            "exec" => exact = true,
            _ => return Ok(None),
        }
    }
    let (target, words) = match (fresh, options.operands()) {
        (Some(b""), words) => (b"@dispvm".to_vec(), words),
        (Some(template), words) => ([b"@dispvm:", template].concat(), words),
        (None, [target, words @ ..]) => (target.to_bytes().to_vec(), words),
        (None, []) => return Err("expected a qube and a command".into()),
    };
    if words.is_empty() {
        return Err("expected a command".into());
    }
    let words: Vec<&[u8]> = words.iter().map(|word| word.to_bytes()).collect();
    let (service, line) = if exact {
        (exact_service(&words, gui), Vec::new())
    } else {
        let service: &[u8] = if gui { b"qubes.VMShell+WaitForSession" } else { b"qubes.VMShell" };
        (service.to_vec(), shell_line(&words.join(&b' ')))
    };
    if service.len() > LONGEST_SERVICE || line.len() > LONGEST_LINE {
        return Err("the command is too long".into());
    }
    Ok(Some(Wish { target, service, line }))
}

/// Take `--dispvm=TEMPLATE` out of the options: it is the one whose value may be missing.
fn without_dispvm(arguments: &[&'static CStr]) -> (Vec<&'static CStr>, Option<&'static [u8]>) {
    let options = arguments.iter().take_while(|word| word.to_bytes().starts_with(b"-")).count();
    let options = arguments[..options].iter().position(|word| word.to_bytes() == b"--").unwrap_or(options);
    let mut template = None;
    let mut rest = Vec::with_capacity(arguments.len());
    for (at, word) in arguments.iter().enumerate() {
        match word.to_bytes().strip_prefix(b"--dispvm=") {
            Some(value) if at < options => template = Some(value),
            _ => rest.push(*word),
        }
    }
    (rest, template)
}

/// The one line that makes the service's shell run `command` and nothing else, with the rest of the
/// input as the command's own.
fn shell_line(command: &[u8]) -> Vec<u8> {
    let mut line = b"exec bash -c '".to_vec();
    for &byte in command {
        match byte {
            b'\'' => line.extend_from_slice(b"'\\''"),
            byte => line.push(byte),
        }
    }
    line.extend_from_slice(b"' || exit 127\n");
    line
}

/// Service `qubes.VMExec` with the command spelt in its argument; see `vmexec`.
fn exact_service(words: &[&[u8]], gui: bool) -> Vec<u8> {
    let mut service: Vec<u8> = if gui { b"qubes.VMExecGUI".to_vec() } else { b"qubes.VMExec".to_vec() };
    for word in words {
        service.push(b'+');
        for &byte in *word {
            match byte {
                b'-' => service.extend_from_slice(b"--"),
                b'.' | b'_' => service.push(byte),
                byte if byte.is_ascii_alphanumeric() => service.push(byte),
                byte => service.extend_from_slice(alloc::format!("-{byte:02X}").as_bytes()),
            }
        }
    }
    service
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;
    use alloc::ffi::CString;
    use std::process::Command;

    fn read(words: &[&[u8]]) -> Result<Option<Wish>, String> {
        let words: Vec<CString> = words.iter().map(|word| c_string(&[word])).collect();
        let leaked: &'static [CString] = words.leak();
        let arguments: Vec<&'static CStr> = leaked.iter().map(CString::as_c_str).collect();
        wish(&arguments)
    }

    fn asked(target: &str, service: &str, line: &str) -> Result<Option<Wish>, String> {
        Ok(Some(Wish { target: target.into(), service: service.into(), line: line.into() }))
    }

    /// The spellings that people and scripts use.
    #[test]
    fn spellings() {
        let line = "exec bash -c 'ls -l' || exit 127\n";
        assert_eq!(read(&[b"work", b"ls", b"-l"]), asked("work", "qubes.VMShell+WaitForSession", line));
        assert_eq!(read(&[b"--no-gui", b"work", b"ls -l"]), asked("work", "qubes.VMShell", line));
        assert_eq!(read(&[b"--nogui", b"--dispvm", b"ls -l"]), asked("@dispvm", "qubes.VMShell", line));
        assert_eq!(
            read(&[b"--dispvm=offline", b"--no-gui", b"--", b"ls", b"-l"]),
            asked("@dispvm:offline", "qubes.VMShell", line)
        );
        assert_eq!(
            read(&[b"-x", b"work", b"--dispvm=x", b"a b"]),
            asked("work", "qubes.VMExecGUI+----dispvm-3Dx+a-20b", "")
        );
        assert_eq!(read(&[b"--help"]), Ok(None));
        for wrong in [&[][..], &[&b"work"[..]], &[b"--dispvm"], &[b"--wrong", b"work", b"ls"]] {
            assert!(read(wrong).is_err());
        }
        assert!(read(&[b"work", &[b'x'; LONGEST_LINE]]).is_err());
    }

    /// Whatever bytes a command has, the shell runs it as one word, and nothing beside it (QSB-038).
    #[test]
    fn any_command_reaches_the_shell_whole() {
        let mut random = Generator::new(41);
        for _ in 0..40 {
            let length = random.below(60);
            let hard = b"'\"\\$`\n !;&|<>()*?[]#~\x1b\xff\xc3ab";
            let word: Vec<u8> = (0..length).map(|_| *random.pick(hard)).collect();
            let line = shell_line(&word);
            // `bash -c` of the line is replaced by something that prints its words.
            let text =
                [&b"bash() { printf '<%s>' \"$@\"; }; "[..], line.strip_prefix(b"exec ").unwrap()].concat();
            let text = <std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(text);
            let output = Command::new("/bin/sh").arg("-c").arg(text).output().unwrap();
            assert_eq!(output.stdout, [b"<-c><", &word[..], b">"].concat());
        }
    }

    /// What is spelt here is what `qubes.VMExec` reads.
    #[test]
    fn exact_commands_survive_the_round() {
        let mut random = Generator::new(42);
        for _ in 0..2_000 {
            let words: Vec<Vec<u8>> = (0..random.below(4) + 1)
                .map(|_| {
                    let length = random.below(9);
                    random.bytes(length).into_iter().map(|byte| byte.max(1)).collect()
                })
                .collect();
            let borrowed: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            let decoded = exact_service(&borrowed, false);
            let decoded = crate::vmexec::decode(&decoded[b"qubes.VMExec+".len()..]).unwrap();
            assert!(decoded.iter().map(|word| word.to_bytes()).eq(borrowed));
        }
    }
}
