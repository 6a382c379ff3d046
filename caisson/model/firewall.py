"""Firewall rules as text (sheet `admin-api`, section 2.8): parsed into types, written canonically.

A rule is one line of `key=value` words. What a rule does in a network is not decided here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, NetmaskValueError
from typing import Any, Final

from caisson.errors import ProtocolError, ValueRefusedError
from caisson.names import shown

_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_HOST_NAME = re.compile(r"[a-z0-9._-]{1,253}")
_PREFIXED = re.compile(r"[0-9A-Fa-f.:]+(/(0|[1-9][0-9]{0,2}))?")
_COMMENT = re.compile(r"[A-Za-z0-9 :;,./\[\]_-]*")
_LAST_PORT = 65_535
_LAST_ICMP_TYPE = 255
_COMMENT_KEY = "comment="

HostName = str
Destination = IPv4Network | IPv6Network | HostName


class Action(StrEnum):
    """What happens to a packet that a rule matches."""

    ACCEPT = "accept"
    DROP = "drop"


class Protocol(StrEnum):
    """Which packets a rule matches, by their kind."""

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"


class Special(StrEnum):
    """A destination that only the system knows."""

    DNS = "dns"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; what is None matches everything.

    Args:
        action: what it does.
        expire: seconds since the epoch from which on it does nothing; None for never.
        destination: a network, or the name of a host.
        protocol: the protocol.
        special: a destination that the system knows.
        ports: the first and the last destination port; of TCP and UDP only.
        icmp_type: the type of message; of ICMP only.
        comment: for people.
    """

    action: Action
    expire: int | None = None
    destination: Destination | None = None
    protocol: Protocol | None = None
    special: Special | None = None
    ports: tuple[int, int] | None = None
    icmp_type: int | None = None
    comment: str | None = None

    def __str__(self) -> str:
        """The canonical line, without its end."""
        words = (
            ("action", self.action),
            ("expire", self.expire),
            (_destination_key(self.destination), self.destination),
            ("proto", self.protocol),
            ("specialtarget", self.special),
            ("dstports", None if self.ports is None else f"{self.ports[0]}-{self.ports[1]}"),
            ("icmptype", self.icmp_type),
            ("comment", self.comment),
        )
        return " ".join(f"{key}={value}" for key, value in words if value is not None)


EVERYTHING: Final = (Rule(Action.ACCEPT),)
"""What holds for a qube without rules."""


def listing(rules: Iterable[Rule]) -> str:
    """Rules as lines."""
    return "".join(f"{rule}\n" for rule in rules)


def parse(untrusted: bytes) -> tuple[Rule, ...]:
    """Parse lines of rules; no line means no rule, with which everything is dropped.

    Raises:
        ProtocolError: they are not ASCII.
        ValueRefusedError: one of them is no rule.
    """
    if not untrusted:
        return ()
    try:
        untrusted_text = untrusted.decode("ascii")
    except UnicodeDecodeError:
        raise ProtocolError("firewall rules are not ASCII") from None
    lines = untrusted_text.removesuffix("\n").split("\n")
    rules = []
    for number, line in enumerate(lines, 1):
        try:
            rules.append(parse_rule(line))
        except ValueRefusedError as error:
            raise ValueRefusedError(f"rule {number}: {error.message}", error.hint) from None
    return tuple(rules)


def parse_rule(untrusted_line: str) -> Rule:
    """Parse one rule.

    Raises:
        ValueRefusedError: it is none.
    """
    untrusted: dict[str, str] = {}
    rest: str | None = untrusted_line
    while rest is not None:
        if rest.startswith(_COMMENT_KEY):  # the last one: it may contain spaces
            word, rest = rest, None
        else:
            word, space, after = rest.partition(" ")
            rest = after if space else None
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueRefusedError(
                f"`{shown(word)}` is not of the form `key=value`",
                hint="put exactly one space between words",
            )
        if key in untrusted:
            raise ValueRefusedError(f"key `{shown(key)}` is given twice")
        untrusted[key] = value
    return _rule(untrusted)


def _rule(untrusted: Mapping[str, str]) -> Rule:
    fields: dict[str, Any] = {}
    for key, text in untrusted.items():
        if key not in _KEYS:
            raise ValueRefusedError(
                f"key `{shown(key)}` does not exist", hint="use some of: " + ", ".join(_KEYS)
            )
        name, parse_value = _KEYS[key]
        if name in fields:
            raise ValueRefusedError("a rule has one destination", hint="write two rules")
        fields[name] = parse_value(text)
    if "action" not in fields:
        raise ValueRefusedError("the action is missing", hint="give `action=accept` or `=drop`")
    rule = Rule(**fields)
    if rule.ports is not None and rule.protocol not in {Protocol.TCP, Protocol.UDP}:
        raise ValueRefusedError(
            "`dstports` needs a protocol with ports", hint="give `proto=tcp` or `proto=udp`"
        )
    if rule.icmp_type is not None and rule.protocol is not Protocol.ICMP:
        raise ValueRefusedError("`icmptype` needs `proto=icmp`", hint="give `proto=icmp`")
    return rule


def _one_of(kind: type[StrEnum]) -> Callable[[str], StrEnum]:
    def parse_value(untrusted: str) -> StrEnum:
        try:
            return kind(untrusted)
        except ValueError:
            raise ValueRefusedError(
                f"value `{shown(untrusted)}` does not exist", hint="use one of: " + ", ".join(kind)
            ) from None

    return parse_value


def _number(untrusted: str, most: int) -> int:
    if not _NUMBER.fullmatch(untrusted) or int(untrusted) > most:
        raise ValueRefusedError(
            f"`{shown(untrusted)}` is not a number from 0 to {most}", hint="use decimal digits"
        )
    return int(untrusted)


def _expire(untrusted: str) -> int:
    return _number(untrusted, 10**19 - 1)


def _icmp_type(untrusted: str) -> int:
    return _number(untrusted, _LAST_ICMP_TYPE)


def _ports(untrusted: str) -> tuple[int, int]:
    first, dash, last = untrusted.partition("-")
    ports = _number(first, _LAST_PORT), _number(last if dash else first, _LAST_PORT)
    if ports[0] > ports[1]:
        raise ValueRefusedError(
            f"`{untrusted}` is no range of ports", hint="give the lower port first"
        )
    return ports


def _network(
    kind: type[IPv4Network | IPv6Network], example: str
) -> Callable[[str], IPv4Network | IPv6Network]:
    def parse_value(untrusted: str) -> IPv4Network | IPv6Network:
        try:
            if not _PREFIXED.fullmatch(untrusted):
                raise ValueError  # noqa: TRY301 - said once, below
            return kind(untrusted, strict=False)
        except (ValueError, NetmaskValueError):
            raise ValueRefusedError(
                f"`{shown(untrusted)}` is not a network", hint=f"use the form `{example}`"
            ) from None

    return parse_value


_ipv4 = _network(IPv4Network, "10.1.0.0/16")
_ipv6 = _network(IPv6Network, "fd00::/8")


def _host(untrusted: str) -> Destination:
    """A name, or an address after all."""
    address, _, _ = untrusted.partition("/")
    if ":" in untrusted:
        return _ipv6(untrusted)
    # A name whose last part is a number is an address to every resolver.
    if address.rpartition(".")[2].isdigit():
        return _ipv4(untrusted)
    if not _HOST_NAME.fullmatch(untrusted):
        raise ValueRefusedError(
            f"`{shown(untrusted)}` is not the name of a host",
            hint="use lower-case letters, digits, `.`, `_` and `-`",
        )
    return untrusted


def _comment(untrusted: str) -> str | None:
    if not _COMMENT.fullmatch(untrusted):
        raise ValueRefusedError(
            f"comment `{shown(untrusted)}` contains a character that is not allowed",
            hint="use letters, digits, spaces and `:;,./-_[]`",
        )
    return untrusted or None


def _destination_key(destination: Destination | None) -> str:
    match destination:
        case IPv4Network():
            return "dst4"
        case IPv6Network():
            return "dst6"
        case _:
            return "dsthost"


_KEYS: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "action": ("action", _one_of(Action)),
    "expire": ("expire", _expire),
    "dst4": ("destination", _ipv4),
    "dst6": ("destination", _ipv6),
    "dsthost": ("destination", _host),
    "dstname": ("destination", _host),
    "proto": ("protocol", _one_of(Protocol)),
    "specialtarget": ("special", _one_of(Special)),
    "dstports": ("ports", _ports),
    "icmptype": ("icmp_type", _icmp_type),
    "comment": ("comment", _comment),
}
