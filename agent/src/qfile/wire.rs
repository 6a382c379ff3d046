//! The bytes of a qfile stream (fact sheet qrexec, 6.1): headers of entries and the result. Pure.

use alloc::vec::Vec;

use super::codes;

/// Length of the header of an entry.
pub const HEADER: usize = 32;
/// Length of a result without the name that may follow it.
pub const RESULT: usize = 16;
/// A name with its NUL is shorter than this.
pub const LONGEST_NAME: u32 = 16_384;
const MOST_NANOSECONDS: u32 = 999_999_999;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its content follows.
    File,
    /// A directory; nothing follows.
    Directory,
    /// A symbolic link; its target follows.
    Link,
}

/// The bits of `st_mode` that say what a file is.
const TYPE: u32 = 0o170_000;

impl Kind {
    /// What the type bits of a mode say; `None` for what cannot be copied.
    pub fn of_mode(mode: u32) -> Option<Self> {
        match mode & TYPE {
            0o100_000 => Some(Self::File),
            0o040_000 => Some(Self::Directory),
            0o120_000 => Some(Self::Link),
            _ => None,
        }
    }

    /// The type bits of a mode.
    pub fn bits(self) -> u32 {
        match self {
            Self::File => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Link => 0o120_000,
        }
    }
}

/// A moment, as files have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since 1970.
    pub seconds: u32,
    /// Nanoseconds within the second.
    pub nanoseconds: u32,
}

/// The header of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the name that follows, its NUL included.
    pub name_length: u32,
    /// `st_mode`, type bits included.
    pub mode: u32,
    /// Bytes that follow the name, unless it is a directory.
    pub length: u64,
    /// When it was last read.
    pub accessed: Moment,
    /// When it was last written.
    pub modified: Moment,
}

/// What the next 32 bytes of a stream are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// An entry begins.
    Entry(Header),
    /// All was sent.
    End,
    /// The name is too long to be read.
    NameTooLong,
    /// A time that is none: such a stream gets no result.
    WrongTime,
}

fn number(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Next {
    /// Read a header. A name of no length is the end, whatever the other fields say.
    pub fn parse(bytes: &[u8; HEADER]) -> Self {
        let name_length = number(bytes, 0);
        if name_length == 0 {
            return Self::End;
        }
        if name_length >= LONGEST_NAME {
            return Self::NameTooLong;
        }
        let moment = |at| Moment { seconds: number(bytes, at), nanoseconds: number(bytes, at + 4) };
        let header = Header {
            name_length,
            mode: number(bytes, 4),
            length: u64::from(number(bytes, 8)) | u64::from(number(bytes, 12)) << 32,
            accessed: moment(16),
            modified: moment(24),
        };
        if header.accessed.nanoseconds.max(header.modified.nanoseconds) > MOST_NANOSECONDS {
            return Self::WrongTime;
        }
        Self::Entry(header)
    }
}

impl Header {
    /// The bytes of the header.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.name_length.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.mode.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.length.to_le_bytes());
        for (at, moment) in [(16, self.accessed), (24, self.modified)] {
            bytes[at..at + 4].copy_from_slice(&moment.seconds.to_le_bytes());
            bytes[at + 4..at + 8].copy_from_slice(&moment.nanoseconds.to_le_bytes());
        }
        bytes
    }
}

/// The header that ends a stream.
pub const END: [u8; HEADER] = [0; HEADER];

/// What the receiver answers, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// 0, or an error number of Linux, or `codes::SENDER_ENDED`.
    pub code: u32,
    /// CRC-32 of every byte that was read.
    pub checksum: u64,
    /// The last name that was read; empty where the receiver does not say.
    pub last_name: Vec<u8>,
}

impl Outcome {
    /// The bytes of the result, with the name.
    pub fn encode(&self) -> Vec<u8> {
        let name = &self.last_name[..self.last_name.len().min(LONGEST_NAME as usize)];
        let mut bytes = Vec::with_capacity(RESULT + 4 + name.len());
        bytes.extend_from_slice(&self.code.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.checksum.to_le_bytes());
        bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
        bytes.extend_from_slice(name);
        bytes
    }

    /// Read the first 16 bytes of a result.
    pub fn parse(bytes: &[u8; RESULT]) -> Self {
        let (mut code, mut checksum) = ([0; 4], [0; 8]);
        code.copy_from_slice(&bytes[..4]);
        checksum.copy_from_slice(&bytes[8..]);
        let code = u32::from_le_bytes(code);
        Self {
            // Some receivers negate the error of a directory's bad name.
            code: if code > i32::MAX as u32 { code.wrapping_neg() } else { code },
            checksum: u64::from_le_bytes(checksum),
            last_name: Vec::new(),
        }
    }

    /// True where the receiver has everything.
    pub fn is_success(&self, own_checksum: u32) -> bool {
        self.code == codes::DONE && self.checksum == u64::from(own_checksum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    /// Every header survives the round, and its fields lie where the sheet says.
    #[test]
    fn headers_survive_the_round() {
        let mut random = Generator::new(61);
        for _ in 0..10_000 {
            let moment = Moment {
                seconds: random.below(1 << 31) as u32,
                nanoseconds: random.below(1_000_000_000) as u32,
            };
            let header = Header {
                name_length: 1 + random.below(LONGEST_NAME as usize - 1) as u32,
                mode: random.below(1 << 31) as u32,
                length: (random.below(1 << 31) as u64) << random.below(33),
                accessed: moment,
                modified: Moment { seconds: random.below(1 << 31) as u32, ..moment },
            };
            assert_eq!(Next::parse(&header.encode()), Next::Entry(header));
        }
        let bytes: [u8; HEADER] = core::array::from_fn(|at| at as u8 % 16);
        let Next::NameTooLong = Next::parse(&bytes) else { panic!() };
        let mut bytes = bytes;
        bytes[..4].copy_from_slice(&[5, 0, 0, 0]);
        let Next::Entry(header) = Next::parse(&bytes) else { panic!() };
        assert_eq!((header.mode, header.length), (0x0706_0504, 0x0f0e_0d0c_0b0a_0908));
        assert_eq!((header.accessed.seconds, header.accessed.nanoseconds), (0x0302_0100, 0x0706_0504));
        assert_eq!((header.modified.seconds, header.modified.nanoseconds), (0x0b0a_0908, 0x0f0e_0d0c));
    }

    /// The end, names out of bounds and times that are none are told apart.
    #[test]
    fn borders() {
        assert_eq!(Next::parse(&END), Next::End);
        let entry = |name_length, nanoseconds| {
            let at = Moment { seconds: 1, nanoseconds };
            Header { name_length, mode: 0, length: u64::MAX, accessed: at, modified: at }
        };
        assert!(matches!(Next::parse(&entry(16_383, 999_999_999).encode()), Next::Entry(_)));
        assert_eq!(Next::parse(&entry(16_384, 0).encode()), Next::NameTooLong);
        assert_eq!(Next::parse(&entry(u32::MAX, 0).encode()), Next::NameTooLong);
        assert_eq!(Next::parse(&entry(1, 1_000_000_000).encode()), Next::WrongTime);
        assert_eq!(Next::parse(&entry(0, u32::MAX).encode()), Next::End);
    }

    /// A result survives the round; a negated error number is set right.
    #[test]
    fn results_survive_the_round() {
        let outcome = Outcome { code: 17, checksum: 0xdead_beef, last_name: b"a/b".to_vec() };
        let bytes = outcome.encode();
        assert_eq!(bytes, b"\x11\0\0\0\0\0\0\0\xef\xbe\xad\xde\0\0\0\0\x03\0\0\0a/b");
        let mut head = [0; RESULT];
        head.copy_from_slice(&bytes[..RESULT]);
        assert_eq!(Outcome::parse(&head), Outcome { last_name: Vec::new(), ..outcome });
        head[..4].copy_from_slice(&4_294_967_212_u32.to_le_bytes());
        assert_eq!(Outcome::parse(&head).code, codes::BAD_NAME);
        let long = Outcome { code: 0, checksum: 0, last_name: std::vec![b'x'; 20_000] };
        assert_eq!(long.encode().len(), RESULT + 4 + 16_384);
    }

    /// Only the right checksum with no error is a success.
    #[test]
    fn success_needs_the_checksum() {
        let outcome = |code, checksum| Outcome { code, checksum, last_name: Vec::new() };
        assert!(outcome(0, 7).is_success(7));
        assert!(!outcome(0, 8).is_success(7));
        assert!(!outcome(0, 7 | 1 << 32).is_success(7));
        assert!(!outcome(17, 7).is_success(7));
    }

    /// File types and their bits.
    #[test]
    fn kinds() {
        for kind in [Kind::File, Kind::Directory, Kind::Link] {
            assert_eq!(Kind::of_mode(kind.bits() | 0o7777), Some(kind));
        }
        for other in [0o010_000, 0o020_000, 0o060_000, 0o140_000, 0, 0o170_000] {
            assert_eq!(Kind::of_mode(other | 0o644), None);
        }
    }
}
