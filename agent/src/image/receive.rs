//! Pictures from other qubes: plain pixels of exactly the size that their header says, made into a
//! PNG file of ours.

use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::conversation::Conversation;
use crate::flow::{self, Trouble};
use crate::image::png::Writer;
use crate::image::size::{NoSize, Size};
use crate::open::folder::random_letters;
use crate::speak::{Reason, Shown};
use crate::sys::call;
use crate::{code, say};

/// Larger files are not sent.
pub const LARGEST: u64 = 256 << 20;

/// Why pixels are not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Wrong {
    /// No header line, or a size beyond the bound.
    Header,
    /// Fewer bytes than the header promised.
    Short,
    /// More bytes than the header promised.
    Long,
    /// The file cannot be written.
    Writing(Errno),
}

impl Wrong {
    fn text(&self) -> &'static str {
        match self {
            Self::Header => "what it sent is no picture, or one that is too large",
            Self::Short => "the picture ends too early",
            Self::Long => "the picture is longer than it says",
            Self::Writing(_) => "the picture cannot be written",
        }
    }
}

/// Where a picture comes from and goes to.
pub struct Wish<'a> {
    /// The qube, or a keyword as `@dispvm`.
    pub target: &'a [u8],
    /// The service's line, with its end.
    pub line: Vec<u8>,
    /// What follows the line.
    pub content: Option<OwnedFd>,
    /// The file, `-` for stdout.
    pub output: &'a [u8],
    /// The largest size that is taken.
    pub bound: Size,
    /// Our own environment.
    pub environment: &'a [&'a CStr],
}

/// Get a picture; the exit code.
pub fn get(wish: &Wish<'_>) -> i32 {
    let mut call = match Conversation::start(wish.target, b"qubes.GetImageRGBA", wish.environment) {
        Ok(call) => call,
        Err(error) => {
            say!("error: cannot start `qrexec-client-vm`: {}", Reason(error));
            return code::FAILURE;
        }
    };
    if let Some(to) = call.to.take() {
        let sent = flow::write_all(&to, &wish.line)
            .map_err(Trouble::Writing)
            .and_then(|()| wish.content.as_ref().map_or(Ok(0), |content| flow::copy(content, &to, LARGEST)));
        if matches!(sent, Err(Trouble::Reading(_) | Trouble::TooMuch)) {
            call.abandon();
            say!("error: the picture cannot be read, or is larger than {LARGEST} bytes");
            return code::FAILURE;
        }
    }
    let file = match Output::new(wish.output) {
        Ok(file) => file,
        Err(error) => {
            call.abandon();
            say!("error: cannot write `{}`: {}", Shown(wish.output), Reason(error));
            return code::FAILURE;
        }
    };
    let taken = take(&call.from, &file, wish.bound);
    let code = call.finish();
    if code != 0 && matches!(taken, Ok(()) | Err(Wrong::Short)) {
        say!("error: the other qube could not deliver the picture");
        return code;
    }
    match taken.and_then(|()| file.keep().map_err(Wrong::Writing)) {
        Ok(()) => 0,
        Err(wrong) => {
            // The service's own code says only that we hung up.
            say!("error: {}", wrong.text());
            code::FAILURE
        }
    }
}

/// Take pixels from a stream and write them as PNG.
pub fn take(untrusted: impl AsFd, to: impl AsFd, bound: Size) -> Result<(), Wrong> {
    let size = Size::read(untrusted.as_fd(), bound).map_err(|no_size| match no_size {
        NoSize::Ended => Wrong::Short,
        NoSize::Wrong => Wrong::Header,
    })?;
    let mut file = Writer::new(to, size).map_err(Wrong::Writing)?;
    let mut row = alloc::vec![0; size.row()];
    for _ in 0..size.height {
        match flow::read_full(untrusted.as_fd(), &mut row) {
            Ok(count) if count == row.len() => file.row(&row).map_err(Wrong::Writing)?,
            _ => return Err(Wrong::Short),
        }
    }
    match flow::read(untrusted, &mut [0]) {
        Ok(0) => file.finish().map_err(Wrong::Writing),
        _ => Err(Wrong::Long),
    }
}

/// A file that has its name only once it is complete.
enum Output<'a> {
    /// Standard output.
    Standard,
    /// A new file with a name for the time being, and its name to be.
    File { fd: OwnedFd, now: Vec<u8>, later: &'a [u8] },
}

impl<'a> Output<'a> {
    fn new(path: &'a [u8]) -> Result<Self, Errno> {
        if path == b"-" {
            return Ok(Self::Standard);
        }
        let now = [path, b".part.", &random_letters()?].concat();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&now[..], flags, Mode::from_raw_mode(0o666))?;
        Ok(Self::File { fd, now, later: path })
    }

    fn keep(mut self) -> Result<(), Errno> {
        match &mut self {
            Self::Standard => Ok(()),
            Self::File { fd, now, later } => {
                rustix::fs::fsync(fd)?;
                rustix::fs::rename(&now[..], *later)?;
                now.clear();
                Ok(())
            }
        }
    }
}

impl AsFd for &Output<'_> {
    fn as_fd(&self) -> rustix::fd::BorrowedFd<'_> {
        match self {
            Output::Standard => call::standard(1),
            Output::File { fd, .. } => fd.as_fd(),
        }
    }
}

impl Drop for Output<'_> {
    fn drop(&mut self) {
        match self {
            Self::File { now, .. } if !now.is_empty() => {
                let _ = rustix::fs::unlink(&now[..]);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::png;
    use crate::image::size::{LARGEST as LARGEST_SIZE, LARGEST_ICON};
    use crate::text::tests_support::Generator;

    fn taken(stream: &[u8], bound: Size) -> Result<(), Wrong> {
        let (source, sink) = (file(stream), file(b""));
        let result = take(&source, &sink, bound);
        if result.is_ok() {
            rustix::fs::seek(&sink, rustix::fs::SeekFrom::Start(0)).unwrap();
            let (size, pixels) = png::read(&flow::read_to_end(&sink, 1 << 20).unwrap()).unwrap();
            assert_eq!([size.header().as_bytes(), &pixels].concat(), stream);
        }
        result
    }

    fn file(content: &[u8]) -> OwnedFd {
        let file = rustix::fs::memfd_create("picture", rustix::fs::MemfdFlags::empty()).unwrap();
        flow::write_all(&file, content).unwrap();
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).unwrap();
        file
    }

    /// A header that lies about what follows, in either direction, makes no picture (QSB-089).
    #[test]
    fn lengths_are_exact() {
        assert_eq!(taken(b"1 2\n12345678", LARGEST_SIZE), Ok(()));
        assert_eq!(taken(b"1 2\n1234567", LARGEST_SIZE), Err(Wrong::Short));
        assert_eq!(taken(b"1 2\n123456789", LARGEST_SIZE), Err(Wrong::Long));
        assert_eq!(taken(b"1 2\n", LARGEST_SIZE), Err(Wrong::Short));
        assert_eq!(taken(b"8192 5120\n1234", LARGEST_SIZE), Err(Wrong::Short));
        assert_eq!(taken(b"2049 1\n", LARGEST_ICON), Err(Wrong::Header));
        assert_eq!(taken(b"", LARGEST_SIZE), Err(Wrong::Short));
    }

    /// Neither an endless header nor endless pixels are read on.
    #[test]
    fn endless_streams_are_cut() {
        let zero = rustix::fs::open("/dev/zero", OFlags::RDONLY, Mode::empty()).unwrap();
        assert_eq!(take(&zero, file(b""), LARGEST_SIZE), Err(Wrong::Header));
    }

    /// Any stream is survived, and one that is taken is what was sent.
    #[test]
    fn any_stream_is_survived() {
        let mut random = Generator::new(68);
        for _ in 0..300 {
            let (width, height) = (random.below(5), random.below(5));
            let length = (width * height * 4 + random.below(3)).saturating_sub(1);
            let stream = [std::format!("{width} {height}\n").as_bytes(), &random.bytes(length)].concat();
            assert_eq!(
                taken(&stream, LARGEST_SIZE).is_ok(),
                width * height > 0 && length == width * height * 4
            );
        }
    }
}
