//! Keep another qube's output from steering this terminal.

/// Replace every byte but printable ASCII, TAB, LF, CR, BS and BEL by `_`.
pub fn clean(bytes: &mut [u8]) {
    for byte in bytes {
        if !matches!(*byte, b' '..=b'~' | b'\t' | b'\n' | b'\r' | 0x08 | 0x07) {
            *byte = b'_';
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No escape sequence, 8-bit control or broken UTF-8 survives.
    #[test]
    fn only_harmless_bytes_pass() {
        let mut all: std::vec::Vec<u8> = (0..=255).collect();
        clean(&mut all);
        for (before, after) in (0..=255_u8).zip(all) {
            let harmless = (32..127).contains(&before) || [7, 8, 9, 10, 13].contains(&before);
            assert_eq!(after, if harmless { before } else { b'_' });
        }
    }
}
