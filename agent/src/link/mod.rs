//! The data link of one call: bytes of the caller and of the service as messages on one stream.
//!
//! It trusts neither the peer, which another machine's programs steer, nor the processes on its own
//! side. Each direction is held by at most one buffer and waits when that is full; the two never
//! wait for one another, so that peers with small buffers of their own are no danger.
//!
//! | file | purpose |
//! |---|---|
//! | `rules` | what is sent when, and how a link ends; pure |
//! | `ends` | reading and writing without blocking, whatever the descriptor is |
//! | `peer` | the stream: HELLO, messages in, messages out |
//! | `run` | the loop that brings them together |
//! | `caller` | the calling side: our own streams, or a local program |
//! | `log` | a copy of a service's errors for this machine's log |
//! | `child` | a process on our side, and our ends of its streams |
//! | `serve` | the service's side: a process for each call |

mod caller;
mod child;
mod ends;
mod log;
mod peer;
mod rules;
mod run;
pub mod serve;
#[cfg(test)]
mod tests;

pub use child::{fork, watch_signals, Child, Forked};
pub use ends::{Sink, Source};
pub use log::{Log, SOCKET as LOG};
pub use peer::Peer;
pub use rules::{Due, Ending, Rules, Side, Stream};
pub use run::{Link, Process, Watch};
