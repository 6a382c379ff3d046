//! Files handed from one qube to another: the qfile stream, its sender and its receiver.
//!
//! The receiver trusts nothing that it reads: names and links are judged by pure code (`wire`,
//! `names`), and what passes is done by descriptor within one directory, behind barriers that are up
//! before the first byte is read (`barriers`). The sender trusts the user's own files as little as
//! needed: it follows no link, and deletes only what the receiver has confirmed.
//!
//! | file | what |
//! |---|---|
//! | `wire`, `codes`, `names` | bytes, errors and rules of the stream; pure |
//! | `levels`, `listing` | files by descriptor |
//! | `input`, `place`, `barriers`, `receive`, `unpacker` | the receiver |
//! | `output`, `walk`, `survey`, `send`, `sender`, `removal`, `progress`, `copy` | the sender |

pub mod barriers;
pub mod codes;
pub mod copy;
pub mod input;
pub mod levels;
pub mod listing;
pub mod names;
pub mod output;
pub mod place;
pub mod progress;
pub mod receive;
pub mod removal;
pub mod send;
pub mod sender;
pub mod survey;
pub mod unpacker;
pub mod walk;
pub mod wire;
