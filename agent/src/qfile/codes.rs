//! Error codes of a result (error numbers of Linux, fact sheet qrexec, 6.1) and their words.

use rustix::io::Errno;

/// No error.
pub const DONE: u32 = 0;
/// Something of that name exists: nothing is ever overwritten.
pub const EXISTS: u32 = 17;
/// What the entry is cannot be copied.
pub const WRONG_KIND: u32 = 22;
/// The name is too long, or too deep.
pub const NAME_TOO_LONG: u32 = 36;
/// A link that could lead out of what is copied.
pub const UNSAFE_LINK: u32 = 67;
/// A name that is not relative, not canonical or not displayable.
pub const BAD_NAME: u32 = 84;
/// The sender said nothing for too long.
pub const SILENCE: u32 = 110;
/// The stream ended between entries without its end mark.
pub const NO_END: u32 = 121;
/// More bytes or files than allowed.
pub const OVER_QUOTA: u32 = 122;
/// The stream ended within a file.
pub const SENDER_ENDED: u32 = 31_415_926;

/// The code for what the kernel says.
pub fn of(error: Errno) -> u32 {
    error.raw_os_error().unsigned_abs()
}

/// What a code means to the person who copies.
pub fn words(code: u32) -> &'static str {
    match code {
        1 | 13 => "the target qube may not write there",
        5 => "input/output error in the target qube",
        EXISTS => "a file of that name exists in the target qube; nothing is overwritten",
        18 => "a directory of the target qube lies on another file system",
        20 => "a directory of that name is something else in the target qube",
        WRONG_KIND => "this kind of file cannot be copied",
        24 => "too many open files in the target qube",
        27 => "the file is too large for the target qube",
        28 => "no space left in the target qube",
        30 => "the target qube's file system is read-only",
        NAME_TOO_LONG => "the name is too long or too deep for the target qube",
        40 => "a directory of that name is a symbolic link in the target qube",
        UNSAFE_LINK => "the target qube takes no symbolic link that could lead out of what is copied",
        BAD_NAME => "the target qube does not take such a name",
        SILENCE => "the transfer stood still for too long",
        NO_END => "the stream ended too early",
        OVER_QUOTA => "more than the target qube takes",
        SENDER_ENDED => "this side stopped in the middle of a file",
        _ => "error in the target qube",
    }
}
