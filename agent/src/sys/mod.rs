//! The one room of the agent in which `unsafe` is allowed.
//!
//! It trusts nothing but the kernel's calling convention, and offers the others safe functions only.
//! Each block says why it is sound (SAFETY) and why it cannot be avoided (JUSTIFICATION).
#![allow(unsafe_code)]

pub mod call;
mod heap;
pub mod landlock;
#[cfg(not(any(test, fuzzing)))]
mod memory;
mod number;
#[cfg(not(any(test, fuzzing)))]
mod start;
