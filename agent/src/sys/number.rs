//! System call numbers that `sys::call` uses, by architecture.
#![allow(missing_docs)]
#![cfg_attr(any(test, fuzzing), allow(dead_code))]

#[cfg(target_arch = "x86_64")]
mod table {
    pub const CLOSE: usize = 3;
    pub const MMAP: usize = 9;
    pub const MPROTECT: usize = 10;
    pub const RT_SIGACTION: usize = 13;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const CLONE: usize = 56;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const MOUNT: usize = 165;
    pub const INIT_MODULE: usize = 175;
    pub const CLOCK_SETTIME: usize = 227;
    pub const CLOCK_GETTIME: usize = 228;
    pub const EXIT_GROUP: usize = 231;
    pub const KEXEC_LOAD: usize = 246;
    pub const ADD_KEY: usize = 248;
    pub const KEYCTL: usize = 250;
    pub const UNSHARE: usize = 272;
    pub const SIGNALFD4: usize = 289;
    pub const PERF_EVENT_OPEN: usize = 298;
    pub const DUP3: usize = 292;
    pub const FINIT_MODULE: usize = 313;
    pub const BPF: usize = 321;
}

#[cfg(target_arch = "aarch64")]
mod table {
    pub const DUP3: usize = 24;
    pub const IOCTL: usize = 29;
    pub const MOUNT: usize = 40;
    pub const CLOSE: usize = 57;
    pub const SIGNALFD4: usize = 74;
    pub const EXIT_GROUP: usize = 94;
    pub const UNSHARE: usize = 97;
    pub const KEXEC_LOAD: usize = 104;
    pub const INIT_MODULE: usize = 105;
    pub const CLOCK_SETTIME: usize = 112;
    pub const CLOCK_GETTIME: usize = 113;
    pub const KILL: usize = 129;
    pub const RT_SIGACTION: usize = 134;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const ADD_KEY: usize = 217;
    pub const KEYCTL: usize = 219;
    pub const CLONE: usize = 220;
    pub const EXECVE: usize = 221;
    pub const MMAP: usize = 222;
    pub const MPROTECT: usize = 226;
    pub const PERF_EVENT_OPEN: usize = 241;
    pub const WAIT4: usize = 260;
    pub const FINIT_MODULE: usize = 273;
    pub const BPF: usize = 280;
}

pub use table::*;

pub const OPEN_TREE: usize = 428;
pub const FSOPEN: usize = 430;
pub const CLOSE_RANGE: usize = 436;
pub const MOUNT_SETATTR: usize = 442;
pub const LANDLOCK_CREATE_RULESET: usize = 444;
pub const LANDLOCK_ADD_RULE: usize = 445;
pub const LANDLOCK_RESTRICT_SELF: usize = 446;
