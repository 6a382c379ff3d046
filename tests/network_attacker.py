"""A hostile end of a link, in a chain of network qubes."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from network_lab import (
    ATTACK,
    CONTROL,
    SERVER,
    Box,
    Chain,
    Lab,
    frame,
    frames_until,
    laboratory,
    mac_of,
    waiting,
)

APP, NEIGHBOUR, FIREWALL, NET = "10.137.0.3", "10.137.0.4", "10.137.0.2", "10.137.0.1"
NO_SOURCE_CHECK = "for i in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$i; done"


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    """A fresh laboratory."""
    async with laboratory() as made:
        yield made


@pytest.fixture
async def chain(lab: Lab) -> Chain:
    """App and neighbour → firewall → net → outside.

    The kernel's own check of sources is off: the rules must do without it.
    """
    chain = await lab.chain()
    chain.firewall.sh(NO_SOURCE_CHECK)
    chain.net.sh(NO_SOURCE_CHECK)
    return chain


@dataclass
class Attacker:
    """One end of a link in the hands of someone hostile."""

    wire: socket.socket
    mac: bytes

    @classmethod
    async def at(cls, box: Box, interface: str) -> Attacker:
        """Take over an interface."""
        wire = await box.wire(interface)
        return cls(wire, mac_of(wire))


async def passed(
    attacker: Attacker, attack: list[bytes], control: bytes, wire: socket.socket
) -> bool:
    """Send attack frames and the control; True when an attack packet was seen on the wire."""
    for one in [*attack, control]:
        attacker.wire.send(one)
    seen = await asyncio.to_thread(frames_until, wire, CONTROL)
    return any(ATTACK in one for one in seen)


def chain_mac(chain: Chain) -> bytes:
    """The link-layer address of the firewall qube's uplink."""
    return bytes.fromhex(chain.firewall.endpoint.mac.replace(":", ""))


async def uplink_attack(chain: Chain, attack: bytes) -> None:
    """Attack the firewall qube from the net qube; the control is an answer to the app."""
    client = await chain.app.listener(5000)
    own = await chain.firewall.listener(9999)
    victims = [await chain.app.wire("eth0"), await chain.neighbour.wire("eth0")]
    spy = await chain.net.wire("vif2")
    client.sendto(b"question", (str(SERVER), 8000))
    question = (await asyncio.to_thread(frames_until, spy, b"question"))[-1]
    (port,) = struct.unpack("!H", question[34:36])
    attacker = await Attacker.at(chain.net, "vif2")
    attacker.wire.send(attack)
    answer = frame(SERVER, FIREWALL, CONTROL, to_mac=chain_mac(chain), ports=(8000, port))
    attacker.wire.send(answer)
    assert await asyncio.to_thread(client.recv, 100) == CONTROL
    for victim in victims:
        frames = [one for one in waiting(victim) if one[12:14] == b"\x08\x00"]
        assert all(b"question" in one or CONTROL in one for one in frames)
    assert waiting(own) == []
