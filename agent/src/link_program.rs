//! `qrexec-link`: the service's side of a data link, with a service that somebody else runs.

use alloc::vec::Vec;
use core::ffi::CStr;

use crate::link::{Link, Peer, Process, Rules, Sink, Source, Stream};
use crate::relay::End;
use crate::speak::{self, Reason};
use crate::sys::call;
use crate::text::decimal;
use crate::vchan::{Place, PATIENCE};
use crate::{code, say};

const USAGE: &str = "\
usage: qrexec-link DOMAIN PORT

Serve a call that comes from DOMAIN at PORT, for a service that runs elsewhere.
Standard input is what the service says, descriptor 4 what it says on its standard error; standard
output is what it is told. Its exit code comes as a decimal number on descriptor 3.

Exit code: 0 when the caller was told everything, 255 when it went away, 1 when there was no link.
";

/// Run with the arguments after the program's name; the exit code.
pub fn run(arguments: &[&'static CStr], environment: &[&'static CStr]) -> i32 {
    let number = |text: &CStr| decimal(text.to_bytes()).and_then(|number| u32::try_from(number).ok());
    let (domain, port) = match arguments {
        [flag] if matches!(flag.to_bytes(), b"-h" | b"--help") => {
            let _ = rustix::io::write(call::standard(1), USAGE.as_bytes());
            return 0;
        }
        [domain, port] => match (number(domain), number(port)) {
            (Some(domain), Some(port)) => (domain, port),
            _ => return wrong("the domain and the port are numbers"),
        },
        _ => return wrong("expected a domain and a port"),
    };
    let place = match Place::of(environment) {
        Ok(place) => place,
        Err(text) => return wrong(&text),
    };
    let given = [3, 4].map(call::given_descriptor);
    let [Some(exit), Some(errors)] = given else {
        return wrong("descriptors 3 and 4 are not open");
    };
    call::ignore_broken_pipes();
    let until = call::milliseconds() + PATIENCE;
    let peer = match place.connect(domain, port, until, None) {
        Ok(stream) => Peer::open(stream, until),
        Err(error) => {
            let error = Reason(error);
            say!("error: cannot connect to domain {domain} at port {port}: {error}");
            return code::FAILURE;
        }
    };
    let peer = match peer {
        Ok(peer) => peer,
        Err(refusal) => {
            say!("error: the link to domain {domain} at port {port} did not come up: {refusal}");
            return code::FAILURE;
        }
    };
    let mut link = Link::new(Rules::of_service(), peer);
    link.sources.push((Stream::Output, Source::new(End::Standard(0))));
    link.sources.push((Stream::Errors, Source::new(End::Pipe(errors))));
    link.sinks.push((Stream::Input, Sink::new(End::Standard(1))));
    link.process = Process::Told { source: Source::new(End::Pipe(exit)), text: Vec::new() };
    match link.run_to_ending() {
        Ok(_) => 0,
        Err(code) => code,
    }
}

fn wrong(text: &str) -> i32 {
    speak::wrong_usage("qrexec-link", text)
}
