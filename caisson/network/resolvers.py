"""Where the machine sends its own DNS queries: the resolvers that the last qube of a chain uses."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

# The second is what systemd-resolved knows behind its stub on a loopback address.
_FILES = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def parse(untrusted_text: str) -> tuple[IPv4Address, ...]:
    """The usable IPv4 resolvers of a `resolv.conf`, in its order.

    A loopback address would mean the qube itself, so it is left out, as is IPv6.
    """
    found: dict[IPv4Address, None] = {}
    for line in untrusted_text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":  # noqa: PLR2004  # keyword and value
            continue
        try:
            address = IPv4Address(words[1])
        except AddressValueError:
            continue
        if not (address.is_loopback or address.is_unspecified or address.is_multicast):
            found[address] = None
    return tuple(found)


def of_machine(files: Sequence[Path] = _FILES) -> tuple[IPv4Address, ...]:
    """The machine's resolvers: of the first file that names a usable one; maybe none."""
    for file in files:
        try:
            found = parse(file.read_text(errors="replace"))
        except OSError:
            continue
        if found:
            return found
    return ()


def of_namespace(name: str) -> tuple[IPv4Address, ...]:
    """The resolvers of a named namespace: its own file where `ip netns` keeps one."""
    return of_machine((Path("/etc/netns") / name / "resolv.conf", *_FILES))
