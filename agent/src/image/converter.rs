//! Programs that turn a picture into a PAM, and how each is called.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::image::format::Format;
use crate::program;
use crate::text::c_string;

/// What a converter writes to its stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// A PGM, PPM or PAM.
    Netpbm,
    /// A PNG.
    Png,
}

/// A command line that converts one file.
#[derive(Debug, PartialEq, Eq)]
pub struct Converter {
    /// The program and its arguments.
    pub command: Vec<CString>,
    /// What comes out.
    pub written: Written,
}

/// The first installed program that reads this kind; `path` is absolute and of our own making.
pub fn find(format: Format, path: &[u8], environment: &[&CStr]) -> Option<Converter> {
    candidates(format, path)
        .into_iter()
        .find(|one| program::installed(one.command[0].to_bytes(), environment))
}

fn candidates(format: Format, path: &[u8]) -> Vec<Converter> {
    let converter = |written, words: &[&[u8]]| Converter {
        command: words.iter().map(|word| c_string(&[word])).collect(),
        written,
    };
    if format == Format::Svg {
        // Others would follow references out of the file.
        return alloc::vec![converter(Written::Png, &[b"rsvg-convert", b"--format=png", path])];
    }
    // The kind is forced, so that neither content nor name chooses another; `[0]` is the first picture.
    let input = [format.coder(), b":", path, b"[0]"].concat();
    let magick = |program: &'static [u8]| {
        let limits: [&[u8]; 18] = [
            b"-limit", b"time", b"60", b"-limit", b"memory", b"1GiB", b"-limit", b"map", b"1GiB", b"-limit",
            b"disk", b"0", b"-limit", b"width", b"16KP", b"-limit", b"height", b"16KP",
        ];
        let output: [&[u8]; 7] = [b"-colorspace", b"sRGB", b"-alpha", b"set", b"-depth", b"8", b"PAM:-"];
        let kind: [&[u8]; 2] = [b"-type", b"TrueColorAlpha"];
        let words = [&[program][..], &limits, &[&input[..]], &kind, &output].concat();
        converter(Written::Netpbm, &words)
    };
    let mut found = alloc::vec![magick(b"magick"), magick(b"convert")];
    let gm: [&[u8]; 6] = [b"gm", b"convert", &input, b"-depth", b"8", b"PAM:-"];
    found.push(converter(Written::Netpbm, &gm));
    let netpbm: &[&[u8]] = match format {
        Format::Png => &[b"pngtopam", b"-alphapam", path],
        Format::Jpeg => &[b"jpegtopnm", path],
        Format::Gif => &[b"giftopnm", path],
        Format::Bmp => &[b"bmptopnm", path],
        Format::Tiff => &[b"tifftopnm", path],
        Format::Webp => &[b"dwebp", b"-pam", b"-o", b"-", path],
        Format::Xpm => &[b"xpmtoppm", path],
        Format::Ico | Format::Svg | Format::Netpbm => &[],
    };
    if !netpbm.is_empty() {
        found.push(converter(Written::Netpbm, netpbm));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Format; 10] = [
        Format::Png,
        Format::Jpeg,
        Format::Gif,
        Format::Bmp,
        Format::Tiff,
        Format::Webp,
        Format::Svg,
        Format::Ico,
        Format::Xpm,
        Format::Netpbm,
    ];

    /// A converter is given one file of a named kind, never a name that it would take for an option,
    /// a list of files or another coder (QSB-051, QSB-071).
    #[test]
    fn converters_do_not_guess() {
        for format in ALL {
            for Converter { command, .. } in candidates(format, b"/tmp/work-AAAAAA/image") {
                let words: Vec<&[u8]> = command.iter().map(|word| word.to_bytes()).collect();
                let named: Vec<&&[u8]> =
                    words.iter().filter(|word| word.windows(5).any(|w| w == b"image")).collect();
                assert_eq!(named.len(), 1, "{command:?}");
                let magick = [&b"magick"[..], b"convert", b"gm"].contains(&words[0]);
                let start = if magick { [format.coder(), b":/tmp/"].concat() } else { b"/tmp/".to_vec() };
                assert!(named[0].starts_with(&start), "{command:?}");
                assert!(words.iter().all(|word| !word.starts_with(b"@")));
            }
        }
    }
}
