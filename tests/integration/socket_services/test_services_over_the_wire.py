"""The same services through an agent in another machine."""

from __future__ import annotations

import os
import socket

import pytest
from agent_rig import PATIENCE
from wire_peer import STDERR, STDIN, STDOUT, code_of, joined, wire_agent


def test_a_socket_serves_a_call_over_the_wire() -> None:
    """Errors end at once, output with the service, and the code is 0."""
    with wire_agent() as machine, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(machine.home / "services/a.Socket"))
        listening.settimeout(PATIENCE)
        listening.listen()
        link = machine.call(f"{machine.user}:QUBESRPC a.Socket+x work name y")
        with listening.accept()[0] as connection:
            assert link.receive() == (STDERR, b"")
            link.send(STDIN, b"input")
            link.send(STDIN)
            assert connection.makefile("rb").read() == b"a.Socket+x work name y\0input"
            connection.sendall(b"output")
        assert joined(rest := link.rest(), STDOUT) == b"output"
        assert code_of(rest) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's agent starts a login shell")
def test_the_login_shell_sees_words_and_no_script() -> None:
    """QSB-038: names and arguments pass through it byte by byte."""
    with wire_agent() as machine:
        for character in "$`'\"\\;|&*?~#!(){}<>^=\xff":
            argument = f"a{character}(id){character}$HOME"
            name = f"q{character}Name"
            machine.write_service(
                name, '#!/bin/sh\nprintf "%s\\n%s\\n%s\\n" "$1" "$QREXEC_SERVICE_ARGUMENT" "$#"\n'
            )
            outcome = machine.outcome(f"root:QUBESRPC {name}+{argument} work")
            assert outcome[:2] == (0, f"{argument}\n{argument}\n1\n".encode())
        assert machine.outcome("root:QUBESRPC q.None+ work")[0] == 127
