//! Whole links over real sockets and pipes.

use super::child::pair;
use super::{Link, Peer, Process, Rules, Sink, Source, Stream};
use crate::relay::End;
use crate::sys::call;
use crate::text::tests_support::Generator;
use crate::{code, wire};
use rustix::fd::OwnedFd;
use rustix::pipe::pipe;
use std::thread;
use std::vec::Vec;

fn both_ends() -> (Peer, Peer) {
    let (one, other) = pair().unwrap();
    for end in [&one, &other] {
        rustix::io::ioctl_fionbio(end, true).unwrap();
    }
    let until = call::milliseconds() + 20_000;
    let far = thread::spawn(move || Peer::open(other, until).ok().unwrap());
    (Peer::open(one, until).ok().unwrap(), far.join().unwrap())
}

fn write_all(fd: OwnedFd, bytes: Vec<u8>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match rustix::io::write(&fd, &rest[..rest.len().min(30_000)]) {
                Ok(count) => rest = &rest[count..],
                Err(_) => return,
            }
        }
    })
}

fn read_all(fd: OwnedFd) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut found, mut piece) = (Vec::new(), std::vec![0; 70_001]);
        while let Ok(count @ 1..) = rustix::io::read(&fd, &mut piece) {
            found.extend_from_slice(&piece[..count]);
        }
        found
    })
}

/// Whatever is said on all three streams at once, each side gets it whole and unmixed, and the
/// caller's code is the service's.
#[test]
fn streams_arrive_whole() {
    let mut random = Generator::new(30);
    for _ in 0..20 {
        let said: Vec<Vec<u8>> = (0..3)
            .map(|_| {
                let size = *random.pick(&[0, 1, 4096, 65_536, 65_537, 300_000]);
                random.bytes(size)
            })
            .collect();
        let code = random.below(256) as i32;
        let (near, far) = both_ends();
        let pipes: Vec<(OwnedFd, OwnedFd)> = (0..7).map(|_| pipe().unwrap()).collect();
        let [input, output, errors, its_input, its_output, its_errors, exit] =
            <[(OwnedFd, OwnedFd); 7]>::try_from(pipes).unwrap();
        let mut caller = Link::new(Rules::of_caller(false), near);
        caller.sources.push((Stream::Input, Source::new(End::Pipe(input.0))));
        caller.sinks.push((Stream::Output, Sink::new(End::Pipe(output.1))));
        caller.sinks.push((Stream::Errors, Sink::new(End::Pipe(errors.1))));
        let mut service = Link::new(Rules::of_service(), far);
        service.sources.push((Stream::Output, Source::new(End::Pipe(its_output.0))));
        service.sources.push((Stream::Errors, Source::new(End::Pipe(its_errors.0))));
        service.sinks.push((Stream::Input, Sink::new(End::Pipe(its_input.1))));
        service.process = Process::Told { source: Source::new(End::Pipe(exit.0)), text: Vec::new() };
        let readers = [read_all(its_input.0), read_all(output.0), read_all(errors.0)];
        let writers = [input.1, its_output.1, its_errors.1];
        let writers: Vec<_> =
            writers.into_iter().zip(&said).map(|(fd, bytes)| write_all(fd, bytes.clone())).collect();
        let ends = [thread::spawn(move || service.run()), thread::spawn(move || caller.run())];
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        // The service has read its input to the end before it says its code.
        let [its_input, output, errors] = readers;
        assert_eq!(its_input.join().unwrap(), said[0]);
        write_all(exit.1, std::format!("{code}\n").into_bytes()).join().unwrap();
        assert_eq!(output.join().unwrap(), said[1]);
        assert_eq!(errors.join().unwrap(), said[2]);
        for end in ends {
            assert_eq!(end.join().unwrap(), code);
        }
    }
}

/// What a peer sends that is no protocol ends the link, and no byte of it the process.
#[test]
fn any_bytes_of_a_peer_are_survived() {
    let mut random = Generator::new(31);
    for round in 0..40 {
        let (near, far) = pair().unwrap();
        let hello = wire::hello(wire::Version::NEWEST);
        let kinds = [wire::Kind::Stdin, wire::Kind::Stdout, wire::Kind::Stderr, wire::Kind::ExitCode];
        let mut sent = hello.clone();
        for _ in 0..random.below(6) {
            let body = random.below(9);
            sent.extend(wire::Header { kind: *random.pick(&kinds), length: body as u32 }.bytes());
            sent.extend(random.bytes(body));
        }
        let noise = random.below(20);
        sent.extend(random.bytes(noise));
        rustix::io::write(&far, &sent).unwrap();
        let _ = rustix::net::shutdown(&far, rustix::net::Shutdown::Write);
        rustix::io::ioctl_fionbio(&near, true).unwrap();
        let peer = Peer::open(near, call::milliseconds() + 20_000).ok().unwrap();
        let rules = if round % 2 == 0 { Rules::of_service() } else { Rules::of_caller(false) };
        let code = Link::new(rules, peer).run();
        assert!(round % 2 == 1 || code == code::LOST || code == code::FAILURE);
    }
}
