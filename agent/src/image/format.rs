//! Kinds of pictures. A kind is one of this list before any converter hears of it: a converter that
//! guesses would also take programs, scripts and addresses for pictures.

/// Bytes that are enough to tell a kind by its content.
pub const TELLING: usize = 512;

/// A kind of picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Portable Network Graphics.
    Png,
    /// JPEG.
    Jpeg,
    /// GIF.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF.
    Tiff,
    /// WebP.
    Webp,
    /// Scalable Vector Graphics.
    Svg,
    /// Windows icon.
    Ico,
    /// X pixmap.
    Xpm,
    /// Netpbm: PPM, PGM, PAM.
    Netpbm,
}

impl Format {
    /// By its usual name or file ending, in any case.
    pub fn named(untrusted_name: &[u8]) -> Option<Self> {
        const LONGEST: usize = 4;
        let mut lower = [0; LONGEST];
        let lower = lower.get_mut(..untrusted_name.len())?;
        lower.copy_from_slice(untrusted_name);
        lower.make_ascii_lowercase();
        Some(match &*lower {
            b"png" => Self::Png,
            b"jpg" | b"jpeg" => Self::Jpeg,
            b"gif" => Self::Gif,
            b"bmp" => Self::Bmp,
            b"tif" | b"tiff" => Self::Tiff,
            b"webp" => Self::Webp,
            b"svg" => Self::Svg,
            b"ico" => Self::Ico,
            b"xpm" => Self::Xpm,
            b"ppm" | b"pgm" | b"pnm" | b"pam" => Self::Netpbm,
            _ => return None,
        })
    }

    /// By the first bytes of a file.
    pub fn of_content(head: &[u8]) -> Option<Self> {
        const MAGIC: [(&[u8], Format); 13] = [
            (b"\x89PNG\r\n\x1a\n", Format::Png),
            (b"\xff\xd8\xff", Format::Jpeg),
            (b"GIF87a", Format::Gif),
            (b"GIF89a", Format::Gif),
            (b"BM", Format::Bmp),
            (b"II*\0", Format::Tiff),
            (b"MM\0*", Format::Tiff),
            (b"\0\0\x01\0", Format::Ico),
            (b"/* XPM */", Format::Xpm),
            (b"P5", Format::Netpbm),
            (b"P6", Format::Netpbm),
            (b"P7", Format::Netpbm),
            (b"<svg", Format::Svg),
        ];
        if let Some((_, format)) = MAGIC.iter().find(|(magic, _)| head.starts_with(magic)) {
            return Some(*format);
        }
        if head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WEBP") {
            return Some(Self::Webp);
        }
        let marked =
            head.starts_with(b"<?xml") || head.starts_with(b"<!--") || head.starts_with(b"<!DOCTYPE svg");
        (marked && head.windows(4).any(|four| four == b"<svg")).then_some(Self::Svg)
    }

    /// What ImageMagick and GraphicsMagick call it; without a name they would guess.
    pub fn coder(self) -> &'static [u8] {
        match self {
            Self::Png => b"PNG",
            Self::Jpeg => b"JPEG",
            Self::Gif => b"GIF",
            Self::Bmp => b"BMP",
            Self::Tiff => b"TIFF",
            Self::Webp => b"WEBP",
            Self::Svg => b"SVG",
            Self::Ico => b"ICO",
            Self::Xpm => b"XPM",
            Self::Netpbm => b"PNM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    /// Names of pictures are known, those of a converter's other talents are not (QSB-051, QSB-071).
    #[test]
    fn names() {
        assert_eq!(Format::named(b"PNG"), Some(Format::Png));
        assert_eq!(Format::named(b"jpeg"), Some(Format::Jpeg));
        for wrong in [
            &b""[..],
            b"msl",
            b"mvg",
            b"ephemeral",
            b"https",
            b"@file",
            b"-write",
            b"png:x",
            b"inline",
            b"text",
            b"label",
            b"vid",
            b"pdf",
            b"ps",
            b"eps",
            b"fd",
            b"rgba",
            b"\0\0\0",
            b"|id",
        ] {
            assert_eq!(Format::named(wrong), None, "{wrong:?}");
        }
    }

    /// The content tells the kind; scripts and documents have none.
    #[test]
    fn contents() {
        assert_eq!(Format::of_content(b"RIFF\x10\0\0\0WEBPVP8 "), Some(Format::Webp));
        assert_eq!(Format::of_content(b"<?xml version='1.0'?>\n<svg>"), Some(Format::Svg));
        for wrong in [
            &b""[..],
            b"#!/bin/sh",
            b"%!PS",
            b"%PDF-1.4",
            b"<?xml?><image>",
            b"push graphic-context",
            b"RIFF",
        ] {
            assert_eq!(Format::of_content(wrong), None, "{wrong:?}");
        }
        let mut random = Generator::new(63);
        for _ in 0..20_000 {
            let length = random.below(20);
            let _ = Format::of_content(&random.bytes(length));
            let _ = Format::named(&random.bytes(length));
        }
    }
}
