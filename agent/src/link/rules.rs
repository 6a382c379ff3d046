//! What a data link does, as decisions without I/O: which stream ends when, and what is sent last.
//!
//! The same rules serve both sides; the side says which streams it reads and which it is told.

use crate::wire::Kind;

/// The three streams of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// From the caller to the service.
    Input,
    /// From the service to the caller.
    Output,
    /// From the service's standard error to the caller.
    Errors,
}

impl Stream {
    /// The kind of the messages of this stream.
    pub fn kind(self) -> Kind {
        match self {
            Self::Input => Kind::Stdin,
            Self::Output => Kind::Stdout,
            Self::Errors => Kind::Stderr,
        }
    }
}

/// Which end of the call we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// We say Input; we are told Output, Errors and the exit code.
    Caller,
    /// We say Output, Errors and the exit code; we are told Input.
    Service,
}

/// A stream that we say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saying {
    /// More may come.
    Open,
    /// It has ended, and the peer has not been told.
    Ended,
    /// The peer knows the end.
    Told,
}

/// What to do with a message of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Hand its bytes to this stream's reader.
    Bytes(Stream),
    /// Let this stream's reader see the end.
    End(Stream),
    /// Its bytes are the exit code.
    Code,
    /// Drop it.
    Nothing,
}

/// What to send next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The end of a stream.
    End(Stream),
    /// The exit code; nothing follows it.
    Code(i32),
}

/// How a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everything was said; the exit code of the call.
    Complete(i32),
    /// The peer went away before that.
    Lost,
}

/// The state of a link.
#[derive(Debug)]
pub struct Rules {
    side: Side,
    /// What we say: Input for the caller; Output and Errors for the service.
    says: [(Stream, Saying); 2],
    /// What we are told and somebody still reads.
    reads: [(Stream, bool); 2],
    /// The service's exit code.
    code: Option<i32>,
    code_told: bool,
    /// The caller's local program: its code, if it has one and has ended.
    program: Option<Option<i32>>,
    lost: bool,
}

impl Rules {
    /// A service that runs.
    pub fn of_service() -> Self {
        Self {
            side: Side::Service,
            says: [(Stream::Output, Saying::Open), (Stream::Errors, Saying::Open)],
            reads: [(Stream::Input, true); 2],
            code: None,
            code_told: false,
            program: None,
            lost: false,
        }
    }

    /// A service that was only started: its code is all that there is to say.
    pub fn of_started_service(code: i32) -> Self {
        let told = Saying::Told;
        Self {
            says: [(Stream::Output, told), (Stream::Errors, told)],
            reads: [(Stream::Input, false); 2],
            code: Some(code),
            ..Self::of_service()
        }
    }

    /// A caller, with a local program that speaks for it or without.
    pub fn of_caller(with_program: bool) -> Self {
        Self {
            side: Side::Caller,
            says: [(Stream::Input, Saying::Open), (Stream::Input, Saying::Told)],
            reads: [(Stream::Output, true), (Stream::Errors, true)],
            program: with_program.then_some(None),
            ..Self::of_service()
        }
    }

    fn saying(&mut self, stream: Stream) -> Option<&mut Saying> {
        self.says.iter_mut().find(|(said, _)| *said == stream).map(|(_, saying)| saying)
    }

    fn stop_reading(&mut self, stream: Stream) -> bool {
        let mut was = false;
        for (told, open) in &mut self.reads {
            if *told == stream {
                was |= core::mem::replace(open, false);
            }
        }
        was
    }

    /// Whether there is more to say on a stream, and somebody to say it to.
    pub fn says(&self, stream: Stream) -> bool {
        let open = self.says.iter().any(|&(said, saying)| said == stream && saying == Saying::Open);
        open && !self.lost && !(self.side == Side::Caller && self.code.is_some())
    }

    /// Whether somebody on our side still reads a stream.
    pub fn reads(&self, stream: Stream) -> bool {
        self.reads.contains(&(stream, true))
    }

    /// A stream that we say has ended.
    pub fn ended(&mut self, stream: Stream) {
        if let Some(saying @ Saying::Open) = self.saying(stream) {
            *saying = Saying::Ended;
        }
    }

    /// Nobody on our side reads this stream any more.
    pub fn unread(&mut self, stream: Stream) {
        self.stop_reading(stream);
    }

    /// The process of our side has ended: the service, or the caller's program.
    pub fn exited(&mut self, code: i32) {
        match self.side {
            Side::Service => {
                self.code.get_or_insert(code);
                self.stop_reading(Stream::Input);
            }
            Side::Caller => self.program = self.program.map(|known| known.or(Some(code))),
        }
    }

    /// A message of the peer begins.
    pub fn hear(&mut self, kind: Kind, length: u32) -> Heard {
        let stream = match (self.side, kind) {
            // Old peers took the one for the other.
            (Side::Service, Kind::Stdin | Kind::Stdout) => Stream::Input,
            (Side::Caller, Kind::Stdout | Kind::Stdin) => Stream::Output,
            (Side::Caller, Kind::Stderr) => Stream::Errors,
            (Side::Caller, Kind::ExitCode) => return Heard::Code,
            _ => return Heard::Nothing,
        };
        if !self.reads(stream) {
            return Heard::Nothing;
        }
        if length == 0 {
            self.stop_reading(stream);
            return Heard::End(stream);
        }
        Heard::Bytes(stream)
    }

    /// What the log should say of a message of this kind: that it is not the peer's to send.
    pub fn remark(&self, kind: Kind) -> Option<&'static str> {
        match (self.side, kind) {
            (Side::Service, Kind::Stdin) => None,
            (Side::Service, Kind::Stdout) => Some("the caller says STDOUT where it means STDIN"),
            (Side::Service, _) => Some("the caller says what only a service may say; it is dropped"),
            (Side::Caller, Kind::Stdin) => Some("the service says STDIN where it means STDOUT"),
            (Side::Caller, _) => None,
        }
    }

    /// The peer's EXIT_CODE: nothing follows it, and it wants no more input.
    pub fn hear_code(&mut self, code: i32) {
        if self.side == Side::Caller {
            self.code.get_or_insert(code);
            self.ended(Stream::Input);
            self.stop_reading(Stream::Output);
            self.stop_reading(Stream::Errors);
        }
    }

    /// The peer is gone.
    pub fn peer_gone(&mut self) {
        self.lost = true;
        for stream in [Stream::Input, Stream::Output, Stream::Errors] {
            self.stop_reading(stream);
        }
    }

    /// Which end of the call this is.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Whether the peer is known to be gone.
    pub fn lost(&self) -> bool {
        self.lost
    }

    /// What to send next, once; the caller of this sends it.
    pub fn due(&mut self) -> Option<Due> {
        for (stream, saying) in &mut self.says {
            if *saying == Saying::Ended {
                *saying = Saying::Told;
                return Some(Due::End(*stream));
            }
        }
        if self.side == Side::Caller || self.code_told {
            return None;
        }
        let code = self.code?;
        if self.says.iter().any(|&(_, saying)| saying != Saying::Told) {
            return None;
        }
        self.code_told = true;
        Some(Due::Code(code))
    }

    /// How the link has ended, once it has and what was due is sent.
    pub fn ending(&self) -> Option<Ending> {
        match self.side {
            Side::Service if self.code_told => self.code.map(Ending::Complete),
            Side::Caller => match (self.code, self.program) {
                (Some(_), Some(None)) => None,
                (Some(0), Some(Some(local))) => Some(Ending::Complete(local)),
                (Some(code), _) => Some(Ending::Complete(code)),
                (None, _) if self.lost => Some(Ending::Lost),
                (None, _) => None,
            },
            Side::Service if self.lost => Some(Ending::Lost),
            Side::Service => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;
    use std::vec::Vec;

    fn all_due(rules: &mut Rules) -> Vec<Due> {
        core::iter::from_fn(|| rules.due()).collect()
    }

    /// The code waits for both streams and for the process, in whichever order they end; it is the
    /// last message and said once.
    #[test]
    fn the_code_comes_last_in_every_order() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut rules = Rules::of_service();
            let mut sent = Vec::new();
            for (at, event) in order.into_iter().enumerate() {
                match event {
                    0 => rules.ended(Stream::Output),
                    1 => rules.ended(Stream::Errors),
                    _ => rules.exited(7),
                }
                sent.extend(all_due(&mut rules));
                assert_eq!(rules.ending().is_some(), at == 2, "{order:?}");
            }
            assert_eq!(sent.len(), 3);
            assert_eq!(sent[2], Due::Code(7));
            assert!(sent[..2].contains(&Due::End(Stream::Output)));
            assert!(sent[..2].contains(&Due::End(Stream::Errors)));
            assert_eq!(rules.ending(), Some(Ending::Complete(7)));
        }
    }

    /// A service need not hear the end of its input; after its own end nothing is read for it.
    #[test]
    fn input_closes_with_the_service() {
        let mut rules = Rules::of_service();
        assert_eq!(rules.hear(Kind::Stdin, 3), Heard::Bytes(Stream::Input));
        rules.exited(0);
        assert_eq!(rules.hear(Kind::Stdin, 3), Heard::Nothing);
        assert_eq!(rules.hear(Kind::Stdin, 0), Heard::Nothing);
        rules.ended(Stream::Output);
        rules.ended(Stream::Errors);
        assert_eq!(all_due(&mut rules).last(), Some(&Due::Code(0)));
    }

    /// Input that nobody reads is dropped, and the rest goes on.
    #[test]
    fn a_closed_input_stops_nothing_else() {
        let mut rules = Rules::of_service();
        rules.unread(Stream::Input);
        assert_eq!(rules.hear(Kind::Stdin, 3), Heard::Nothing);
        assert!(rules.says(Stream::Output) && rules.says(Stream::Errors));
        assert_eq!(rules.ending(), None);
    }

    /// What is not a caller's to send is dropped; the swapped type is taken for the right one.
    #[test]
    fn messages_out_of_place() {
        let mut rules = Rules::of_service();
        assert_eq!(rules.hear(Kind::Stderr, 1), Heard::Nothing);
        assert_eq!(rules.hear(Kind::ExitCode, 4), Heard::Nothing);
        assert!(rules.remark(Kind::Stderr).is_some() && rules.remark(Kind::Stdin).is_none());
        assert_eq!(rules.hear(Kind::Stdout, 1), Heard::Bytes(Stream::Input));
        assert_eq!(rules.hear(Kind::Stdout, 0), Heard::End(Stream::Input));
        assert_eq!(rules.hear(Kind::Stdin, 1), Heard::Nothing);
        let mut rules = Rules::of_caller(false);
        assert_eq!(rules.hear(Kind::Stdin, 1), Heard::Bytes(Stream::Output));
        assert_eq!(rules.hear(Kind::Stdin, 0), Heard::End(Stream::Output));
    }

    /// On EXIT_CODE the caller sends the one end of its input that is still owed, and no more data.
    #[test]
    fn the_code_ends_the_callers_input() {
        for already in [false, true] {
            let mut rules = Rules::of_caller(false);
            if already {
                rules.ended(Stream::Input);
                assert_eq!(all_due(&mut rules), [Due::End(Stream::Input)]);
            }
            assert_eq!(rules.hear(Kind::ExitCode, 4), Heard::Code);
            rules.hear_code(3);
            assert!(!rules.says(Stream::Input));
            assert_eq!(all_due(&mut rules).len(), usize::from(!already));
            assert_eq!(rules.ending(), Some(Ending::Complete(3)));
        }
    }

    /// The local program is waited for; its code counts where that of the service is 0.
    #[test]
    fn codes_of_local_programs() {
        for (remote, local, result) in [(0, 0, 0), (0, 5, 5), (3, 5, 3), (-1, 0, -1), (256, 1, 256)] {
            for program_first in [false, true] {
                let mut rules = Rules::of_caller(true);
                if program_first {
                    rules.exited(local);
                    assert_eq!(rules.ending(), None);
                    rules.hear_code(remote);
                } else {
                    rules.hear_code(remote);
                    assert_eq!(rules.ending(), None);
                    rules.exited(local);
                }
                assert_eq!(rules.ending(), Some(Ending::Complete(result)));
            }
        }
    }

    /// A peer that is gone too early is a loss for both; after the code it is not.
    #[test]
    fn a_lost_peer() {
        let mut rules = Rules::of_service();
        rules.peer_gone();
        assert_eq!(rules.ending(), Some(Ending::Lost));
        for with_program in [false, true] {
            let mut rules = Rules::of_caller(with_program);
            rules.peer_gone();
            assert!(!rules.says(Stream::Input));
            assert_eq!(rules.ending(), Some(Ending::Lost));
        }
        let mut rules = Rules::of_caller(false);
        rules.hear_code(0);
        rules.peer_gone();
        assert_eq!(rules.ending(), Some(Ending::Complete(0)));
    }

    /// Of a service that was only started nothing is told but its code.
    #[test]
    fn a_started_service() {
        let mut rules = Rules::of_started_service(127);
        assert_eq!(all_due(&mut rules), [Due::Code(127)]);
        assert_eq!(rules.hear(Kind::Stdin, 9), Heard::Nothing);
        assert_eq!(rules.ending(), Some(Ending::Complete(127)));
    }

    /// Whatever happens in whatever order: each end is said once, never data after it; the service
    /// says its code once and last; nothing is delivered after a stream's end; a link that has ended
    /// stays so; and all that must happen for the end leads to it.
    #[test]
    fn any_order_of_events() {
        let mut random = Generator::new(20);
        for _ in 0..20_000 {
            let side = *random.pick(&[Side::Caller, Side::Service]);
            let with_program = random.below(2) == 0;
            let mut rules = match side {
                Side::Caller => Rules::of_caller(with_program),
                Side::Service => Rules::of_service(),
            };
            let mut sent = Vec::new();
            let mut delivered_ends = Vec::new();
            let mut ending = None;
            let mut lost = false;
            for _ in 0..random.below(30) {
                match random.below(9) {
                    0 => rules.ended(Stream::Output),
                    1 => rules.ended(Stream::Errors),
                    2 => rules.ended(Stream::Input),
                    3 => rules.exited(random.below(300) as i32 - 20),
                    4 => rules.unread(*random.pick(&[Stream::Input, Stream::Output, Stream::Errors])),
                    5 if random.below(4) == 0 => {
                        rules.peer_gone();
                        lost = true;
                    }
                    _ => {
                        let kinds = [Kind::Stdin, Kind::Stdout, Kind::Stderr, Kind::ExitCode];
                        match rules.hear(*random.pick(&kinds), *random.pick(&[0, 1, 9])) {
                            Heard::Code => {
                                assert_eq!(side, Side::Caller);
                                rules.hear_code(random.below(300) as i32);
                            }
                            Heard::End(stream) => {
                                assert!(!delivered_ends.contains(&stream));
                                delivered_ends.push(stream);
                            }
                            Heard::Bytes(stream) => {
                                assert!(!delivered_ends.contains(&stream) && rules.reads(stream));
                                assert_eq!(stream == Stream::Input, side == Side::Service);
                            }
                            Heard::Nothing => {}
                        }
                    }
                }
                for due in all_due(&mut rules) {
                    assert!(!sent.contains(&due));
                    assert!(!sent.iter().any(|due| matches!(due, Due::Code(_))));
                    if let Due::End(stream) = due {
                        assert_eq!(stream == Stream::Input, side == Side::Caller);
                        assert!(!rules.says(stream));
                    }
                    sent.push(due);
                }
                if let Some(before) = ending {
                    assert_eq!(rules.ending(), Some(before));
                }
                ending = rules.ending();
                if ending == Some(Ending::Lost) {
                    assert!(lost);
                    break;
                }
            }
            if ending.is_none() {
                match side {
                    Side::Service => {
                        rules.exited(0);
                        rules.ended(Stream::Output);
                        rules.ended(Stream::Errors);
                    }
                    Side::Caller => {
                        rules.hear_code(0);
                        rules.exited(0);
                    }
                }
                all_due(&mut rules);
                assert!(matches!(rules.ending(), Some(Ending::Complete(_))), "{rules:?}");
            }
        }
    }
}
