//! What is fuzzed: each target takes any bytes, and panics where a promise does not hold.
//!
//! `fuzz/fuzz_targets` hands the inputs of a fuzzer to these functions; the test below hands them
//! the kept ones. Built for these two only.

use alloc::vec::Vec;

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType};

use crate::link::{Link, Peer, Process, Rules, Sink, Source, Stream};
use crate::message::{ToAgent, ToClient};
use crate::qfile;
use crate::relay::End;
use crate::rpc_config;
use crate::service::command::{self, Requested, Work};
use crate::service::tcp::{self, Host};
use crate::sys::call;
use crate::tar;
use crate::users;
use crate::wire::{self, ExecParams, Header, Ident, Kind, Receiver, Trigger, Version, Way, HEADER};

/// A target.
pub type Target = fn(&[u8]);

/// All targets, by the names of their corpora.
pub const TARGETS: [(&str, Target); 10] = [
    ("command", command_line),
    ("link", data_link),
    ("local_message", local_message),
    ("link_rules", link_rules),
    ("qfile", qfile_headers),
    ("rpc_config", settings),
    ("tar", archives),
    ("tcp", tcp_service),
    ("users", user_files),
    ("wire", wire_messages),
];

/// Read a number from the front: the choices of a target before its bytes.
fn choice(data: &mut &[u8]) -> u8 {
    let Some((first, rest)) = data.split_first() else {
        return 0;
    };
    *data = rest;
    *first
}

/// The text of a call: its pieces are those of the text, and hold nothing that separates.
pub fn command_line(data: &[u8]) {
    let Ok((user, work)) = command::parse(data) else {
        return;
    };
    assert!(!user.contains(&b':'));
    let rest = &data[user.len() + 1..];
    match work {
        Work::Command(line) => {
            let bare = rest.strip_prefix(b"nogui:").unwrap_or(rest);
            assert_eq!(line, bare);
            assert!(!line.starts_with(b"QUBESRPC"));
        }
        Work::Service(request) => {
            let prefix: &[u8] = if request.with_session { b"QUBESRPC " } else { b"nogui:QUBESRPC " };
            let spelled = [prefix, request.descriptor, b" ", request.source, request.rest].concat();
            assert_eq!(spelled, rest);
            assert!(request.name().len() <= 255 && !request.name().is_empty());
            let words = [request.descriptor, request.source];
            assert!(words.iter().all(|word| word.iter().all(|byte| *byte > b' ' && *byte != 0x7f)));
            assert!(!request.descriptor.contains(&b'/'));
            if let Ok(Requested::Name(word) | Requested::Keyword(word)) = request.requested() {
                assert!(!word.is_empty() && word.iter().all(|byte| *byte > b' '));
            }
        }
    }
}

/// Messages between the broker, agents and clients.
pub fn local_message(data: &[u8]) {
    if let Ok(ToAgent::Service { user, descriptor, source, .. }) = ToAgent::parse(data) {
        assert!(![user, descriptor, source].iter().any(|field| field.contains(&0)));
    }
    match ToClient::parse(data) {
        Ok(ToClient::Ended(code) | ToClient::Failed { code, .. }) => assert!((0..=255).contains(&code)),
        Ok(ToClient::Accepted) => assert_eq!(data, b"A"),
        Ok(ToClient::Refused) | Err(_) => {}
    }
}

/// The settings of a service.
pub fn settings(data: &[u8]) {
    let Ok(config) = rpc_config::parse(data) else {
        return;
    };
    let of_sockets =
        config.skip_service_descriptor || config.exit_on_client_eof || config.exit_on_service_eof;
    assert!(config.force_user.is_none() || !of_sockets);
    if let Some(user) = config.force_user {
        assert!(!user.iter().any(|byte| b"'\n\0".contains(byte)));
    }
}

/// Where a TCP service leads: the text of its link, a line break, the argument.
pub fn tcp_service(data: &[u8]) {
    let end = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    let (link, argument) = (&data[..end], data.get(end + 1..).unwrap_or(b""));
    let Ok(place) = tcp::place(link, argument) else {
        return;
    };
    assert!(tcp::is_tcp(link) && place.port > 0);
    // What is connected to is spelled out in what was given.
    let port = alloc::format!("{}", place.port);
    assert!(link.ends_with(port.as_bytes()) || argument.ends_with(port.as_bytes()));
    if let Host::V4([a, b, c, d]) = place.host {
        let host = alloc::format!("{a}.{b}.{c}.{d}");
        let holds = |text: &[u8]| text.windows(host.len()).any(|piece| piece == host.as_bytes());
        assert!(holds(link) || holds(argument));
    }
}

/// `/etc/passwd` and `/etc/group`, as a hostile root writes them.
pub fn user_files(data: &[u8]) {
    let end = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
    let (passwd, group) = (&data[..end], data.get(end + 1..).unwrap_or(b""));
    for name in [&b"user"[..], b"root", b""] {
        if let Some(user) = users::find(passwd, name) {
            assert!(user.name == name && !name.is_empty() && user.uid != u32::MAX);
            let groups = users::groups(group, &user);
            assert_eq!(groups[0], user.gid);
            assert!(groups.len() <= 256);
        }
    }
    let _ = users::find_id(passwd, 0);
}

/// Headers and names of a stream of files.
pub fn qfile_headers(data: &[u8]) {
    if let Ok(header) = <[u8; qfile::wire::HEADER]>::try_from(data.get(..qfile::wire::HEADER).unwrap_or(b""))
    {
        if let qfile::wire::Next::Entry(found) = qfile::wire::Next::parse(&header) {
            assert!(found.name_length > 0 && found.name_length < qfile::wire::LONGEST_NAME);
            assert_eq!(found.encode(), header);
        }
        let name = &data[header.len()..];
        for all_characters in [false, true] {
            if qfile::names::check(name, all_characters).is_ok() {
                let climbs = |part: &[u8]| part.is_empty() || part == b"." || part == b"..";
                assert!(!name.is_empty() && !name.split(|&byte| byte == b'/').any(climbs));
                assert!(!name.contains(&0));
                assert!(all_characters || !name.iter().any(|byte| *byte < b' ' || *byte == 0x7f));
            }
            let half = name.len() / 2;
            let (name, target) = name.split_at(half);
            if qfile::names::check_link(name, target, all_characters).is_ok() {
                let depth = name.split(|&byte| byte == b'/').count();
                let up = target.split(|&byte| byte == b'/').filter(|part| *part == b"..").count();
                assert!(!target.starts_with(b"/") && up + 2 <= depth);
            }
        }
    }
    if let Ok(result) = <[u8; qfile::wire::RESULT]>::try_from(data.get(..qfile::wire::RESULT).unwrap_or(b""))
    {
        let _ = qfile::wire::Outcome::parse(&result).is_success(0);
    }
}

/// A stream of bytes as messages of every kind of link.
pub fn wire_messages(mut data: &[u8]) {
    let way = Way::SAMPLES[usize::from(choice(&mut data)) % Way::SAMPLES.len()];
    let step = usize::from(choice(&mut data)).max(1);
    let mut receiver = Receiver::new(way);
    let mut whole = Vec::new();
    let mut rest = data;
    while !rest.is_empty() {
        assert!(receiver.wanted() > 0);
        let count = step.min(rest.len()).min(receiver.wanted());
        match receiver.take(&rest[..count]) {
            Err(_) => return,
            Ok(None) => {}
            Ok(Some((kind, body))) => {
                let header = Header { kind, length: body.len() as u32 };
                whole.extend_from_slice(&header.bytes());
                whole.extend_from_slice(&body);
                // What was taken apart is what came, byte by byte.
                assert!(data.starts_with(&whole));
                read_body(kind, &body);
            }
        }
        rest = &rest[count..];
    }
}

fn read_body(kind: Kind, body: &[u8]) {
    let message = |made: Option<Vec<u8>>| made.map(|made| made[HEADER..].to_vec());
    match kind {
        Kind::Hello => {
            let version = wire::parse_hello(body).map(Version::negotiate);
            assert!(!matches!(version, Ok(Ok(version)) if version.number() > 4));
        }
        Kind::ExecCmdline | Kind::JustExec => {
            if let Ok((params, line)) = wire::parse_command(body) {
                assert!(!line.contains(&0));
                let made = message(wire::command(false, params, line));
                let again = made.map(|made| wire::parse_command(&made).map(|(p, l)| (p, l.to_vec())));
                assert!(again.map_or(true, |again| again == Ok((params, line.to_vec()))));
            }
        }
        Kind::ServiceConnect => {
            if let Ok((params, ident)) = wire::parse_connect(body) {
                let made = wire::connect(params, &ident);
                assert_eq!(wire::parse_connect(&made[HEADER..]), Ok((params, ident)));
                let _ = ident.client();
            }
        }
        Kind::ServiceRefused => {
            let ident = <[u8; Ident::SIZE]>::try_from(body).ok().and_then(|bytes| Ident::parse(&bytes));
            assert!(ident.map_or(true, |ident| ident.bytes() == body));
        }
        Kind::TriggerService | Kind::TriggerService3 | Kind::TriggerService4 => {
            if let Ok(trigger) = Trigger::parse(kind, body) {
                assert!(!trigger.service.is_empty() && trigger.target.len() < 64);
                let texts = [trigger.source, trigger.target, trigger.service];
                assert!(texts.iter().all(|text| !text.contains(&0)));
                let made = message(trigger.message());
                assert!(made.is_some_and(|made| Trigger::parse(Kind::TriggerService4, &made) == Ok(trigger)));
            }
        }
        Kind::ExitCode => {
            let _ = wire::parse_exit_code(body);
        }
        Kind::ConnectionTerminated => {
            let params = ExecParams::split(body);
            assert!(params.is_some_and(|(params, _)| wire::terminated(params)[HEADER..] == *body));
        }
        Kind::Stdin | Kind::Stdout | Kind::Stderr => {}
    }
}

/// The rules of a data link under any order of events: it says nothing after its code, and ends.
pub fn link_rules(mut data: &[u8]) {
    use crate::link::{Due, Side};
    let mut rules = match choice(&mut data) % 4 {
        0 => Rules::of_service(),
        1 => Rules::of_started_service(7),
        2 => Rules::of_caller(false),
        _ => Rules::of_caller(true),
    };
    const STREAMS: [Stream; 3] = [Stream::Input, Stream::Output, Stream::Errors];
    const KINDS: [Kind; 5] = [Kind::Stdin, Kind::Stdout, Kind::Stderr, Kind::ExitCode, Kind::Hello];
    let mut told_code = false;
    while !data.is_empty() {
        let (event, detail) = (choice(&mut data), choice(&mut data));
        let stream = STREAMS[usize::from(detail) % STREAMS.len()];
        match event % 7 {
            0 => rules.ended(stream),
            1 => rules.unread(stream),
            2 => rules.exited(i32::from(detail)),
            3 => {
                let kind = KINDS[usize::from(detail) % KINDS.len()];
                let _ = rules.hear(kind, u32::from(detail) / 8);
            }
            4 => rules.hear_code(i32::from(detail)),
            5 => rules.peer_gone(),
            _ => {}
        }
        while let Some(due) = rules.due() {
            assert!(!told_code, "something is said after the exit code");
            told_code = matches!(due, Due::Code(_));
            assert!(!told_code || rules.side() == Side::Service);
        }
        for stream in STREAMS {
            assert!(!told_code || !rules.says(stream));
        }
    }
    rules.peer_gone();
    rules.exited(1);
    while rules.due().is_some() {}
    assert!(rules.ending().is_some(), "a link whose peer and process are gone goes on: {rules:?}");
}

/// A whole data link whose peer says these bytes after a right HELLO, and hangs up.
pub fn data_link(mut data: &[u8]) {
    call::ignore_broken_pipes();
    let side = choice(&mut data);
    let version = 2 + u32::from(side / 2 % 3);
    let pair =
        || rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let (Ok((ours, theirs)), Ok((said, heard))) = (pair(), pair()) else {
        return;
    };
    let hello = [&Header { kind: Kind::Hello, length: 4 }.bytes()[..], &version.to_le_bytes()].concat();
    let most = 60_000;
    let bytes = [&hello, &data[..data.len().min(most)]].concat();
    if rustix::io::write(&theirs, &bytes) != Ok(bytes.len()) {
        return;
    }
    let _ = rustix::net::shutdown(&theirs, Shutdown::Write);
    let own =
        |fd: &OwnedFd| End::Pipe(rustix::io::fcntl_dupfd_cloexec(fd, fd.as_raw_fd()).expect("a descriptor"));
    let until = call::milliseconds() + 1000;
    let Ok(peer) = Peer::open(ours, until) else {
        panic!("a right HELLO is refused");
    };
    let caller = side % 2 == 0;
    let rules = if caller { Rules::of_caller(false) } else { Rules::of_service() };
    let mut link = Link::new(rules, peer);
    let _ = rustix::io::write(&heard, b"something to say");
    let _ = rustix::net::shutdown(&heard, Shutdown::Write);
    let source = Source::new(own(&said));
    if caller {
        link.sources.push((Stream::Input, source));
        link.sinks.push((Stream::Output, Sink::filtered(own(&said), side & 64 != 0)));
        link.sinks.push((Stream::Errors, Sink::new(own(&said))));
    } else {
        link.sources.push((Stream::Output, source));
        link.rules.ended(Stream::Errors);
        link.sinks.push((Stream::Input, Sink::new(own(&said))));
        link.process = Process::None;
        link.rules.exited(3);
    }
    drop(said);
    let code = link.run();
    drop(theirs);
    assert!(caller || code == 3 || code == crate::code::LOST || code == crate::code::FAILURE);
}

/// Blocks of an archive, as they come and with the checksum that lets them in; records in pax.
pub fn archives(data: &[u8]) {
    if let Ok(mut block) = <[u8; tar::header::BLOCK]>::try_from(data.get(..tar::header::BLOCK).unwrap_or(b""))
    {
        let _ = tar::header::parse(&block);
        tar::header::seal(&mut block);
        if let tar::header::Block::Header(found) = tar::header::parse(&block) {
            assert!(found.mode <= 0o7777);
            assert!(found.name.len() <= 256 && !found.name.contains(&0));
            assert!(found.target.len() <= 100 && !found.target.contains(&0));
        }
    }
    if let Some(found) = tar::records::parse(data) {
        assert!(found.modified.map_or(true, |(_, nanoseconds)| nanoseconds < 1_000_000_000));
        let longest = found.name.iter().chain(&found.target).map(|text| text.len()).max();
        assert!(longest.unwrap_or(0) <= data.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    const MOST_FILES: usize = 600;
    const MOST_BYTES: u64 = 1 << 20;

    /// Inputs that fuzzing once found worth keeping panic nowhere; they are few and small.
    #[test]
    fn kept_inputs_hold_every_promise() {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let (mut files, mut bytes) = (0, 0);
        for (name, target) in TARGETS {
            let mut inputs: Vec<_> =
                fs::read_dir(kept.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(!inputs.is_empty(), "{name}");
            inputs.sort();
            for path in inputs {
                let input = fs::read(&path).unwrap();
                files += 1;
                bytes += input.len() as u64;
                std::eprintln!("{}", path.display());
                target(&input);
            }
        }
        assert!(files <= MOST_FILES && bytes <= MOST_BYTES, "{files} files, {bytes} bytes");
        let names: Vec<_> = fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().all(|name| TARGETS.iter().any(|(known, _)| name == *known)), "{names:?}");
    }
}
