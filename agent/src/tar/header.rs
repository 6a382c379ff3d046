//! One block of a tar archive (POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar's numbers and
//! long names). Pure.

use alloc::format;
use alloc::vec::Vec;

/// Length of a block; content is padded to it.
pub const BLOCK: usize = 512;

/// What a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// Records (pax) about the next member.
    Records,
    /// Records about all that follow.
    GlobalRecords,
    /// The name of the next member (GNU).
    LongName,
    /// The link target of the next member (GNU).
    LongTarget,
    /// Something that cannot be copied.
    Other(u8),
}

/// A header that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Type,
    /// Its name, as written.
    pub name: Vec<u8>,
    /// Its link target, as written.
    pub target: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Bytes that follow.
    pub size: u64,
    /// Seconds since 1970.
    pub modified: u64,
}

/// What a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Block {
    /// Zeros: the end of the archive.
    End,
    /// A header.
    Header(Header),
    /// Nothing that an archive contains.
    Malformed,
}

/// A field that ends at its first NUL, or is full.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or(b"")
}

/// A number: octal, with blanks around; or, with the highest bit set, big-endian binary.
fn number(field: &[u8]) -> Option<u64> {
    match field.split_first()? {
        (&first @ 0x80..=0xbf, rest) => {
            let start = u64::from(first & 0x3f);
            rest.iter()
                .try_fold(start, |value, &byte| (value >> 56 == 0).then_some(value << 8 | u64::from(byte)))
        }
        (0xc0..=0xff, _) => None, // negative
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_blank(byte)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(is_blank).unwrap_or(digits.len());
    if !digits[end..].iter().all(is_blank) {
        return None;
    }
    digits[..end].iter().try_fold(0_u64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// The sum of all bytes, with blanks in the place of the sum itself.
fn checksum(block: &[u8; BLOCK]) -> u64 {
    let all: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    let own: u64 = block[148..156].iter().map(|&byte| u64::from(byte)).sum();
    all - own + 8 * u64::from(b' ')
}

/// Give a block the checksum that makes a header of it.
pub fn seal(block: &mut [u8; BLOCK]) {
    let sum = checksum(block);
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Read a block.
pub fn parse(block: &[u8; BLOCK]) -> Block {
    if block.iter().all(|&byte| byte == 0) {
        return Block::End;
    }
    match header(block) {
        Some(header) => Block::Header(header),
        None => Block::Malformed,
    }
}

fn header(block: &[u8; BLOCK]) -> Option<Header> {
    if number(&block[148..156])? != checksum(block) {
        return None;
    }
    let posix = &block[257..263] == b"ustar\0";
    let mut name = Vec::new();
    if posix && block[345] != 0 {
        name.extend_from_slice(text(&block[345..500]));
        name.push(b'/');
    }
    name.extend_from_slice(text(&block[..100]));
    let kind = match block[156] {
        // Before POSIX a directory was a file whose name ends with a slash; later the name of a file
        // may be cut there.
        b'0' | 0 if &block[257..262] != b"ustar" && name.ends_with(b"/") => Type::Directory,
        b'0' | 0 | b'7' => Type::File,
        b'5' => Type::Directory,
        b'2' => Type::Link,
        b'x' => Type::Records,
        b'g' => Type::GlobalRecords,
        b'L' => Type::LongName,
        b'K' => Type::LongTarget,
        other => Type::Other(other),
    };
    Some(Header {
        kind,
        name,
        target: text(&block[157..257]).to_vec(),
        mode: (number(&block[100..108])? & 0o7777) as u32,
        size: number(&block[124..136])?,
        // A time before 1970 is none that a stream can carry.
        modified: number(&block[136..148]).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    /// A header block with a right checksum.
    fn block(name: &[u8], kind: u8, size: u64) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name);
        block[100..107].copy_from_slice(b"0000644");
        block[124..135].copy_from_slice(std::format!("{size:011o}").as_bytes());
        block[136..147].copy_from_slice(b"07777777777");
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        seal(&mut block);
        block
    }

    /// The fields of a header, with the prefix of a long name.
    #[test]
    fn fields() {
        let mut block = block(b"f", b'0', 0o1234);
        let Block::Header(header) = parse(&block) else { panic!() };
        assert_eq!((header.kind, &header.name[..], header.size), (Type::File, &b"f"[..], 0o1234));
        assert_eq!((header.mode, header.modified), (0o644, 0o7777777777));
        block[345..348].copy_from_slice(b"a/b");
        seal(&mut block);
        let Block::Header(header) = parse(&block) else { panic!() };
        assert_eq!(header.name, b"a/b/f");
        block[0] ^= 1;
        assert_eq!(parse(&block), Block::Malformed);
        assert_eq!(parse(&[0; BLOCK]), Block::End);
    }

    /// Octal and binary numbers; what is negative, too large or no number is refused.
    #[test]
    fn numbers() {
        for (field, value) in [
            (&b"0000644\0"[..], 0o644),
            (b"    644 ", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"77777777", 0o77_777_777),
            (b"\x80\0\0\0\0\0\x01\x02", 0x102),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", u64::MAX),
        ] {
            assert_eq!(number(field), Some(value), "{field:?}");
        }
        for wrong in [
            &b"8"[..],
            b"-1",
            b"1 1",
            b"\xff\xff\xff\xff",
            b"\x81\0\0\0\0\0\0\0\0\0\0\0",
            b"7777777777777777777777777",
            b"",
        ] {
            assert_eq!(number(wrong), None, "{wrong:?}");
        }
    }

    /// No block makes the parser panic, sealed or not.
    #[test]
    fn any_block_is_survived() {
        let mut random = Generator::new(512);
        for _ in 0..5_000 {
            let mut block = block(b"name", b'0', 1);
            for _ in 0..random.below(20) {
                block[random.below(BLOCK)] = random.below(256) as u8;
            }
            parse(&block);
            seal(&mut block);
            parse(&block);
        }
    }
}
