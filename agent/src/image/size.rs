//! The one line before the pixels: `WIDTH HEIGHT`.

use alloc::string::String;

use rustix::fd::AsFd;

use crate::flow::{self, Line};
use crate::text::{decimal, split_once};

/// Pictures are no larger, as the service's contract has it.
pub const LARGEST: Size = Size { width: 8192, height: 5120 };
/// Icons are no larger.
pub const LARGEST_ICON: Size = Size { width: 2048, height: 2048 };
/// `8192 5120` and no more.
const LONGEST_LINE: usize = 11;
/// Red, green, blue and opacity.
pub const PIXEL: usize = 4;

/// A picture's size in pixels, neither of them 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// Why there is no size.
#[derive(Debug, PartialEq, Eq)]
pub enum NoSize {
    /// The stream ended before the header.
    Ended,
    /// What came is no header, or the size is beyond the bound.
    Wrong,
}

impl Size {
    /// Check a size against a bound.
    pub fn new(untrusted_width: u64, untrusted_height: u64, bound: Size) -> Option<Self> {
        let within = |number: u64, most: u32| (1..=u64::from(most)).contains(&number);
        (within(untrusted_width, bound.width) && within(untrusted_height, bound.height))
            .then_some(Self { width: untrusted_width as u32, height: untrusted_height as u32 })
    }

    /// Read a header line without its end: two numbers without leading zeros and one blank.
    pub fn parse(untrusted_line: &[u8], bound: Size) -> Option<Self> {
        let (width, height) = split_once(untrusted_line, b' ')?;
        let number = |text: &[u8]| decimal(text).filter(|_| text.first() != Some(&b'0'));
        Self::new(number(width)?, number(height)?, bound)
    }

    /// Read the header from the beginning of a stream, and not a byte of the pixels.
    pub fn read(from: impl AsFd, bound: Size) -> Result<Self, NoSize> {
        match flow::read_line(from, LONGEST_LINE) {
            Ok(Line::Whole(line)) => Self::parse(&line, bound).ok_or(NoSize::Wrong),
            Ok(Line::End) => Err(NoSize::Ended),
            _ => Err(NoSize::Wrong),
        }
    }

    /// The header line with its end.
    pub fn header(self) -> String {
        alloc::format!("{} {}\n", self.width, self.height)
    }

    /// Bytes of a row.
    pub fn row(self) -> usize {
        self.width as usize * PIXEL
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    /// Every size within the bound survives the round; nothing else is one.
    #[test]
    fn headers() {
        let mut random = Generator::new(61);
        for _ in 0..2_000 {
            let (width, height) = (random.below(9_000) as u64, random.below(6_000) as u64);
            let size = Size::new(width, height, LARGEST);
            assert_eq!(size.is_some(), (1..=8192).contains(&width) && (1..=5120).contains(&height));
            if let Some(size) = size {
                assert_eq!(Size::parse(size.header().trim_end().as_bytes(), LARGEST), Some(size));
            }
        }
        assert!(Size::parse(b"2049 1", LARGEST_ICON).is_none());
    }

    /// A header that lies about its size or is spelt otherwise is refused.
    #[test]
    fn wrong_headers_are_refused() {
        for wrong in [
            &b""[..],
            b"1",
            b"1 ",
            b" 1 1",
            b"1 1 ",
            b"1  1",
            b"01 1",
            b"0 1",
            b"1 0",
            b"-1 1",
            b"+1 1",
            b"1\t1",
            b"8193 1",
            b"1 5121",
            b"99999999999999999999 1",
            b"1x1",
            b"1 1\r",
            b"\x1b[0m 1",
        ] {
            assert_eq!(Size::parse(wrong, LARGEST), None, "{wrong:?}");
        }
    }

    /// Any line is survived.
    #[test]
    fn any_line_is_survived() {
        let mut random = Generator::new(62);
        for _ in 0..20_000 {
            let length = random.below(14);
            let line: alloc::vec::Vec<u8> = (0..length).map(|_| *random.pick(b"0123456789 +-\n")).collect();
            if let Some(size) = Size::parse(&line, LARGEST) {
                assert_eq!(size.header().as_bytes(), [&line[..], b"\n"].concat());
            }
        }
    }
}
