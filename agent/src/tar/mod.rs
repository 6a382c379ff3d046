//! Archives of backups, turned into files: `tar2qfile` and the service `qubes.Restore`.
//!
//! An archive is hostile: it was kept where others may write. `header` and `records` read it, pure
//! and bounded; `convert` makes entries of it whose names a receiver judges again.

pub mod convert;
pub mod header;
pub mod program;
pub mod records;
