//! A call that this machine asks for, in the layouts of protocol 2, 3 and 4.

use alloc::vec::Vec;

use super::body::{message, Ident};
use super::frame::{Kind, Malformed};
use super::LONGEST_SERVICE;

/// Bytes of a qube's name on the wire, its NUL among them.
const NAME: usize = 64;
/// Bytes of a service of protocol 2, its NUL among them.
const OLD_SERVICE: usize = 64;
/// Bytes of a target of protocol 2, its NUL among them.
const OLD_TARGET: usize = 32;

/// A request for a call. Texts have no NUL; the service is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger<'a> {
    /// In whose name the call is made, where this is a relay; at most 63 bytes.
    pub source: &'a [u8],
    /// The target; at most 63 bytes.
    pub target: &'a [u8],
    /// Names the request in the answer. As it came, for it is echoed before it is judged.
    pub ident: [u8; Ident::SIZE],
    /// `name` or `name+argument`; at most 64,999 bytes.
    pub service: &'a [u8],
}

/// The text in a fixed array: up to its first NUL, and never the array's last byte.
fn text(array: &[u8]) -> &[u8] {
    let usable = array.split_last().map_or(array, |(_, usable)| usable);
    usable.split(|&byte| byte == 0).next().unwrap_or(usable)
}

/// `value` in an array of this size, padded with zeros; it leaves room for a NUL.
fn array<const N: usize>(value: &[u8]) -> Option<[u8; N]> {
    if value.len() >= N || value.contains(&0) {
        return None;
    }
    let mut bytes = [0; N];
    bytes[..value.len()].copy_from_slice(value);
    Some(bytes)
}

/// A service with its NUL, and no other.
fn service(bytes: &[u8]) -> Result<&[u8], Malformed> {
    match bytes {
        [service @ .., 0]
            if !service.is_empty() && !service.contains(&0) && bytes.len() <= LONGEST_SERVICE =>
        {
            Ok(service)
        }
        _ => Err(Malformed::Text),
    }
}

impl<'a> Trigger<'a> {
    /// Read the body of a trigger of the given kind.
    pub fn parse(kind: Kind, body: &'a [u8]) -> Result<Self, Malformed> {
        Self::split(kind, body).unwrap_or(Err(Malformed::Length(kind, body.len() as u32)))
    }

    /// `None` where the body is too short, or too long.
    fn split(kind: Kind, body: &'a [u8]) -> Option<Result<Self, Malformed>> {
        let mut rest = body;
        let mut cut = |size: usize| {
            let piece = rest.get(..size)?;
            rest = &rest[size..];
            Some(piece)
        };
        if kind == Kind::TriggerService {
            let (service, target) = (text(cut(OLD_SERVICE)?), text(cut(OLD_TARGET)?));
            let ident = <[u8; Ident::SIZE]>::try_from(cut(Ident::SIZE)?).ok()?;
            let trigger = Self { source: b"", target, ident, service };
            return rest.is_empty().then_some(if service.is_empty() {
                Err(Malformed::Text)
            } else {
                Ok(trigger)
            });
        }
        let source = match kind {
            Kind::TriggerService3 => b"",
            Kind::TriggerService4 => text(cut(NAME)?),
            other => return Some(Err(Malformed::Kind(other as u32))),
        };
        let target = text(cut(NAME)?);
        let ident = <[u8; Ident::SIZE]>::try_from(cut(Ident::SIZE)?).ok()?;
        Some(service(rest).map(|service| Self { source, target, ident, service }))
    }

    /// The message of protocol 4; `None` where a text does not fit.
    pub fn message(&self) -> Option<Vec<u8>> {
        let (source, target) = (array::<NAME>(self.source)?, array::<NAME>(self.target)?);
        self.with_service(Kind::TriggerService4, &[&source, &target])
    }

    /// The message of protocol 3; `None` where a text does not fit, or a source is named.
    pub fn message_3(&self) -> Option<Vec<u8>> {
        let target = array::<NAME>(self.target)?;
        self.source.is_empty().then(|| self.with_service(Kind::TriggerService3, &[&target])).flatten()
    }

    /// The message of protocol 2; `None` where a text does not fit, or a source is named.
    pub fn message_2(&self) -> Option<Vec<u8>> {
        let (service, target) = (array::<OLD_SERVICE>(self.service)?, array::<OLD_TARGET>(self.target)?);
        let right = self.source.is_empty() && !self.service.is_empty();
        right.then(|| message(Kind::TriggerService, &[&service, &target, &self.ident]))
    }

    fn with_service(&self, kind: Kind, arrays: &[&[u8]]) -> Option<Vec<u8>> {
        let wrong = self.service.is_empty() || self.service.contains(&0);
        if wrong || self.service.len() >= LONGEST_SERVICE {
            return None;
        }
        let mut parts = arrays.to_vec();
        parts.extend([&self.ident[..], self.service, b"\0"]);
        Some(message(kind, &parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;
    use crate::wire::HEADER;

    fn trigger<'a>(target: &'a [u8], service: &'a [u8]) -> Trigger<'a> {
        let ident = Ident::new(b"SOCKET").unwrap().bytes();
        Trigger { source: b"", target, ident, service }
    }

    /// The example of the protocol's description.
    #[test]
    fn trigger_of_the_sheet() {
        let sent = trigger(b"work", b"a.B+").message().unwrap();
        assert_eq!(&sent[..8], b"\x13\x02\0\0\xa5\0\0\0");
        assert_eq!(sent.len(), HEADER + 165);
        assert_eq!(&sent[HEADER + 160..], b"a.B+\0");
    }

    /// Every byte that no text fills is zero (QSB-009, QSB-106).
    #[test]
    fn padding_is_zero() {
        let mut random = Generator::new(13);
        for _ in 0..2_000 {
            let sizes = [random.below(64), random.below(64), random.below(63) + 1];
            let [source, target, service] =
                sizes.map(|size| random.bytes(size).iter().map(|byte| byte | 1).collect::<Vec<u8>>());
            let whole = Trigger { source: &source, ..trigger(&target, &service) };
            let mut oracle = std::vec![0; HEADER + 160 + service.len() + 1];
            oracle[..4].copy_from_slice(&0x213_u32.to_le_bytes());
            oracle[4..8].copy_from_slice(&(160 + service.len() as u32 + 1).to_le_bytes());
            oracle[8..8 + source.len()].copy_from_slice(&source);
            oracle[72..72 + target.len()].copy_from_slice(&target);
            oracle[136..142].copy_from_slice(b"SOCKET");
            oracle[168..168 + service.len()].copy_from_slice(&service);
            assert_eq!(whole.message().unwrap(), oracle);
            assert_eq!(Trigger::parse(Kind::TriggerService4, &oracle[HEADER..]), Ok(whole));
        }
    }

    /// What was in the padding of a request does not come out of its second writing.
    #[test]
    fn padding_is_not_passed_on() {
        let mut body = trigger(b"work", b"a.B").message().unwrap().split_off(HEADER);
        body[70..128].fill(b'!');
        body[69] = 0;
        let again = Trigger::parse(Kind::TriggerService4, &body).unwrap().message().unwrap();
        assert_eq!(again, trigger(b"work", b"a.B").message().unwrap());
    }

    /// The older layouts, there and back.
    #[test]
    fn older_protocols() {
        let whole = trigger(b"work", b"a.B+c");
        let sent = whole.message_3().unwrap();
        assert_eq!((sent.len(), &sent[..4]), (HEADER + 102, &b"\x12\x02\0\0"[..]));
        assert_eq!(Trigger::parse(Kind::TriggerService3, &sent[HEADER..]), Ok(whole));
        let sent = whole.message_2().unwrap();
        assert_eq!((sent.len(), &sent[..4]), (HEADER + 128, &b"\x10\x02\0\0"[..]));
        assert_eq!(Trigger::parse(Kind::TriggerService, &sent[HEADER..]), Ok(whole));
        let relayed = Trigger { source: b"far", ..whole };
        assert_eq!((relayed.message_2(), relayed.message_3()), (None, None));
    }

    /// Texts have their bounds (QSB-089).
    #[test]
    fn bounds_of_texts() {
        let longest = std::vec![b'x'; LONGEST_SERVICE];
        for (length, fits) in [(0, false), (1, true), (LONGEST_SERVICE - 1, true), (LONGEST_SERVICE, false)] {
            assert_eq!(trigger(b"", &longest[..length]).message().is_some(), fits, "{length}");
        }
        for (length, fits) in [(0, true), (1, true), (63, true), (64, false), (65, false)] {
            assert_eq!(trigger(&longest[..length], b"s").message().is_some(), fits, "{length}");
        }
        assert_eq!(trigger(b"a\0b", b"s").message(), None);
        assert_eq!(trigger(b"a", b"s\0t").message(), None);
    }

    /// A service without its NUL, with two, or with nothing before it is none.
    #[test]
    fn malformed_services() {
        let head = trigger(b"work", b"x").message().unwrap()[HEADER..HEADER + 160].to_vec();
        for (tail, right) in
            [(&b"a\0"[..], true), (b"", false), (b"\0", false), (b"a", false), (b"a\0b\0", false)]
        {
            let body = [&head[..], tail].concat();
            assert_eq!(Trigger::parse(Kind::TriggerService4, &body).is_ok(), right, "{tail:?}");
        }
    }

    /// No body makes the parsers panic, and what they take can be sent on.
    #[test]
    fn any_body_is_survived() {
        let mut random = Generator::new(14);
        for _ in 0..20_000 {
            let kind = *random.pick(&[Kind::TriggerService, Kind::TriggerService3, Kind::TriggerService4]);
            let length = *random.pick(&[0, 1, 64, 96, 97, 127, 128, 129, 160, 161, 200]);
            let mut body = random.bytes(length);
            if random.below(2) == 0 {
                body.iter_mut().for_each(|byte| *byte %= 3);
            }
            if let Some(last) = body.last_mut() {
                *last = *random.pick(&[0, *last]);
            }
            if let Ok(trigger) = Trigger::parse(kind, &body) {
                let sent = trigger.message().unwrap();
                assert_eq!(Trigger::parse(Kind::TriggerService4, &sent[HEADER..]), Ok(trigger));
            }
        }
    }
}
