//! The line that a caller of service `qubes.GetImageRGBA` sends.

use alloc::vec::Vec;

use crate::image::format::Format;

/// Longer lines are refused.
pub const LONGEST: usize = 4096;

/// What picture is wanted.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// A file of this qube, by its absolute path.
    File(Vec<u8>),
    /// An icon of this qube, by its name in the theme.
    Icon(Vec<u8>),
    /// The picture that follows the line, of the kind that is named or that its content tells.
    Stream(Option<Format>),
}

impl Request {
    /// Read the line.
    pub fn parse(untrusted_line: &[u8]) -> Option<Self> {
        if untrusted_line == b"-" {
            return Some(Self::Stream(None));
        }
        if let Some(format) = untrusted_line.strip_suffix(b":-") {
            return Format::named(format).map(|format| Self::Stream(Some(format)));
        }
        if let Some(name) = untrusted_line.strip_prefix(b"xdgicon:") {
            let right = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
            let is_name = (1..=200).contains(&name.len()) && name[0] != b'.' && name.iter().all(right);
            return is_name.then(|| Self::Icon(name.to_vec()));
        }
        (untrusted_line.starts_with(b"/") && !untrusted_line.contains(&0))
            .then(|| Self::File(untrusted_line.to_vec()))
    }
}

/// Where an icon may lie, the best first: larger pictures are made smaller without loss, not the other
/// way round.
pub fn icon_paths(bases: &[Vec<u8>], name: &[u8]) -> Vec<Vec<u8>> {
    const PLACES: [&[u8]; 12] = [
        b"icons/hicolor/256x256/apps",
        b"icons/hicolor/128x128/apps",
        b"icons/hicolor/96x96/apps",
        b"icons/hicolor/64x64/apps",
        b"icons/hicolor/48x48/apps",
        b"icons/hicolor/scalable/apps",
        b"icons/hicolor/32x32/apps",
        b"icons/hicolor/512x512/apps",
        b"icons/Adwaita/48x48/legacy",
        b"icons/Adwaita/scalable/apps",
        b"pixmaps",
        b"icons",
    ];
    const ENDINGS: [&[u8]; 3] = [b".png", b".svg", b".xpm"];
    let mut paths = Vec::new();
    for place in PLACES {
        for base in bases {
            paths.extend(ENDINGS.iter().map(|ending| [&base[..], b"/", place, b"/", name, ending].concat()));
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    /// The four kinds of requests.
    #[test]
    fn requests() {
        assert_eq!(Request::parse(b"-"), Some(Request::Stream(None)));
        assert_eq!(Request::parse(b"jpg:-"), Some(Request::Stream(Some(Format::Jpeg))));
        assert_eq!(Request::parse(b"/a b:c"), Some(Request::File(b"/a b:c".to_vec())));
        assert_eq!(Request::parse(b"xdgicon:org.x"), Some(Request::Icon(b"org.x".to_vec())));
    }

    /// Converters' syntax, options and paths in names are no requests (QSB-038, QSB-051, QSB-071).
    #[test]
    fn wrong_requests_are_refused() {
        for wrong in [
            &b""[..],
            b"a.png",
            b"../a",
            b"-size",
            b"--",
            b"msl:-",
            b"ephemeral:-",
            b"@/etc/passwd:-",
            b":-",
            b"png:/etc/passwd",
            b"xdgicon:",
            b"xdgicon:../x",
            b"xdgicon:a/b",
            b"xdgicon:.x",
            b"http://x",
            b"/a\0b",
        ] {
            assert_eq!(Request::parse(wrong), None, "{wrong:?}");
        }
        let mut random = Generator::new(64);
        for _ in 0..20_000 {
            let length = random.below(16);
            let line: Vec<u8> = (0..length).map(|_| *random.pick(b"xdgicon:png-/.@\0")).collect();
            if let Some(Request::Icon(name)) = Request::parse(&line) {
                assert!(icon_paths(&[b"/b".to_vec()], &name)
                    .iter()
                    .all(|path| !path.windows(2).any(|two| two == b"..")
                        || name.windows(2).any(|two| two == b"..")));
                assert!(!name.contains(&b'/'));
            }
        }
    }
}
