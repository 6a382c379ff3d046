//! Pictures as converters write them: PGM, PPM and PAM of 8 bits (Netpbm's `pgm(5)`, `ppm(5)`,
//! `pam(5)`).

use alloc::vec::Vec;

use rustix::fd::AsFd;

use crate::flow::{self, Line};
use crate::image::size::{Size, LARGEST, PIXEL};
use crate::text::{decimal, split_once};

/// Lines of a header; more is a comment without end.
const MOST_LINES: usize = 100;
const LONGEST_LINE: usize = 1024;

/// What follows a header.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// The picture's size.
    pub size: Size,
    /// Bytes of a pixel: grey, grey and opacity, colour, colour and opacity.
    pub depth: usize,
}

/// Read the header from the beginning of a stream, and not a byte of the pixels.
pub fn read(from: impl AsFd) -> Option<Layout> {
    let line = || match flow::read_line(from.as_fd(), LONGEST_LINE) {
        Ok(Line::Whole(line)) => Some(line),
        _ => None,
    };
    let first = line()?;
    match &first[..] {
        b"P7" => pam(line),
        _ => plain(first, line),
    }
}

/// The header of a PAM: lines of a key and a value.
fn pam(mut line: impl FnMut() -> Option<Vec<u8>>) -> Option<Layout> {
    let [mut width, mut height, mut depth, mut most] = [0; 4];
    for _ in 0..MOST_LINES {
        let line = line()?;
        if line == b"ENDHDR" {
            let size = Size::new(width, height, LARGEST)?;
            let right = (1..=PIXEL as u64).contains(&depth) && most == 255;
            return right.then_some(Layout { size, depth: depth as usize });
        }
        let Some((key, value)) = split_once(&line, b' ') else { continue };
        let place = match key {
            b"WIDTH" => &mut width,
            b"HEIGHT" => &mut height,
            b"DEPTH" => &mut depth,
            b"MAXVAL" => &mut most,
            _ => continue,
        };
        *place = decimal(value)?;
    }
    None
}

/// The header of a PGM or PPM: kind, width, height and highest value, with comments in between.
fn plain(first: Vec<u8>, mut line: impl FnMut() -> Option<Vec<u8>>) -> Option<Layout> {
    let mut words: Vec<Vec<u8>> = Vec::new();
    let mut next = Some(first);
    for _ in 0..MOST_LINES {
        let line = match next.take() {
            Some(line) => line,
            None => line()?,
        };
        let text = line.split(|&byte| byte == b'#').next().unwrap_or(&[]);
        let found = text.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
        words.extend(found.map(<[u8]>::to_vec));
        // The pixels follow one white space; converters write a line's end there.
        if let [kind, width, height, most] = &words[..] {
            let depth = match &kind[..] {
                b"P5" => 1,
                b"P6" => 3,
                _ => return None,
            };
            let size = Size::new(decimal(width)?, decimal(height)?, LARGEST)?;
            return (decimal(most)? == 255).then_some(Layout { size, depth });
        }
        if words.len() > 4 {
            return None;
        }
    }
    None
}

/// Pixels of any depth as red, green, blue and opacity.
pub fn to_rgba(pixels: &[u8], depth: usize, row: &mut Vec<u8>) {
    row.clear();
    for pixel in pixels.chunks_exact(depth) {
        row.extend_from_slice(&match *pixel {
            [grey] => [grey, grey, grey, 255],
            [grey, opacity] => [grey, grey, grey, opacity],
            [red, green, blue] => [red, green, blue, 255],
            [red, green, blue, opacity, ..] => [red, green, blue, opacity],
            [] => [0; 4],
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;
    use rustix::pipe::pipe;

    fn header(text: &[u8]) -> (Option<Layout>, Vec<u8>) {
        let (reader, writer) = pipe().unwrap();
        flow::write_all(&writer, text).unwrap();
        drop(writer);
        (read(&reader), flow::read_to_end(&reader, 1 << 16).unwrap())
    }

    fn layout(width: u32, height: u32, depth: usize) -> Option<Layout> {
        Some(Layout { size: Size { width, height }, depth })
    }

    /// Headers of all kinds end exactly where the pixels begin.
    #[test]
    fn headers() {
        let pam = b"P7\nWIDTH 3\nHEIGHT 2\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n\n\x01";
        assert_eq!(header(pam), (layout(3, 2, 4), b"\n\x01".to_vec()));
        assert_eq!(header(b"P6\n# by me\n3 2\n255\n\n\n"), (layout(3, 2, 3), b"\n\n".to_vec()));
        assert_eq!(header(b"P5 3 2 255\nabc"), (layout(3, 2, 1), b"abc".to_vec()));
    }

    /// Headers that lie or make no sense are refused.
    #[test]
    fn wrong_headers_are_refused() {
        for wrong in [
            &b""[..],
            b"P7\n",
            b"P6\n3 2\n65535\n",
            b"P4\n3 2\n",
            b"P6\n0 2\n255\n",
            b"P6\n8193 2\n255\n",
            b"P7\nWIDTH 3\nHEIGHT 2\nDEPTH 5\nMAXVAL 255\nENDHDR\n",
            b"P7\nWIDTH -3\n",
            b"P6 1 1 255 9\n",
            b"P7\nWIDTH 3\nHEIGHT 2\nDEPTH 4\nMAXVAL 1\nENDHDR\n",
            b"P7\nENDHDR\n",
        ] {
            assert_eq!(header(wrong).0, None, "{wrong:?}");
        }
        assert_eq!(header(&b"P7\n# x\n".repeat(200)).0, None);
    }

    /// Any header is survived.
    #[test]
    fn any_header_is_survived() {
        let mut random = Generator::new(65);
        for _ in 0..2_000 {
            let length = random.below(60);
            let rest: Vec<u8> = (0..length).map(|_| *random.pick(b"WIDTH 129\n#EPNDR")).collect();
            header(&[random.pick(&[&b"P7\n"[..], b"P6 ", b"P5\n"]), &rest[..]].concat());
        }
    }

    /// Each depth becomes four bytes a pixel.
    #[test]
    fn depths() {
        let mut row = Vec::new();
        for (depth, expected) in [
            (1, &b"\x01\x01\x01\xff\x02\x02\x02\xff"[..]),
            (2, b"\x01\x01\x01\x02"),
            (3, b"\x01\x02\x03\xff"),
        ] {
            to_rgba(&[1, 2, 3][..depth.max(2)], depth, &mut row);
            assert_eq!(row, expected);
        }
    }
}
