//! Whole reads and writes on descriptors that block, always with a bound.

use alloc::vec::Vec;

use rustix::fd::AsFd;
use rustix::io::Errno;

/// What one read takes at most.
const CHUNK: usize = 64 * 1024;

/// Why bytes did not come through.
#[derive(Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There were more than the bound.
    TooMuch,
    /// The source failed.
    Reading(Errno),
    /// The sink failed.
    Writing(Errno),
}

/// A line as it came, without its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A whole line, or what stood before the end of the stream.
    Whole(Vec<u8>),
    /// The line was longer than the bound; what was read of it is here.
    TooLong(Vec<u8>),
    /// The stream has ended.
    End,
}

/// Read once, again where a signal came between; 0 at the end.
pub fn read(fd: impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match rustix::io::read(fd.as_fd(), &mut *buffer) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Write all of `bytes`.
pub fn write_all(fd: impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(fd.as_fd(), bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fill `buffer`; the number of bytes, which is smaller only at the end of the stream.
pub fn read_full(fd: impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    let mut used = 0;
    while used < buffer.len() {
        match read(fd.as_fd(), &mut buffer[used..])? {
            0 => break,
            count => used += count,
        }
    }
    Ok(used)
}

/// Read to the end of the stream, `limit` bytes at most.
pub fn read_to_end(fd: impl AsFd, limit: usize) -> Result<Vec<u8>, Trouble> {
    let mut found = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match read(fd.as_fd(), &mut piece).map_err(Trouble::Reading)? {
            0 => return Ok(found),
            count if count > limit - found.len() => return Err(Trouble::TooMuch),
            count => found.extend_from_slice(&piece[..count]),
        }
    }
}

/// Read up to the end of a line and not a byte further, so that the rest is there for others.
pub fn read_line(fd: impl AsFd, limit: usize) -> Result<Line, Errno> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match read(fd.as_fd(), &mut byte)? {
            0 if line.is_empty() => return Ok(Line::End),
            0 => return Ok(Line::Whole(line)),
            _ if byte[0] == b'\n' => return Ok(Line::Whole(line)),
            _ if line.len() == limit => return Ok(Line::TooLong(line)),
            _ => line.push(byte[0]),
        }
    }
}

/// Copy to the end of the stream, `limit` bytes at most; the number of bytes.
pub fn copy(from: impl AsFd, to: impl AsFd, limit: u64) -> Result<u64, Trouble> {
    let mut buffer = alloc::vec![0; CHUNK];
    let mut copied = 0;
    loop {
        let count = read(from.as_fd(), &mut buffer).map_err(Trouble::Reading)?;
        if count == 0 {
            return Ok(copied);
        }
        if count as u64 > limit - copied {
            return Err(Trouble::TooMuch);
        }
        write_all(to.as_fd(), &buffer[..count]).map_err(Trouble::Writing)?;
        copied += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};
    use rustix::pipe::pipe;

    fn stream(content: &[u8]) -> rustix::fd::OwnedFd {
        let (reader, writer) = pipe().unwrap();
        write_all(&writer, content).unwrap();
        reader
    }

    /// A bound is met exactly: what fits comes whole, one byte more is an error.
    #[test]
    fn bounds_are_exact() {
        let content = [7_u8; 5000];
        assert_eq!(read_to_end(stream(&content), 5000), Ok(content.to_vec()));
        assert_eq!(read_to_end(stream(&content), 4999), Err(Trouble::TooMuch));
        let (reader, writer) = pipe().unwrap();
        assert_eq!(copy(stream(&content), &writer, 5000), Ok(5000));
        assert_eq!(copy(stream(&content), &writer, 4999), Err(Trouble::TooMuch));
        drop(writer);
        assert_eq!(read_to_end(&reader, 9999).unwrap().len(), 5000);
        assert_eq!(read_full(stream(b"abc"), &mut [0; 9]), Ok(3));
    }

    /// An endless stream ends at the bound.
    #[test]
    fn endless_streams_are_cut() {
        let open = |path: &str| rustix::fs::open(path, OFlags::RDWR, Mode::empty()).unwrap();
        let (zero, null) = (open("/dev/zero"), open("/dev/null"));
        assert_eq!(read_to_end(&zero, 1 << 20), Err(Trouble::TooMuch));
        assert_eq!(copy(&zero, &null, 1 << 20), Err(Trouble::TooMuch));
        assert!(matches!(read_line(&zero, 100).unwrap(), Line::TooLong(line) if line.len() == 100));
    }

    /// Nothing behind a line is read; the last line needs no end.
    #[test]
    fn lines_leave_the_rest() {
        let reader = stream(b"ab\n\nrest");
        assert_eq!(read_line(&reader, 2), Ok(Line::Whole(b"ab".to_vec())));
        assert_eq!(read_line(&reader, 2), Ok(Line::Whole(b"".to_vec())));
        assert_eq!(read_line(&reader, 4), Ok(Line::Whole(b"rest".to_vec())));
        assert_eq!(read_line(&reader, 4), Ok(Line::End));
    }
}
