//! TCP services: where a link of the form `/dev/tcp/HOST/PORT` leads.
//!
//! The text of the link decides; what it leaves open comes from the argument, which another qube
//! chose. Only numbers are taken: a name would let the caller use this qube's resolver.

use alloc::vec::Vec;

use crate::text::decimal;

const PREFIX: &[u8] = b"/dev/tcp";
/// No address in text is longer: six groups, an IPv4 address, `%` and an interface's name.
const LONGEST_HOST: usize = 64;
const LONGEST_INTERFACE: usize = 15;

/// A place to connect to.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// The host.
    pub host: Host,
    /// 1 to 65535.
    pub port: u16,
}

/// An address of either kind.
#[derive(Debug, PartialEq, Eq)]
pub enum Host {
    /// Four bytes.
    V4([u8; 4]),
    /// Eight groups, and the interface for an address that needs one.
    V6([u16; 8], Zone),
}

/// Through which interface.
#[derive(Debug, PartialEq, Eq)]
pub enum Zone {
    /// The kernel chooses.
    Any,
    /// By number.
    Index(u32),
    /// By name.
    Interface(Vec<u8>),
}

/// Why a text leads nowhere.
pub type Wrong = &'static str;

/// True where the text of a link makes a service a TCP service.
pub fn is_tcp(link: &[u8]) -> bool {
    link.strip_prefix(PREFIX).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Where the link's text leads with this argument (empty for none).
pub fn place(link: &[u8], argument: &[u8]) -> Result<Place, Wrong> {
    let rest = link.strip_prefix(PREFIX).ok_or("the link does not begin with `/dev/tcp`")?;
    let Some(rest) = rest.strip_prefix(b"/") else {
        return if rest.is_empty() { from_argument(argument) } else { Err("the link is no TCP service") };
    };
    match rest.iter().position(|&byte| byte == b'/') {
        Some(_) if !argument.is_empty() => Err("a service with a fixed port takes no argument"),
        Some(at) => Ok(Place { host: host(&rest[..at])?, port: port(&rest[at + 1..])? }),
        None => Ok(Place { host: host(rest)?, port: port(argument)? }),
    }
}

/// `HOST+PORT`, where `+` in the host stands for `:`.
fn from_argument(argument: &[u8]) -> Result<Place, Wrong> {
    let at = argument.iter().rposition(|&byte| byte == b'+').ok_or("the argument is `HOST+PORT`")?;
    let (given, number) = (&argument[..at], &argument[at + 1..]);
    if given.contains(&b'_') {
        return Err("a host contains no `_`");
    }
    let spelled: Vec<u8> = given.iter().map(|&byte| if byte == b'+' { b':' } else { byte }).collect();
    Ok(Place { host: host(&spelled)?, port: port(number)? })
}

fn port(text: &[u8]) -> Result<u16, Wrong> {
    const WRONG: Wrong = "a port is 1 to 65535 in decimal, without leading zero";
    if text.first() == Some(&b'0') {
        return Err(WRONG);
    }
    decimal(text).and_then(|port| u16::try_from(port).ok()).ok_or(WRONG)
}

fn host(text: &[u8]) -> Result<Host, Wrong> {
    if text.is_empty() || text.len() > LONGEST_HOST {
        return Err("a host has 1 to 64 characters");
    }
    if !text.iter().any(|byte| b":%".contains(byte)) {
        return Ok(Host::V4(v4(text)?));
    }
    let (address, zone) = match text.iter().position(|&byte| byte == b'%') {
        Some(at) => (&text[..at], zone(&text[at + 1..])?),
        None => (text, Zone::Any),
    };
    Ok(Host::V6(v6(address)?, zone))
}

fn zone(text: &[u8]) -> Result<Zone, Wrong> {
    if text.iter().all(u8::is_ascii_digit) {
        let index = decimal(text).and_then(|index| u32::try_from(index).ok());
        return index.map(Zone::Index).ok_or("an interface has a number or a name");
    }
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    if text.len() > LONGEST_INTERFACE || !text.iter().all(is_plain) {
        return Err("an interface has a number or a name");
    }
    Ok(Zone::Interface(text.to_vec()))
}

/// Four decimal numbers: the shorter and octal spellings of old libraries mean other hosts to other readers.
fn v4(text: &[u8]) -> Result<[u8; 4], Wrong> {
    const WRONG: Wrong = "an IPv4 address is four decimal numbers below 256, without leading zeros";
    let mut bytes = [0; 4];
    let mut parts = text.split(|&byte| byte == b'.');
    for byte in &mut bytes {
        let part = parts.next().ok_or(WRONG)?;
        if part.len() > 1 && part[0] == b'0' {
            return Err(WRONG);
        }
        *byte = decimal(part).and_then(|number| u8::try_from(number).ok()).ok_or(WRONG)?;
    }
    if parts.next().is_some() {
        return Err(WRONG);
    }
    Ok(bytes)
}

const WRONG_V6: Wrong = "the IPv6 address is malformed";

fn v6(text: &[u8]) -> Result<[u16; 8], Wrong> {
    let mut groups = [0; 8];
    let Some(gap) = text.windows(2).position(|pair| pair == b"::") else {
        let read = read_groups(text, true)?;
        return <[u16; 8]>::try_from(&read[..]).map_err(|_| WRONG_V6);
    };
    let (head, tail) = (&text[..gap], &text[gap + 2..]);
    let head = if head.is_empty() { Vec::new() } else { read_groups(head, false)? };
    let tail = if tail.is_empty() { Vec::new() } else { read_groups(tail, true)? };
    // The gap stands for one group at least.
    if head.len() + tail.len() > 7 {
        return Err(WRONG_V6);
    }
    groups[..head.len()].copy_from_slice(&head);
    groups[8 - tail.len()..].copy_from_slice(&tail);
    Ok(groups)
}

/// Groups of up to four hexadecimal digits; the last may be an IPv4 address where it ends the text.
fn read_groups(text: &[u8], ends: bool) -> Result<Vec<u16>, Wrong> {
    let mut groups = Vec::new();
    let mut parts = text.split(|&byte| byte == b':').peekable();
    while let Some(part) = parts.next() {
        if groups.len() == 8 {
            return Err(WRONG_V6);
        }
        if part.contains(&b'.') && ends && parts.peek().is_none() {
            let [a, b, c, d] = v4(part)?;
            groups.extend([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]);
        } else {
            groups.push(group(part)?);
        }
    }
    Ok(groups)
}

fn group(text: &[u8]) -> Result<u16, Wrong> {
    if text.is_empty() || text.len() > 4 {
        return Err(WRONG_V6);
    }
    text.iter().try_fold(0, |value: u16, &byte| {
        let digit = char::from(byte).to_digit(16).ok_or(WRONG_V6)?;
        Ok(value << 4 | digit as u16)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tests_support::Generator;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn read(link: &str, argument: &str) -> Result<(Host, u16), Wrong> {
        place(link.as_bytes(), argument.as_bytes()).map(|place| (place.host, place.port))
    }

    fn six(text: &str) -> Host {
        Host::V6(text.parse::<Ipv6Addr>().unwrap().segments(), Zone::Any)
    }

    /// Only the text decides whether a link is a TCP service.
    #[test]
    fn texts_of_links() {
        for link in ["/dev/tcp", "/dev/tcp/", "/dev/tcp/x", "/dev/tcp//"] {
            assert!(is_tcp(link.as_bytes()));
        }
        for link in ["/dev/tcpx", "/dev/tc", "dev/tcp", "/dev//tcp", "/dev/./tcp/1.2.3.4", ""] {
            assert!(!is_tcp(link.as_bytes()));
            assert!(read(link, "1.2.3.4+5").is_err());
        }
    }

    /// The three forms.
    #[test]
    fn forms() {
        let local = || Host::V4([127, 0, 0, 1]);
        assert_eq!(read("/dev/tcp/127.0.0.1/80", ""), Ok((local(), 80)));
        assert_eq!(read("/dev/tcp/127.0.0.1", "65535"), Ok((local(), 65535)));
        assert_eq!(read("/dev/tcp", "127.0.0.1+1"), Ok((local(), 1)));
        assert_eq!(read("/dev/tcp", "++1+22"), Ok((six("::1"), 22)));
        assert_eq!(read("/dev/tcp", "fe80++1+22"), Ok((six("fe80::1"), 22)));
        assert_eq!(read("/dev/tcp/::1/22", ""), Ok((six("::1"), 22)));
        assert_eq!(read("/dev/tcp/::ffff:1.2.3.4", "9"), Ok((six("::ffff:1.2.3.4"), 9)));
        let groups = "fe80::1".parse::<Ipv6Addr>().unwrap().segments();
        let through = |zone| Ok((Host::V6(groups, zone), 5));
        assert_eq!(read("/dev/tcp/fe80::1%eth0/5", ""), through(Zone::Interface(b"eth0".to_vec())));
        assert_eq!(read("/dev/tcp/fe80::1%3", "5"), through(Zone::Index(3)));
    }

    /// Names, other spellings of numbers, and arguments where none belongs lead nowhere.
    #[test]
    fn everything_else_is_refused() {
        let overlong = "1".repeat(70_000);
        for (link, argument) in [
            ("/dev/tcp/127.0.0.1/80", "80"),
            ("/dev/tcp/127.0.0.1/80/", ""),
            ("/dev/tcp/127.0.0.1/", ""),
            ("/dev/tcp/127.0.0.1", ""),
            ("/dev/tcp//80", ""),
            ("/dev/tcp/", "80"),
            ("/dev/tcp", ""),
            ("/dev/tcp", "80"),
            ("/dev/tcp", "+80"),
            ("/dev/tcp", "127.0.0.1+"),
            ("/dev/tcp", "localhost+80"),
            ("/dev/tcp", "local_host+80"),
            ("/dev/tcp", "127.0.0.1_+80"),
            ("/dev/tcp", "127.1+80"),
            ("/dev/tcp", "2130706433+80"),
            ("/dev/tcp", "0177.0.0.1+80"),
            ("/dev/tcp", "127.0.0.01+80"),
            ("/dev/tcp", "0x7f.0.0.1+80"),
            ("/dev/tcp", "127.0.0.256+80"),
            ("/dev/tcp", "127.0.0.1.+80"),
            ("/dev/tcp", "127.0.0.1\0+80"),
            ("/dev/tcp", "1.2.3.4%lo+80"),
            ("/dev/tcp", "fe80++1%a_b+80"),
            ("/dev/tcp", "+++1+080"),
            ("/dev/tcp", "++++1+80"),
            ("/dev/tcp", "1++2++3+80"),
            ("/dev/tcp", "[++1]+80"),
            ("/dev/tcp", "%lo+80"),
            ("/dev/tcp/::1%", "80"),
            ("/dev/tcp/::1%a/b", ""),
            ("/dev/tcp/::1%a b", "80"),
            ("/dev/tcp/::1%4294967296", "80"),
            ("/dev/tcp/127.0.0.1", "0"),
            ("/dev/tcp/127.0.0.1", "080"),
            ("/dev/tcp/127.0.0.1", "65536"),
            ("/dev/tcp/127.0.0.1", "+80"),
            ("/dev/tcp/127.0.0.1", "-80"),
            ("/dev/tcp/127.0.0.1", " 80"),
            ("/dev/tcp/127.0.0.1", "8\n"),
            ("/dev/tcp/127.0.0.1", "http"),
            ("/dev/tcp/127.0.0.1", &overlong),
            ("/dev/tcp", &alloc::format!("{overlong}+80")),
        ] {
            assert!(read(link, argument).is_err(), "{link} {argument:.80}");
        }
    }

    /// Addresses mean what the standard library says they mean, or are refused as it refuses them.
    #[test]
    fn addresses_are_those_of_the_standard_library() {
        let mut random = Generator::new(6);
        for round in 0..200_000 {
            let alphabet = if round % 2 == 0 { &b"0129.255."[..] } else { b"01af:::.25F" };
            let length = random.below(20);
            let text: Vec<u8> = (0..length).map(|_| *random.pick(alphabet)).collect();
            let spelled = core::str::from_utf8(&text).unwrap();
            assert_eq!(v4(&text).ok(), spelled.parse::<Ipv4Addr>().ok().map(|ip| ip.octets()), "{spelled}");
            assert_eq!(v6(&text).ok(), spelled.parse::<Ipv6Addr>().ok().map(|ip| ip.segments()), "{spelled}");
        }
        for _ in 0..50_000 {
            let groups: [u16; 8] =
                core::array::from_fn(|_| if random.below(2) == 0 { 0 } else { random.below(65536) as u16 });
            let spelled = alloc::format!("{}", Ipv6Addr::from(groups));
            assert_eq!(v6(spelled.as_bytes()), Ok(groups), "{spelled}");
        }
    }
}
