//! The calling side of a data link: our own streams or a local program at one end.

use rustix::io::Errno;

use super::child::{fork, Child, Forked};
use super::ends::{Sink, Source};
use super::peer::Peer;
use super::rules::{Rules, Stream};
use super::run::Link;
use crate::caller::Caller;
use crate::local_program;
use crate::relay::End;
use crate::speak::Reason;
use crate::{code, say};

impl Caller<'_> {
    /// Relay the call to its end; the exit code.
    pub fn run(&self, peer: Peer) -> i32 {
        let mut link = Link::new(Rules::of_caller(!self.program.is_empty()), peer);
        link.peer.queue_data(Stream::Input, self.prefix);
        let errors = Sink::filtered(End::Standard(2), self.filter_stderr);
        if self.program.is_empty() {
            let output = if self.both_ways { 0 } else { 1 };
            link.sources.push((Stream::Input, Source::new(End::Standard(0))));
            let output = Sink::filtered(End::Standard(output), self.filter_stdout);
            link.sinks.push((Stream::Output, output));
        } else {
            match self.start_program() {
                Ok(Child { process, stdin, stdout }) => {
                    link.process = process;
                    link.sources.push((Stream::Input, Source::new(End::Pipe(stdout))));
                    link.sinks.push((Stream::Output, Sink::filtered(End::Pipe(stdin), self.filter_stdout)));
                }
                Err(error) => {
                    say!("error: cannot start the local program: {error}", error = Reason(error));
                    return code::FAILURE;
                }
            }
        }
        link.sinks.push((Stream::Errors, errors));
        link.run()
    }

    /// Start the local program.
    fn start_program(&self) -> Result<Child, Errno> {
        match fork()? {
            Forked::New { stdin, stdout } => {
                local_program::become_it(self.program, self.environment, &stdin, &stdout)
            }
            Forked::Ours(child) => Ok(child),
        }
    }
}
