"""`qrexec-client -d dom0`: calls of the admin qube to itself."""

from __future__ import annotations

import os
import socket

import pytest
from agent_rig import eventually
from client_rig import finish
from daemon_desk import Desk


def test_the_admin_qube_calls_itself_directly(desk: Desk) -> None:
    """The service takes the client's place: its streams, its code."""
    desk.service("a.Own", '#!/bin/sh\necho "$1 $QREXEC_REMOTE_DOMAIN"; cat; exit 8\n')
    for qube in ("dom0", "@adminvm", "uuid:00000000-0000-0000-0000-000000000000"):
        process = desk.start("-d", qube, "DEFAULT:QUBESRPC a.Own+x dom0")
        assert finish(process, b"in") == (8, b"x dom0\nin", b"")
    process = desk.start("-E", "-d", "dom0", "DEFAULT:QUBESRPC a.Own+x dom0")
    assert finish(process, b"in")[:2] == (0, b"x dom0\nin")


def test_services_of_the_admin_qube_lie_below_its_root(desk: Desk) -> None:
    """So do their settings: many instances live side by side."""
    for path, text in (
        ("etc/qubes-rpc/a.Root", "#!/bin/sh\necho below\n"),
        ("etc/qubes/rpc-config/a.Bad", "x\n"),
    ):
        (desk.home / path).parent.mkdir(parents=True)
        (desk.home / path).write_text(text)
    (desk.home / "etc/qubes-rpc/a.Root").chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "CAISSON_ROOT": str(desk.home)}
    for service, expected in (("a.Root", (0, b"below\n")), ("a.Bad", (125, b""))):
        process = desk.start("-d", "dom0", f"DEFAULT:QUBESRPC {service} dom0", env=environment)
        assert finish(process)[:2] == expected


def test_just_exec_in_the_admin_qube_does_not_wait(desk: Desk) -> None:
    """0 where the service has begun, 127 where there is none."""
    gate = desk.home / "gate"
    os.mkfifo(gate)
    desk.service("a.Slow", f"#!/bin/sh\nread x <{gate}; echo done >{desk.home}/done\n")
    assert finish(desk.start("-e", "-d", "dom0", "DEFAULT:QUBESRPC a.Slow dom0"))[0] == 0
    gate.write_text("go\n")
    eventually((desk.home / "done").exists)
    assert finish(desk.start("-e", "-d", "dom0", "DEFAULT:QUBESRPC a.None dom0"))[0] == 127


@pytest.mark.parametrize(
    "arguments",
    [
        ["user:QUBESRPC a.Own dom0"],
        ["QUBESRPC a.Own dom0"],
        ["DEFAULT:echo ran"],
        ["DEFAULT:nogui:QUBESRPC a.Own dom0"],
        ["DEFAULT:QUBESRPC a.Own dom0 name"],
        ["DEFAULT:QUBESRPC a.Socket dom0"],
        ["DEFAULT:QUBESRPC a.Tcp dom0"],
        ["-l", "true", "DEFAULT:QUBESRPC a.Own dom0"],
        ["-p", "x", "DEFAULT:QUBESRPC a.Own dom0"],
        ["-t", "DEFAULT:QUBESRPC a.Own dom0"],
    ],
)
def test_what_the_admin_qube_does_not_do_for_itself(desk: Desk, arguments: list[str]) -> None:
    """125, and nothing runs; a wish is never dropped silently."""
    desk.service("a.Own", "#!/bin/sh\necho ran\n")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(desk.home / "services/a.Socket"))
        listening.listen()
        (desk.home / "services/a.Tcp").symlink_to("/dev/tcp/127.0.0.1/1")
        result, stdout, stderr = finish(desk.start("-d", "dom0", *arguments))
    assert (result, stdout) == (125, b"")
    assert stderr.startswith(b"error: ")
