"""Attacks on the moment of making links, and by names of namespaces.

The attacker writes whole Ethernet frames on its end of a link, past all rules of its own.
Each attack is followed by a control packet on the same way, which must arrive:
frames on a link stay in order, so an attack packet that has not been seen by then never comes.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path

import pytest
from network_attacker import NEIGHBOUR, lab
from network_lab import ATTACK, CONTROL, SERVER, Lab, frame, frames_until

from caisson.errors import NetworkError
from caisson.network import Uplink

__all__ = ["lab"]


async def test_a_network_qube_has_rules_before_it_has_a_link(lab: Lab) -> None:
    """A client that floods its end from the first moment never gets a forged packet through.

    The network qube restarts again and again; its rules are rewritten while the flood goes on.
    """
    uplink = lab.name_outside()
    network = lab.network()
    app = lab.box("app", 3)
    stop = threading.Event()
    wire = await app.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    lab.sockets.append(wire)
    sent = threading.Event()

    def flood() -> None:
        attack = frame(NEIGHBOUR, SERVER)
        while not stop.is_set():
            try:
                wire.sendto(attack, ("eth0", 0x0800))
                sent.set()
            except OSError:
                continue  # there is no link right now

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        for _ in range(8):
            net = lab.box("sys-net", 1)
            await network.prepare(net.endpoint, [], uplink)
            behind = await net.wire("eth0")
            await network.plug(app.endpoint, net.endpoint)
            for _ in range(5):
                await network.prepare(net.endpoint, [app.endpoint], uplink)
            sent.clear()
            assert await asyncio.to_thread(sent.wait, 5)
            real = await app.listener(5000)
            real.sendto(CONTROL, (str(SERVER), 8000))
            seen = await asyncio.to_thread(frames_until, behind, CONTROL)
            real.close()
            assert not any(ATTACK in one for one in seen)
            net.end()
    finally:
        stop.set()
        await asyncio.to_thread(flooding.join)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/proc/1/ns/net", "a/b", "a\0b", "a b", "-x", "é", "a" * 65, "a\n"],
)
def test_a_namespace_name_cannot_leave_its_folder(name: str) -> None:
    """The feature is text that a delegated administrator may set."""
    with pytest.raises(NetworkError):
        Uplink.parse(f"netns:{name}")


async def test_a_namespace_name_that_is_a_plain_file_is_refused(lab: Lab) -> None:
    """Only a network namespace is entered; here the name is a mount point left empty."""
    lab.name_outside()
    net = lab.box("sys-net", 1)
    path = Path("/run/netns") / f"{lab.outside_name}-file"
    path.write_text("")
    try:
        with pytest.raises(NetworkError, match="does not exist"):
            await lab.network().prepare(net.endpoint, [], Uplink.parse(f"netns:{path.name}"))
    finally:
        path.unlink()
