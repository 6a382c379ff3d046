//! PNG files (W3C Recommendation, second edition): writing one from plain pixels, and reading one
//! into them.

use alloc::boxed::Box;
use alloc::vec::Vec;

use miniz_oxide::deflate::core::{compress_to_output, CompressorOxide, TDEFLFlush, TDEFLStatus};
use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;
use miniz_oxide::DataFormat;
use rustix::fd::AsFd;
use rustix::io::Errno;

use crate::flow;
use crate::image::size::{Size, LARGEST, PIXEL};

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
/// Compressed bytes that go into one chunk, about.
const CHUNK: usize = 64 * 1024;
/// Of ten; more would cost more time than bytes.
const EFFORT: u8 = 4;

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut value = at as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
            bit += 1;
        }
        table[at] = value;
        at += 1;
    }
    table
};

fn crc(parts: [&[u8]; 2]) -> u32 {
    let step = |crc: u32, byte: &u8| CRC_TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8);
    !parts.iter().flat_map(|part| part.iter()).fold(u32::MAX, step)
}

/// Writes a file row by row.
pub struct Writer<F> {
    to: F,
    compressor: Box<CompressorOxide>,
    pending: Vec<u8>,
    filtered: Vec<u8>,
}

impl<F: AsFd> Writer<F> {
    /// Begin a file.
    pub fn new(to: F, size: Size) -> Result<Self, Errno> {
        let mut compressor = Box::<CompressorOxide>::default();
        compressor.set_format_and_level(DataFormat::Zlib, EFFORT);
        let writer = Self { to, compressor, pending: Vec::new(), filtered: Vec::new() };
        flow::write_all(&writer.to, SIGNATURE)?;
        // Eight bits, colour and opacity, the one compression, the one filter method, not interlaced.
        let mut header = [0, 0, 0, 0, 0, 0, 0, 0, 8, 6, 0, 0, 0];
        header[..4].copy_from_slice(&size.width.to_be_bytes());
        header[4..8].copy_from_slice(&size.height.to_be_bytes());
        writer.chunk(b"IHDR", &header)?;
        Ok(writer)
    }

    /// Add a row of pixels.
    pub fn row(&mut self, pixels: &[u8]) -> Result<(), Errno> {
        /// Each byte less its neighbour on the left, which compresses better.
        const SUB: u8 = 1;
        self.filtered.clear();
        self.filtered.push(SUB);
        let left = core::iter::repeat(&0).take(PIXEL).chain(pixels);
        self.filtered.extend(pixels.iter().zip(left).map(|(byte, left)| byte.wrapping_sub(*left)));
        self.compress(TDEFLFlush::None)?;
        if self.pending.len() >= CHUNK {
            self.flush()?;
        }
        Ok(())
    }

    /// End the file.
    pub fn finish(mut self) -> Result<(), Errno> {
        self.filtered.clear();
        self.compress(TDEFLFlush::Finish)?;
        self.flush()?;
        self.chunk(b"IEND", b"")
    }

    fn compress(&mut self, flush: TDEFLFlush) -> Result<(), Errno> {
        let pending = &mut self.pending;
        let (status, _) = compress_to_output(&mut self.compressor, &self.filtered, flush, |bytes| {
            pending.extend_from_slice(bytes);
            true
        });
        match status {
            TDEFLStatus::Okay | TDEFLStatus::Done => Ok(()),
            _ => Err(Errno::IO),
        }
    }

    fn flush(&mut self) -> Result<(), Errno> {
        let pending = core::mem::take(&mut self.pending);
        self.chunk(b"IDAT", &pending)
    }

    fn chunk(&self, kind: &[u8; 4], data: &[u8]) -> Result<(), Errno> {
        flow::write_all(&self.to, &(data.len() as u32).to_be_bytes())?;
        flow::write_all(&self.to, kind)?;
        flow::write_all(&self.to, data)?;
        flow::write_all(&self.to, &crc([kind, data]).to_be_bytes())
    }
}

/// What a file says before its pixels.
#[derive(Default)]
struct Header<'a> {
    width: u64,
    height: u64,
    bits: usize,
    kind: u8,
    palette: &'a [u8],
    transparent: &'a [u8],
}

impl Header<'_> {
    /// Samples of a pixel.
    fn samples(&self) -> Option<usize> {
        let (samples, depths): (usize, &[usize]) = match self.kind {
            0 => (1, &[1, 2, 4, 8, 16]),
            2 => (3, &[8, 16]),
            3 => (1, &[1, 2, 4, 8]),
            4 => (2, &[8, 16]),
            6 => (4, &[8, 16]),
            _ => return None,
        };
        depths.contains(&self.bits).then_some(samples)
    }
}

/// Read a file into rows of red, green, blue and opacity; `None` where it is damaged, too large or
/// interlaced, which only real converters read.
pub fn read(file: &[u8]) -> Option<(Size, Vec<u8>)> {
    let mut rest = file.strip_prefix(SIGNATURE)?;
    let mut header: Option<Header<'_>> = None;
    let mut compressed = Vec::new();
    loop {
        let (kind, data, after) = next_chunk(rest)?;
        rest = after;
        match (kind, &mut header) {
            (b"IHDR", None) => header = Some(read_header(data)?),
            (_, None) => return None,
            (b"PLTE", Some(header)) => header.palette = data,
            (b"tRNS", Some(header)) => header.transparent = data,
            (b"IDAT", Some(_)) => compressed.extend_from_slice(data),
            (b"IEND", Some(_)) => break,
            // Small letter: may be left out.
            ([first, ..], Some(_)) if first.is_ascii_uppercase() => return None,
            _ => {}
        }
    }
    unpack(&header?, &compressed)
}

fn next_chunk(rest: &[u8]) -> Option<(&[u8; 4], &[u8], &[u8])> {
    let word = |at: usize| rest.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_be_bytes);
    let length = word(0)? as usize;
    let kind: &[u8; 4] = rest.get(4..8)?.try_into().ok()?;
    let end = length.checked_add(8)?;
    let data = rest.get(8..end)?;
    (word(end)? == crc([kind, data])).then(|| (kind, data, &rest[end + 4..]))
}

fn read_header(data: &[u8]) -> Option<Header<'_>> {
    let &[a, b, c, d, e, f, g, h, bits, kind, 0, 0, 0] = data else { return None };
    let (width, height) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
    let (width, height) = (u64::from(width), u64::from(height));
    Some(Header { width, height, bits: usize::from(bits), kind, ..Header::default() })
}

fn unpack(header: &Header<'_>, compressed: &[u8]) -> Option<(Size, Vec<u8>)> {
    let size = Size::new(header.width, header.height, LARGEST)?;
    let samples = header.samples()?;
    let row = (size.width as usize * samples * header.bits).div_ceil(8);
    let step = (samples * header.bits / 8).max(1);
    // No compressed bomb unpacks to more than the picture.
    let expected = (row + 1) * size.height as usize;
    let mut rows = decompress_to_vec_zlib_with_limit(compressed, expected).ok()?;
    if rows.len() != expected {
        return None;
    }
    let mut pixels = Vec::with_capacity(size.row() * size.height as usize);
    let mut before = alloc::vec![0; row];
    for line in rows.chunks_exact_mut(row + 1) {
        let (filter, line) = line.split_first_mut()?;
        unfilter(*filter, line, &before, step)?;
        for at in 0..size.width as usize {
            pixels.extend_from_slice(&pixel(header, line, at, samples)?);
        }
        before.copy_from_slice(line);
    }
    Some((size, pixels))
}

fn unfilter(filter: u8, line: &mut [u8], before: &[u8], step: usize) -> Option<()> {
    for at in 0..line.len() {
        let above = before[at];
        let (left, corner) = if at >= step { (line[at - step], before[at - step]) } else { (0, 0) };
        let guess = match filter {
            0 => 0,
            1 => left,
            2 => above,
            3 => ((u16::from(left) + u16::from(above)) / 2) as u8,
            4 => paeth(left, above, corner),
            _ => return None,
        };
        line[at] = line[at].wrapping_add(guess);
    }
    Some(())
}

/// The neighbour that is nearest to left plus above less corner.
fn paeth(left: u8, above: u8, corner: u8) -> u8 {
    let guess = i16::from(left) + i16::from(above) - i16::from(corner);
    let distance = |byte: u8| (guess - i16::from(byte)).abs();
    if distance(left) <= distance(above) && distance(left) <= distance(corner) {
        left
    } else if distance(above) <= distance(corner) {
        above
    } else {
        corner
    }
}

fn pixel(header: &Header<'_>, line: &[u8], at: usize, samples: usize) -> Option<[u8; 4]> {
    if header.kind == 3 {
        let index = usize::from(small(line, at, header.bits));
        let color = header.palette.get(index * 3..index * 3 + 3)?;
        let opacity = header.transparent.get(index).copied().unwrap_or(255);
        return Some([color[0], color[1], color[2], opacity]);
    }
    if header.bits < 8 {
        let value = small(line, at, header.bits);
        let grey = (u16::from(value) * 255 / ((1 << header.bits) - 1)) as u8;
        let hidden = matches!(*header.transparent, [_, low] if low == value);
        return Some([grey, grey, grey, if hidden { 0 } else { 255 }]);
    }
    let bytes = header.bits / 8;
    let raw = line.get(at * samples * bytes..(at + 1) * samples * bytes)?;
    // Of 16 bits the high ones.
    let sample = |number: usize| raw[number * bytes];
    let opacity = || if is_hidden(header, raw, bytes) { 0 } else { 255 };
    Some(match samples {
        1 => [sample(0), sample(0), sample(0), opacity()],
        2 => [sample(0), sample(0), sample(0), sample(1)],
        3 => [sample(0), sample(1), sample(2), opacity()],
        _ => [sample(0), sample(1), sample(2), sample(3)],
    })
}

/// True for the one colour that the file calls transparent; it is spelt with 16 bits a sample.
fn is_hidden(header: &Header<'_>, raw: &[u8], bytes: usize) -> bool {
    let named = header.transparent.chunks_exact(2).map(|two| &two[2 - bytes..]);
    header.transparent.len() == raw.len() / bytes * 2 && named.eq(raw.chunks_exact(bytes))
}

/// A sample of 1, 2, 4 or 8 bits.
fn small(line: &[u8], at: usize, bits: usize) -> u8 {
    let bit = at * bits;
    let byte = line[bit / 8];
    let shift = 8 - bits - bit % 8;
    (byte >> shift) & (0xff >> (8 - bits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;

    fn written(size: Size, pixels: &[u8]) -> Vec<u8> {
        let file = rustix::fs::memfd_create("png", rustix::fs::MemfdFlags::empty()).unwrap();
        let mut writer = Writer::new(&file, size).unwrap();
        pixels.chunks_exact(size.row()).for_each(|row| writer.row(row).unwrap());
        writer.finish().unwrap();
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).unwrap();
        flow::read_to_end(&file, 1 << 24).unwrap()
    }

    /// Every picture is read as it was written.
    #[test]
    fn pictures_survive_the_round() {
        let mut random = Generator::new(66);
        for _ in 0..60 {
            let (width, height) = (random.below(80) as u32 + 1, random.below(40) as u32 + 1);
            let size = Size { width, height };
            let mut pixels = random.bytes(size.row() * height as usize);
            if random.below(2) == 0 {
                pixels.iter_mut().for_each(|byte| *byte &= 3);
            }
            assert_eq!(read(&written(size, &pixels)), Some((size, pixels)));
        }
        assert_eq!(crc([b"IEND", b""]), 0xae42_6082);
    }

    /// A damaged file is refused and read by nobody's mistake.
    #[test]
    fn damaged_files_are_survived() {
        let size = Size { width: 9, height: 4 };
        let right = written(size, &[7; 144]);
        let mut random = Generator::new(67);
        for _ in 0..3_000 {
            let mut wrong = right.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(wrong.len());
                wrong[at] = random.below(256) as u8;
            }
            wrong.truncate(random.below(2 * right.len()));
            let _ = read(&wrong);
        }
        assert_eq!(read(&right[..right.len() - 1]), None);
    }

    fn file(header: &[u8], chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
        let mut file = SIGNATURE.to_vec();
        let mut add = |kind: &[u8; 4], data: &[u8]| {
            file.extend((data.len() as u32).to_be_bytes());
            file.extend([&kind[..], data].concat());
            file.extend(crc([kind, data]).to_be_bytes());
        };
        add(b"IHDR", header);
        chunks.iter().for_each(|(kind, data)| add(kind, data));
        add(b"IEND", b"");
        file
    }

    fn packed(rows: &[u8]) -> Vec<u8> {
        miniz_oxide::deflate::compress_to_vec_zlib(rows, 6)
    }

    /// Palettes, few bits, 16 bits and transparent colours.
    #[test]
    fn kinds_of_pixels() {
        let header = |bits: u8, kind: u8| [0, 0, 0, 2, 0, 0, 0, 1, bits, kind, 0, 0, 0];
        let palette = (b"PLTE", vec![1, 2, 3, 4, 5, 6]);
        let read_row = |bits, kind, more: &[(&[u8; 4], Vec<u8>)], row: &[u8]| {
            let mut chunks = more.to_vec();
            chunks.push((b"IDAT", packed(&[&[0], row].concat())));
            read(&file(&header(bits, kind), &chunks)).map(|(_, pixels)| pixels)
        };
        let colors = read_row(1, 3, &[palette.clone(), (b"tRNS", vec![9])], &[0b0100_0000]);
        assert_eq!(colors, Some(vec![1, 2, 3, 9, 4, 5, 6, 255]));
        assert_eq!(read_row(2, 0, &[], &[0b0111_0000]), Some(vec![85, 85, 85, 255, 255, 255, 255, 255]));
        assert_eq!(
            read_row(16, 0, &[(b"tRNS", vec![0x12, 0x34])], &[0x12, 0x34, 0x56, 0x78]),
            Some(vec![0x12, 0x12, 0x12, 0, 0x56, 0x56, 0x56, 255])
        );
        assert_eq!(
            read_row(8, 2, &[(b"tRNS", vec![0, 1, 0, 2, 0, 3])], &[1, 2, 3, 1, 2, 4]),
            Some(vec![1, 2, 3, 0, 1, 2, 4, 255])
        );
        // An index that the palette does not have, a depth that the kind does not have.
        assert_eq!(read_row(2, 3, core::slice::from_ref(&palette), &[0b1100_0000]), None);
        assert_eq!(read_row(4, 2, &[], &[0; 3]), None);
    }

    /// A small file that unpacks to gigabytes, and a header that lies about its size.
    #[test]
    fn bombs_are_refused() {
        let bomb = packed(&vec![0; 10 << 20]);
        let header = [0, 0, 0, 2, 0, 0, 0, 1, 8, 6, 0, 0, 0];
        assert_eq!(read(&file(&header, &[(b"IDAT", bomb)])), None);
        let huge = [0, 0, 0x20, 1, 0, 0, 0, 1, 8, 6, 0, 0, 0];
        assert_eq!(read(&file(&huge, &[(b"IDAT", packed(&[0; 9]))])), None);
        let short = [0, 0, 0x20, 0, 0, 0, 0x14, 0, 8, 6, 0, 0, 0];
        assert_eq!(read(&file(&short, &[(b"IDAT", packed(&[0; 9]))])), None);
    }
}
