"""`qrexec-link`: the service's side of a data link, for a service that runs elsewhere."""

from __future__ import annotations

import os
import struct
import subprocess

import pytest
from agent_desk import Desk
from agent_rig import BINARY, PATIENCE
from wire_peer import EXIT_CODE, OWN, PEER, STDERR, STDIN, STDOUT, Wire


class Bridge:
    """A `qrexec-link`, its four descriptors, and the caller's end of its link."""

    def __init__(self, desk: Desk) -> None:
        (desk.home / "qrexec-link").symlink_to(BINARY)
        desk.port += 1
        self.exit, theirs = os.pipe(), os.pipe()
        self.errors = theirs
        variables = {"VCHAN_DOMAIN": str(OWN), "VCHAN_SOCKET_DIR": str(desk.streams.directory)}
        script = f"exec {desk.home}/qrexec-link {PEER} {desk.port} 3<&{self.exit[0]} 4<&{theirs[0]}"
        with desk.streams.listen(PEER, OWN, desk.port) as listener:
            self.process = subprocess.Popen(
                ["/bin/bash", "-c", script],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=variables,
                pass_fds=(self.exit[0], theirs[0]),
                bufsize=0,
            )
            desk.started.append(self.process)
            self.link = Wire(listener.accept()[0])
        desk.wires.append(self.link)
        os.close(self.exit[0])
        os.close(theirs[0])
        assert self.link.greet() == 4


def test_a_service_elsewhere_is_joined_to_a_link(desk: Desk) -> None:
    """Its streams and its code; 0 once the caller was told everything."""
    bridge = Bridge(desk)
    link, process = bridge.link, bridge.process
    assert process.stdin is not None
    assert process.stdout is not None
    link.send(STDIN, b"in")
    assert process.stdout.read(2) == b"in"
    link.send(STDIN)
    assert process.stdout.read() == b""
    process.stdin.write(b"out")
    assert link.receive() == (STDOUT, b"out")
    os.write(bridge.errors[1], b"err")
    assert link.receive() == (STDERR, b"err")
    os.write(bridge.exit[1], b"4")
    os.write(bridge.exit[1], b"2\n")
    os.close(bridge.exit[1])
    process.stdin.close()
    assert link.receive() == (STDOUT, b"")
    os.close(bridge.errors[1])
    assert link.rest() == [(STDERR, b""), (EXIT_CODE, struct.pack("<i", 42))]
    assert process.wait(PATIENCE) == 0


def test_a_caller_that_vanishes_from_a_bridge(desk: Desk) -> None:
    """255, and the service elsewhere sees its input end."""
    bridge = Bridge(desk)
    bridge.link.close()
    assert bridge.process.stdout is not None
    assert bridge.process.stdout.read() == b""
    assert bridge.process.wait(PATIENCE) == 255
    os.close(bridge.exit[1])
    os.close(bridge.errors[1])


def test_a_code_that_is_none_is_told_as_255(desk: Desk) -> None:
    """Whoever runs the service failed to say how it ended."""
    bridge = Bridge(desk)
    assert bridge.process.stdin is not None
    bridge.process.stdin.close()
    os.close(bridge.errors[1])
    os.close(bridge.exit[1])
    found = bridge.link.rest()
    assert found[-1] == (EXIT_CODE, struct.pack("<i", 255))
    assert bridge.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("arguments", [[], ["1"], ["x", "513"], ["1", "-1"], ["1", "2", "3"]])
def test_usage_of_the_bridge(desk: Desk, arguments: list[str]) -> None:
    """Two numbers."""
    (desk.home / "qrexec-link").symlink_to(BINARY)
    command = [desk.home / "qrexec-link", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ")
