//! One program under many names; see the library's `run`.
#![no_std]
#![no_main]

// The entry point, the allocator and the panic handler live in the library.
use qrexec_agent as _;
