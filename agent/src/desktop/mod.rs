//! Programs of this qube by their desktop entries.
//!
//! | name | what |
//! |---|---|
//! | `qubes-desktop-run` | start the program of an entry, by its file or ID |
//! | `qubes-start-app` | service `qubes.StartApp+ID`: the same, by ID only |
//! | `qubes-get-appmenus` | service `qubes.GetAppmenus`: the entries of the qube, for menus elsewhere |
//!
//! The caller chooses among entries and gives no argument; entries are the qube's own files.

pub mod entry;
pub mod exec;
pub mod find;

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fs::{Mode, OFlags};

use crate::desktop::entry::Entry;
use crate::desktop::exec::Fields;
use crate::desktop::find::Id;
use crate::flow;
use crate::speak::{self, Reason, Shown};
use crate::sys::call;
use crate::text::c_string;
use crate::{code, process, program, say};

/// All that a list of entries may be, in bytes.
const LARGEST_LIST: usize = 4 << 20;
/// Programs that show a terminal and run what follows `-e` in it.
const TERMINALS: [&[u8]; 2] = [b"x-terminal-emulator", b"xterm"];
const USAGE: &str = "\
usage: qubes-desktop-run FILE.desktop|ID

Start the program of a desktop entry, and wait until it ends. An ID is the entry's path below
`applications`, with `-` for `/`; `.desktop` at its end may be left out.
";

/// Run under one of the three names, with the arguments after it; the exit code.
pub fn run(name: &[u8], arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    process::occupy_standard_descriptors();
    match (name, arguments) {
        (b"qubes-get-appmenus", _) => list(environment),
        // As the interpreter of a service's file, the file's path comes first.
        (b"qubes-start-app", [_, id]) => start_by_id(id.to_bytes(), true, environment),
        (b"qubes-start-app", _) => wrong("expected the ID of a desktop entry"),
        (_, [word]) if matches!(word.to_bytes(), b"-h" | b"--help") => {
            let _ = flow::write_all(call::standard(1), USAGE.as_bytes());
            0
        }
        (_, [word]) if word.to_bytes().contains(&b'/') => start(word.to_bytes(), false, environment),
        (_, [word]) => start_by_id(word.to_bytes(), false, environment),
        _ => wrong("expected one desktop entry"),
    }
}

fn wrong(text: &str) -> i32 {
    speak::wrong_usage("qubes-desktop-run", text)
}

fn failed(text: &str, path: &[u8]) -> i32 {
    say!("error: {text} `{}`", Shown(path));
    code::FAILURE
}

fn start_by_id(untrusted_id: &[u8], quiet: bool, environment: &[&CStr]) -> i32 {
    let Some(id) = Id::new(untrusted_id) else {
        return failed("this is not the ID of a desktop entry:", untrusted_id);
    };
    match find::by_id(&find::directories(environment), &id) {
        Some(path) => start(&path, quiet, environment),
        None => failed("this qube has no desktop entry", id.as_bytes()),
    }
}

/// Become the program of an entry; returns only on failure.
fn start(path: &[u8], quiet: bool, environment: &[&CStr]) -> i32 {
    let content = match find::read(path) {
        Ok(content) => content,
        Err(error) => {
            say!("error: cannot read `{}`: {error}", Shown(path), error = Reason(error));
            return code::FAILURE;
        }
    };
    let Some(entry) = Entry::parse(&content).filter(Entry::is_program) else {
        return failed("this is not the desktop entry of a program:", path);
    };
    if !is_installed(&entry, environment) {
        return failed("the program is not installed that is needed by", path);
    }
    let (name, icon) = (entry.text(b"Name").unwrap_or_default(), entry.text(b"Icon").unwrap_or_default());
    let fields = Fields { name: &name, icon: &icon, path };
    let Ok(mut command) = exec::arguments(&entry.text(b"Exec").unwrap_or_default(), &fields) else {
        return failed("key `Exec` is no command in", path);
    };
    if entry.says(b"Terminal") && !rustix::termios::isatty(call::standard(1)) {
        let Some(terminal) = program::first_installed(&TERMINALS, environment) else {
            say!("error: the program needs a terminal, and this qube has no terminal emulator");
            return code::FAILURE;
        };
        command.splice(0..0, [terminal.to_vec(), b"-e".to_vec()]);
    }
    if let Some(directory) = entry.text(b"Path").filter(|directory| !directory.is_empty()) {
        if rustix::process::chdir(c_string(&[&directory])).is_err() {
            return failed("cannot go to the directory that is named in", path);
        }
    }
    if quiet && silence().is_err() {
        say!("error: cannot open `/dev/null`");
        return code::FAILURE;
    }
    let command: Vec<CString> = command.iter().map(|word| c_string(&[word])).collect();
    let command: Vec<&CStr> = command.iter().map(CString::as_c_str).collect();
    program::become_or_exit(&command, environment)
}

/// The caller of a service neither feeds the program nor hears it.
fn silence() -> rustix::io::Result<()> {
    let null = rustix::fs::open(&b"/dev/null"[..], OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)
}

fn is_installed(entry: &Entry<'_>, environment: &[&CStr]) -> bool {
    entry.text(b"TryExec").map_or(true, |name| program::installed(&name, environment))
}

/// Print the entries that a menu shows, as lines `FILE.desktop:Key=Value`.
fn list(environment: &[&CStr]) -> i32 {
    let mut lines = Vec::new();
    for (id, path) in find::all(&find::directories(environment)) {
        let Ok(content) = find::read(&path) else { continue };
        let Some(entry) = Entry::parse(&content) else { continue };
        if is_shown(&entry) && is_installed(&entry, environment) {
            describe(&id, &entry, &mut lines);
        }
        if lines.len() > LARGEST_LIST {
            say!("error: the desktop entries of this qube are more than {LARGEST_LIST} bytes");
            return code::FAILURE;
        }
    }
    match flow::write_all(call::standard(1), &lines) {
        Ok(()) => 0,
        Err(_) => code::FAILURE,
    }
}

/// True for what has a place in a menu. The menu is that of another system: entries that are for one
/// desktop environment only have none there.
fn is_shown(entry: &Entry<'_>) -> bool {
    entry.is_program() && !entry.says(b"NoDisplay") && entry.get(b"OnlyShowIn").map_or(true, <[u8]>::is_empty)
}

/// Control characters, and what some readers take for the end of a line: the next would be forged.
fn ends_a_line(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}' | '\u{2029}')
}

fn describe(id: &Id, entry: &Entry<'_>, lines: &mut Vec<u8>) {
    let file = [id.as_bytes(), b".desktop"].concat();
    for (key, value) in entry.keys() {
        if key == b"Exec" {
            lines.extend([&file[..], b":Exec=qubes-desktop-run ", &file, b"\n"].concat());
        } else if core::str::from_utf8(value).is_ok_and(|text| !text.chars().any(ends_a_line)) {
            lines.extend([&file[..], b":", key, b"=", value, b"\n"].concat());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The list says how to start an entry, never its own command, and shows no control character.
    #[test]
    fn lines_of_a_list() {
        let content =
            b"[Desktop Entry]\nType=Application\nName=N\nExec=evil --x\nComment=a\x1b[31m\nIcon=i\n\
            GenericName=a\xe2\x80\xa8x.desktop:Exec=y\nKeywords=a\xe2\x80\xa9\nX-A=\xc2\x85b\n";
        let entry = Entry::parse(content).unwrap();
        let mut lines = Vec::new();
        describe(&Id::new(b"kde-n").unwrap(), &entry, &mut lines);
        assert_eq!(
            String::from_utf8(lines).unwrap(),
            "kde-n.desktop:Type=Application\nkde-n.desktop:Name=N\n\
             kde-n.desktop:Exec=qubes-desktop-run kde-n.desktop\nkde-n.desktop:Icon=i\n"
        );
    }

    /// Hidden entries and those for one desktop environment are not in the list.
    #[test]
    fn what_is_shown() {
        let shown = |more: &str| {
            let content = std::format!("[Desktop Entry]\nType=Application\nExec=x\n{more}\n");
            is_shown(&Entry::parse(content.as_bytes()).unwrap())
        };
        assert!(shown("") && shown("NoDisplay=false") && shown("NotShowIn=KDE;"));
        assert!(!shown("NoDisplay=true") && !shown("Hidden=true") && !shown("OnlyShowIn=GNOME;"));
    }
}
