"""`qrexec-client` at the socket of the broker."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from agent_rig import PATIENCE, Listener, link_clients, read_all, shut
from broker_desk import Desk
from client_rig import finish

from caisson.qrexec.wire import AdminCall, parse_admin


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        (["-d", "work", "DEFAULT:ls -l"], b"Dwork\0\0ls -l"),
        (["-d", "work", "root:nogui:a:b"], b"Dwork\0root\0nogui:a:b"),
        (["-dwork", "u:nogui:QUBESRPC a.B dom0"], b"Dwork\0u\0nogui:QUBESRPC a.B dom0"),
        (["-edwork", "u:nogui:QUBESRPC a.B dom0"], b"Jwork\0u\0nogui:QUBESRPC a.B dom0"),
        (["-edwork", "u:nogui:ls"], b"Jwork\0u\0nogui:(ls\n) </dev/null >/dev/null 2>&1 &"),
        (["-d", "work", "user:QUBESRPC a.B+c dom0"], b"Dwork\0user\0QUBESRPC a.B+c dom0"),
        (["-e", "-d", "work", "u:QUBESRPC a.B dom0"], b"Jwork\0u\0QUBESRPC a.B dom0"),
        (["-edwork", "u:ls"], b"Jwork\0u\0(ls\n) </dev/null >/dev/null 2>&1 &"),
    ],
)
def test_requests_of_the_admin_qube(desk: Desk, arguments: list[str], request_: bytes) -> None:
    """As the broker reads them."""
    process = desk.start(*arguments, name="qrexec-client")
    _, request, pipes = desk.answer(b"R")
    assert request == request_
    assert isinstance(parse_admin(request), AdminCall)
    assert finish(process)[0] == 126
    shut(pipes.service)


def test_the_admin_client_finds_its_socket_below_the_root(tmp_path: Path) -> None:
    """`CAISSON_ROOT` moves everything."""
    directory = tmp_path / "run/qubes/broker/dom0"
    directory.mkdir(parents=True)
    listener = Listener(directory / "qrexec")
    link_clients(tmp_path)
    command = [tmp_path / "qrexec-client", "-d", "work", "root:true"]
    process = subprocess.Popen(command, env={"CAISSON_ROOT": str(tmp_path)})
    peer = listener.accept()
    assert peer.receive() == b"Dwork\0root\0true"
    peer.send(b"X9")
    assert process.wait(timeout=PATIENCE) == 9
    listener.close()


def test_the_admin_client_can_hide_the_code(desk: Desk) -> None:
    """`-E`, for callers that only want to know that it ran."""
    process = desk.start("-E", "-d", "work", "root:false", name="qrexec-client")
    desk.listener.accept().send(b"X1")
    assert finish(process)[0] == 0


def test_a_command_of_the_admin_qube_speaks_with_the_remote_one(desk: Desk) -> None:
    """`-l`, through the broker too; a service in its place is refused, not dropped."""
    process = desk.start("-d", "work", "-l", "read x; echo $x; exit 4", "u:x", name="qrexec-client")
    peer, _, pipes = desk.answer()
    os.write(pipes.service[1], b"line\n")
    assert read_all(pipes.service[0]) == b"line\n"
    shut(pipes.service)
    peer.send(b"X0")
    assert finish(process)[0] == 4
    process = desk.start("-d", "work", "-l", "QUBESRPC a.B dom0", "u:x", name="qrexec-client")
    assert finish(process)[0] == 125


def test_the_admin_client_kills_the_qube_at_the_end(desk: Desk) -> None:
    """`-k`, through the broker too: qubesd is asked once the call has ended."""
    (desk.home / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as qubesd:
        qubesd.bind(str(desk.home / "run/qubesd.sock"))
        qubesd.listen()
        qubesd.settimeout(PATIENCE)
        environment = {"CAISSON_ROOT": str(desk.home)}
        process = desk.start("-k", "-d", "work", "u:x", name="qrexec-client", env=environment)
        desk.listener.accept().send(b"X5")
        with qubesd.accept()[0] as connection:
            assert connection.makefile("rb").read() == b"admin.vm.Kill dom0 name work\0"
            connection.sendall(b"0\0")
        assert finish(process)[0] == 5


@pytest.mark.parametrize("arguments", [["root:true"], ["-d", "work"], ["-d", "work", "true"]])
def test_wrong_command_lines_of_the_admin_client(desk: Desk, arguments: list[str]) -> None:
    """Usage errors are 2."""
    assert finish(desk.start(*arguments, name="qrexec-client"))[0] == 2
