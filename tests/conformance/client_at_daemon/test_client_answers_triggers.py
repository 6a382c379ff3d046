"""`qrexec-client -c`: calls of qubes, connected to other qubes or served in the admin qube."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess

import pytest
from agent_rig import eventually
from client_rig import finish
from daemon_desk import VAULT, WORK, Desk, code
from daemon_peer import whole
from wire_peer import EXEC_CMDLINE, EXIT_CODE, SERVICE_CONNECT, STDERR, STDIN, STDOUT, Wire, numbers


def test_two_qubes_are_brought_together(desk: Desk) -> None:
    """The target's daemon allots the port, the source's hears of it, and we leave."""
    work, vault = desk.daemon(), desk.daemon("vault", VAULT)
    process = desk.start("-d", "vault", "-c", "SOCKET9,work,42", "user:QUBESRPC a.B+ work")
    asked = vault.command(vault.accept(), 514)
    assert asked == (EXEC_CMDLINE, WORK, 0, b"user:QUBESRPC a.B+ work\0")
    expected = numbers(VAULT, 514) + b"SOCKET9".ljust(32, b"\0")
    assert work.accept().receive() == (SERVICE_CONNECT, expected)
    assert finish(process) == (0, b"", b"")


def test_the_end_of_their_call_can_be_waited_for(desk: Desk) -> None:
    """`-W`: until the target's daemon closes our connection."""
    work, vault = desk.daemon(), desk.daemon("vault", VAULT)
    process = desk.start("-W", "-d", "vault", "-c", "SOCKET9,work,42", "user:x")
    wire = vault.accept()
    vault.command(wire, 514)
    work.accept().receive()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.1)
    wire.close()
    assert finish(process)[0] == 0


def test_qubes_that_cannot_be_brought_together_are_137(desk: Desk) -> None:
    """Whichever daemon is missing."""
    arguments = ("-d", "vault", "-c", "SOCKET9,work,42", "user:x")
    assert finish(desk.start(*arguments))[0] == 137
    vault = desk.daemon("vault", VAULT)
    process = desk.start(*arguments)
    vault.command(vault.accept(), 514)
    assert finish(process)[0] == 137


def serve(desk: Desk, command: str, port: int = 513) -> tuple[subprocess.Popen[bytes], Wire]:
    """A trigger of `work` for the admin qube, served; the machine's end of the link."""
    work = desk.daemon()
    listening = work.listen(port)
    process = desk.start("-d", "dom0", "-c", "SOCKET9,work,42", command)
    wire = work.accept()
    expected = bytes(8) + b"SOCKET9".ljust(32, b"\0")
    assert wire.receive() == (SERVICE_CONNECT, expected)
    wire.send(SERVICE_CONNECT, numbers(WORK, port))
    link = Wire(listening.accept()[0])
    assert link.greet(4) == 4
    return process, link


@pytest.mark.parametrize("user", ["", "DEFAULT:"])
def test_the_admin_qube_serves_a_trigger(desk: Desk, user: str) -> None:
    """Its service sees the caller and the target; its errors stay in the admin qube."""
    desk.service(
        "a.Serve",
        "#!/bin/sh\n"
        'echo "$1 $QREXEC_REMOTE_DOMAIN $QREXEC_REQUESTED_TARGET_KEYWORD"\n'
        "cat; echo log >&2; exit 3\n",
    )
    process, link = serve(desk, f"{user}QUBESRPC a.Serve+arg work keyword adminvm")
    assert link.receive() == (STDERR, b"")
    link.send(STDIN, b"input")
    link.send(STDIN)
    assert whole(link, STDOUT) == b"arg work adminvm\ninput"
    assert link.receive() == (EXIT_CODE, code(3))
    link.close()
    assert finish(process) == (3, b"", b"log\n")


def test_a_service_of_the_admin_qube_has_the_signals_of_any_program(desk: Desk) -> None:
    """None is held back, and a pipe that breaks ends it."""
    desk.service("a.Signals", "#!/bin/sh\nexec grep -E '^Sig(Ign|Blk):' /proc/self/status\n")
    process, link = serve(desk, "QUBESRPC a.Signals+ work name dom0")
    assert link.receive() == (STDERR, b"")
    _, blocked, _, ignored = whole(link, STDOUT).split()
    assert int(blocked, 16) == 0
    assert not int(ignored, 16) & 1 << signal.SIGPIPE - 1
    assert link.receive() == (EXIT_CODE, code(0))
    link.close()
    assert finish(process)[0] == 0


def test_a_service_that_the_admin_qube_lacks_is_127(desk: Desk) -> None:
    """Errors end first, then output, then the code."""
    process, link = serve(desk, "QUBESRPC a.Missing+ work name dom0")
    assert [link.receive() for _ in range(3)] == [
        (STDERR, b""),
        (STDOUT, b""),
        (EXIT_CODE, code(127)),
    ]
    link.close()
    result, _, stderr = finish(process)
    assert (result, stderr) == (127, b"error: the called qube has no service `a.Missing+`\n")


def test_a_socket_may_serve_a_trigger(desk: Desk) -> None:
    """It is told all that followed `QUBESRPC `."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(desk.home / "services/policy.Ask"))
        listening.listen()
        process, link = serve(desk, "QUBESRPC policy.Ask+ work name dom0")
        with listening.accept()[0] as connection:
            link.send(STDIN, b"ask")
            link.send(STDIN)
            assert connection.makefile("rb").read() == b"policy.Ask+ work name dom0\0ask"
            connection.sendall(b"deny")
        assert link.receive() == (STDERR, b"")
        assert whole(link, STDOUT) == b"deny"
        assert link.receive() == (EXIT_CODE, code(0))
        link.close()
    assert finish(process)[0] == 0


def test_a_shell_line_is_no_service_of_the_admin_qube(desk: Desk) -> None:
    """QSB-038: nothing that a qube triggered becomes a command line."""
    desk.daemon()
    for command in ("DEFAULT:touch ran", "QUBESRPC", "QUBESRPCa.B work", "root:QUBESRPC a.B"):
        result, stdout, _ = finish(desk.start("-d", "dom0", "-c", "S,work,42", command))
        assert (result, stdout) == (125, b"")


@pytest.mark.root
def test_a_service_for_a_named_user_gains_no_rights(desk: Desk) -> None:
    """It is that user's alone, and no program that it runs makes it more."""
    desk.home.chmod(0o755)
    desk.service("a.Who", "#!/bin/sh\nid -u; grep NoNewPrivs /proc/self/status\n")
    process, link = serve(desk, "nobody:QUBESRPC a.Who+ work name dom0")
    assert link.receive() == (STDERR, b"")
    uid, _, bit = whole(link, STDOUT).split()
    assert (int(uid), int(bit)) == (pwd.getpwnam("nobody").pw_uid, 1)
    assert link.receive() == (EXIT_CODE, code(0))
    link.close()
    assert finish(process)[0] == 0


def test_a_trigger_whose_caller_left_does_not_wait_for_a_session(desk: Desk) -> None:
    """A qube must not collect processes of the admin qube, whose log is open all the time."""
    begun = desk.home / "begun"
    gate = desk.home / "gate"
    os.mkfifo(gate)
    desk.service("qubes.WaitForSession", f"#!/bin/sh\n: >{begun}; read x <{gate}\n")
    desk.service("a.Waits", "#!/bin/sh\n")
    (desk.home / "settings").mkdir()
    (desk.home / "settings/a.Waits").write_text("wait-for-session = true\n")
    first, first_link = serve(desk, "QUBESRPC a.Waits+ work name dom0")
    eventually(begun.exists)
    desk.daemons.pop().close()
    second, link = serve(desk, "QUBESRPC a.Waits+ work name dom0", 514)
    assert link.receive() == (STDERR, b"")
    link.close()
    # Its standard error ends with the last of its processes.
    assert finish(second)[0] == 255
    gate.write_text("go\n")
    assert first_link.receive() == (STDERR, b"")
    assert whole(first_link, STDOUT) == b""
    assert first_link.receive() == (EXIT_CODE, code(0))
    first_link.close()
    assert finish(first)[0] == 0
