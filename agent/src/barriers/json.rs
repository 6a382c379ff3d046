//! The report as JSON text.

use alloc::vec::Vec;

use super::Finding;

/// Details longer than this are cut: the whole report must fit into one message.
const LONGEST_DETAIL: usize = 400;

/// Encode the findings.
pub fn encode(version: &str, findings: &[Finding]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4096);
    out.extend_from_slice(b"{\"barriers\":{");
    for (at, finding) in findings.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        string(&mut out, finding.name, usize::MAX);
        out.extend_from_slice(if finding.up {
            b":{\"up\":true,\"detail\":"
        } else {
            b":{\"up\":false,\"detail\":"
        });
        string(&mut out, &finding.detail, LONGEST_DETAIL);
        out.push(b'}');
    }
    out.extend_from_slice(b"},\"version\":");
    string(&mut out, version, usize::MAX);
    out.push(b'}');
    out
}

fn string(out: &mut Vec<u8>, text: &str, longest: usize) {
    out.push(b'"');
    for character in text.chars().take(longest) {
        match character {
            '"' | '\\' => out.extend_from_slice(&[b'\\', character as u8]),
            ' '..='~' => out.push(character as u8),
            _ => {
                out.extend_from_slice(alloc::format!("\\u{:04x}", (character as u32).min(0xffff)).as_bytes())
            }
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Quotes, control characters and length are taken care of.
    #[test]
    fn texts_are_escaped() {
        let finding = Finding::new("x", true, "a\"\\\n\u{e9}");
        let text = encode("1", &[finding, Finding::new("y", false, "z".repeat(999))]);
        let text = core::str::from_utf8(&text).unwrap();
        assert!(
            text.starts_with(r#"{"barriers":{"x":{"up":true,"detail":"a\"\\\u000a\u00e9"},"y":{"up":false"#)
        );
        assert!(text.len() < 600);
    }
}
