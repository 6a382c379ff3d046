//! Settings of a service: `rpc-config` files, a small part of TOML.

use alloc::string::String;
use alloc::vec::Vec;

use rustix::io::Errno;

use crate::speak::{Reason, Shown};
use crate::text::{self, c_string, split_once};
use crate::users::read_file;

/// Where settings are looked for.
pub const DIRECTORIES: &[u8] = b"/run/qubes/rpc-config:/usr/local/etc/qubes/rpc-config:/etc/qubes/rpc-config";
/// A file name is no longer.
const LONGEST_NAME: usize = 255;

/// What the settings of a service say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RpcConfig {
    /// Run the service as this user, whoever was asked for.
    pub force_user: Option<Vec<u8>>,
    /// Start the service only once the user's session has come up.
    pub wait_for_session: bool,
    /// A socket service is not told its name and its caller.
    pub skip_service_descriptor: bool,
    /// A call of a socket service ends with the caller's input.
    pub exit_on_client_eof: bool,
    /// A call of a socket service ends with the service's output.
    pub exit_on_service_eof: bool,
}

impl RpcConfig {
    /// The settings that a key of two values sets, by that key.
    fn switch(&mut self, key: &[u8]) -> Option<&mut bool> {
        match key {
            b"wait-for-session" => Some(&mut self.wait_for_session),
            b"skip-service-descriptor" => Some(&mut self.skip_service_descriptor),
            b"exit-on-client-eof" => Some(&mut self.exit_on_client_eof),
            b"exit-on-service-eof" => Some(&mut self.exit_on_service_eof),
            _ => None,
        }
    }

    /// Settings for sockets and one for programs cannot all be meant.
    fn is_contradictory(&self) -> bool {
        let of_sockets = self.skip_service_descriptor || self.exit_on_client_eof || self.exit_on_service_eof;
        self.force_user.is_some() && of_sockets
    }
}

/// Why settings are not used.
pub type Problem = String;

enum Value<'a> {
    Bool(bool),
    Integer(&'a [u8]),
    Text(&'a [u8]),
}

/// Find and read the settings of `name` with `argument`; none is fine.
pub fn load(directories: &[u8], name: &[u8], argument: &[u8]) -> Result<RpcConfig, Problem> {
    let specific: [&[u8]; 3] = [name, b"+", argument];
    for file in [&specific[..], &specific[..1]] {
        if file.iter().map(|part| part.len()).sum::<usize>() > LONGEST_NAME {
            continue;
        }
        for directory in text::directories(directories) {
            let path = c_string(&[directory, b"/", &file.concat()]);
            match read_file(path.as_bytes()) {
                Ok(content) => return parse(&content),
                Err(Errno::NOENT) => {}
                Err(error) => {
                    return Err(alloc::format!(
                        "cannot read `{}`: {error}",
                        Shown(path.as_bytes()),
                        error = Reason(error)
                    ));
                }
            }
        }
    }
    Ok(RpcConfig::default())
}

/// Read the text of a settings file.
pub fn parse(content: &[u8]) -> Result<RpcConfig, Problem> {
    let mut config = RpcConfig::default();
    let mut seen: Vec<&[u8]> = Vec::new();
    if content.contains(&0) {
        return Err("settings hold a NUL byte".into());
    }
    for (index, line) in content.split(|&byte| byte == b'\n').enumerate() {
        let problem = |why: &str| alloc::format!("line {} of the service's settings: {why}", index + 1);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line[0] == b'#' || line.iter().all(|byte| b" \t".contains(byte)) {
            continue;
        }
        let (key, value) = split_once(line, b'=').ok_or_else(|| problem("expected `key = value`"))?;
        let key = trim(key, false);
        if !is_key(key) {
            return Err(problem("a key is letters, digits, `.`, `_` and `-`, at the start of the line"));
        }
        let value = read_value(trim(value, true))
            .ok_or_else(|| problem("a value is true, false, a decimal number or a 'single-quoted' text"))?;
        if seen.contains(&key) {
            return Err(problem("the key stands here for the second time"));
        }
        match (value, config.switch(key)) {
            (Value::Bool(given), Some(switch)) => *switch = given,
            (Value::Integer(given @ (b"0" | b"1")), Some(switch)) if key == b"wait-for-session" => {
                *switch = given == b"1";
            }
            (Value::Text(user), None) if key == b"force-user" => config.force_user = Some(user.to_vec()),
            (_, switch) if switch.is_some() || key == b"force-user" => {
                return Err(problem("the value is of the wrong type"));
            }
            // Unknown keys are for others; the caller, another qube, is not told of them.
            _ => continue,
        }
        seen.push(key);
    }
    if config.is_contradictory() {
        return Err("the service's settings force a user and set what only sockets have".into());
    }
    Ok(config)
}

fn is_key(key: &[u8]) -> bool {
    key.first().is_some_and(u8::is_ascii_alphabetic)
        && key.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

fn trim(mut text: &[u8], front: bool) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = text {
        if !front {
            break;
        }
        text = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// Read a value; a comment may follow it.
fn read_value(text: &[u8]) -> Option<Value<'_>> {
    if let Some(rest) = text.strip_prefix(b"'") {
        let (inner, after) = split_once(rest, b'\'')?;
        let after = trim(after, true);
        return (after.is_empty() || after[0] == b'#').then_some(Value::Text(inner));
    }
    let bare = text.split(|&byte| byte == b'#').next().map(|bare| trim(bare, true))?;
    match bare {
        b"true" => Some(Value::Bool(true)),
        b"false" => Some(Value::Bool(false)),
        b"0" => Some(Value::Integer(bare)),
        [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => Some(Value::Integer(bare)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    fn user(text: &str) -> Option<Vec<u8>> {
        parse(text.as_bytes()).unwrap().force_user
    }

    /// The user of a service can be forced; comments and blanks are allowed around.
    #[test]
    fn forced_users() {
        assert_eq!(user("force-user = 'root'\n").unwrap(), b"root");
        assert_eq!(user("# x\n\nforce-user='a b' # why\nwait-for-session = 1\n").unwrap(), b"a b");
        assert_eq!(user("other = 12\nskip-service-descriptor = true # yes\n"), None);
        assert_eq!(user(""), None);
    }

    /// Each key sets its own field, in each spelling of its type.
    #[test]
    fn switches() {
        let read = |text: &str| parse(text.as_bytes()).unwrap();
        let all = read(
            "wait-for-session = 1\nskip-service-descriptor=true\nexit-on-client-eof\t= true # x\n\
             exit-on-service-eof = true",
        );
        let expected = RpcConfig {
            force_user: None,
            wait_for_session: true,
            skip_service_descriptor: true,
            exit_on_client_eof: true,
            exit_on_service_eof: true,
        };
        assert_eq!(all, expected);
        assert!(read("wait-for-session = true\n").wait_for_session);
        for off in ["0", "false"] {
            assert_eq!(read(&alloc::format!("wait-for-session = {off}")), RpcConfig::default());
        }
        assert!(read("exit-on-client-eof = false\nforce-user = 'x'").force_user.is_some());
        assert!(read("wait-for-session = true\nforce-user = 'x'").wait_for_session);
    }

    /// Whatever order settings are in, what a file says twice or in contradiction is refused.
    #[test]
    fn written_settings_are_read_back_or_refused() {
        const KEYS: [&str; 4] =
            ["wait-for-session", "skip-service-descriptor", "exit-on-client-eof", "exit-on-service-eof"];
        let mut random = Generator::new(9);
        for _ in 0..5_000 {
            let (mut text, mut values) = (String::new(), [None; 4]);
            let mut twice = false;
            for _ in 0..random.below(5) {
                let (at, value) = (random.below(4), random.below(2) == 1);
                twice |= values[at].replace(value).is_some();
                let blanks = *random.pick(&["", " ", "\t "]);
                let comment = *random.pick(&["", " # yes", "#"]);
                text += &alloc::format!("{}{blanks}={blanks}{value}{comment}\n", KEYS[at]);
            }
            let forced = random.below(3) == 0;
            if forced {
                text += "force-user='u'\n";
            }
            let [wait, skip, client, service] = values.map(|value| value == Some(true));
            let read = parse(text.as_bytes());
            if twice || forced && (skip || client || service) {
                assert!(read.is_err(), "{text}");
                continue;
            }
            let expected = RpcConfig {
                force_user: forced.then(|| b"u".to_vec()),
                wait_for_session: wait,
                skip_service_descriptor: skip,
                exit_on_client_eof: client,
                exit_on_service_eof: service,
            };
            assert_eq!(read, Ok(expected), "{text}");
        }
    }

    /// What is not the small language is an error, not a guess.
    #[test]
    fn wrong_settings_are_refused() {
        for wrong in [
            "force-user = \"root\"",
            "force-user = root",
            "force-user = 'a' 'b'",
            "[section]",
            " force-user = 'a'",
            "force-user = 'a'\nforce-user = 'b'",
            "wait-for-session = 2",
            "exit-on-client-eof = 1",
            "skip-service-descriptor = 'true'",
            "wait-for-session = true\nwait-for-session = 1",
            "force-user = 'a'\nskip-service-descriptor = true",
            "exit-on-client-eof = true\nforce-user = ''",
            "exit-on-service-eof = true\nforce-user = 'a'",
            "force-user = true",
            "x = 01",
            "x =",
            "= 1",
            "1x = 1",
            "x = '''a'''",
            "x = 'a\nb'",
            "a\0b = 1",
        ] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
    }

    /// No text makes the parser panic.
    #[test]
    fn any_text_is_survived() {
        let mut random = Generator::new(4);
        for _ in 0..20_000 {
            let length = random.below(40);
            let text: Vec<u8> = (0..length).map(|_| *random.pick(b"force-user='\n #1true\t\r\0")).collect();
            let _ = parse(&text);
        }
    }
}
