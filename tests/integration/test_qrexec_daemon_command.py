"""`qrexec-daemon` as a program: its command line, its exit codes, its log (sheet, section 2.6)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import getpass
import os
import shutil
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_agent import (
    CONNECT,
    EXEC,
    EXIT,
    IDENT,
    JUST_EXEC,
    PATIENCE,
    REFUSED,
    STDERR,
    STDIN,
    STDOUT,
    TRIGGER4,
    Client,
    FakeAgent,
    Link,
    fake_agent,
    frame,
    trigger,
)

from caisson.errors import DaemonError
from caisson.paths import Paths
from caisson.qrexec.vchan.programs import Program
from caisson.tools import command, qrexec_daemon

PROGRAM = Path(sys.executable).parent / "qrexec-daemon"
UUID = "00000000-0000-4000-8000-000000000042"


@dataclass
class Place:
    """Where a daemon finds its instance."""

    root: Path
    environment: dict[str, str]

    async def start(self, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
        """Start the program."""
        return await asyncio.create_subprocess_exec(
            PROGRAM,
            *arguments,
            env=os.environ | self.environment | environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Run it to its end; its exit code and what it says on stderr."""
        process = await self.start(*arguments, **environment)
        return await ended(process)

    @property
    def sockets(self) -> set[str]:
        """The sockets and links of daemons."""
        return {path.name for path in (self.root / "run/qubes").glob("qrexec.*")}

    @property
    def log(self) -> str:
        """What the daemon of `work` wrote."""
        return (self.root / "var/log/qubes/qrexec.work.log").read_text()


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str]:
    """The exit code, and what was said on stderr."""
    async with asyncio.timeout(PATIENCE):
        out, err = await process.communicate()
    assert out == b""
    assert process.returncode is not None
    return process.returncode, err.decode()


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    """An instance without daemons."""
    root = Path(tempfile.mkdtemp(prefix="caisson-wire-", dir="/tmp"))
    # The rest the daemon makes itself.
    (root / "run/vchan").mkdir(parents=True)
    yield Place(root, {"CAISSON_ROOT": str(root)})
    shutil.rmtree(root)


@pytest.fixture
async def agent(place: Place) -> AsyncIterator[FakeAgent]:
    """The agent of `work`."""
    async with fake_agent(place.root / "run/vchan", 42) as made:
        yield made


def pid_of(link: Link) -> int:
    """The process on the other side."""
    sock = link.writer.get_extra_info("socket")
    return struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]


async def gone(link: Link) -> None:
    """The other side hung up."""
    while (await link.next()).kind:
        pass


async def test_daemon_stays_in_the_background(place: Place, agent: FakeAgent):
    """The command returns when the agent is there; the end of the daemon removes its sockets."""
    process = await place.start("-u", UUID, "42", "work")
    await agent.ready()
    code, said = await ended(process)
    assert (code, said) == (0, "waiting for the agent of `work`\n")
    assert place.sockets == {"qrexec.42", "qrexec.work", f"qrexec.uuid:{UUID}"}
    agent.send(trigger(b"vault", b"my.Service\0"))
    assert await agent.next() == (REFUSED, IDENT)
    assert "event='decided for a qube'" in place.log
    os.kill(pid_of(agent.link), signal.SIGTERM)
    await gone(agent.link)
    assert place.sockets == set()


async def test_log_shows_no_byte_of_a_qube_as_it_came(place: Place, agent: FakeAgent):
    """QSB-087: escapes, NUL, CR and marks of direction in names, services and idents."""
    process = await place.start("-q", "-u", UUID, "42", "work")
    await agent.ready()
    assert await ended(process) == (0, "")
    evil = "\x1b[2J\r\u202e\x07".encode()
    for target, service, ident, source in (
        (evil, evil + b"\0", b"a", evil),
        (b"t", evil + b"\0" + evil, b"b", b""),
        (b"t", b"a\0", evil, b""),
        (b"t\0" + evil, b"a+" + evil + b"\0", b"c", b"@" + evil),
    ):
        agent.send(trigger(target, service, ident, source))
        assert (await agent.next()).kind == REFUSED
    agent.send(frame(TRIGGER4, evil))
    await gone(agent.link)
    while "error: " not in place.log:  # noqa: ASYNC110 - it is written by another process
        await asyncio.sleep(0.002)
    assert all(line.isascii() and line.isprintable() for line in place.log.split("\n"))


@pytest.mark.parametrize("direct", [[], ["-D"]])
async def test_agent_that_does_not_come_is_code_3(place: Place, direct: list[str]):
    """And nothing is left behind."""
    code, said = await place.run(
        "-q", *direct, "-u", UUID, "42", "work", QREXEC_STARTUP_TIMEOUT="0"
    )
    assert code == 3
    assert "error: the agent of `work` did not connect within 0 s\nhint: " in said
    assert place.sockets == set()


async def test_agent_that_is_too_old_is_code_1(place: Place, agent: FakeAgent):
    """Where the reason is written is told."""
    process = await place.start("-u", UUID, "42", "work")
    async with asyncio.timeout(PATIENCE):
        link = await agent.links.get()
    link.send(frame(0x300, b"\1\0\0\0"))
    code, said = await ended(process)
    assert code == 1
    assert f"hint: see `{place.root}/var/log/qubes/qrexec.work.log`" in said
    assert "error: the agent speaks version 1, which is too old" in place.log


async def test_nobody_needs_to_wait(place: Place):
    """With `QREXEC_STARTUP_NOWAIT` the agent may come whenever it likes."""
    code, _ = await place.run("-u", UUID, "42", "work", QREXEC_STARTUP_NOWAIT="1")
    assert code == 0
    async with fake_agent(place.root / "run/vchan", 42) as agent:
        await agent.ready()
        os.kill(pid_of(agent.link), signal.SIGTERM)
        await gone(agent.link)


async def test_foreground_daemon_ends_by_a_signal(place: Place, agent: FakeAgent):
    """`-D` stays, logs on stderr, and takes its sockets away."""
    process = await place.start("-D", f"--uuid={UUID}", "42", "work", "root")
    await agent.ready()
    while "qrexec.work" not in place.sockets:  # noqa: ASYNC110 - by another process
        await asyncio.sleep(0.002)
    client = await Client.to(place.root / "run/qubes/qrexec.work")
    await client.command(EXEC, 0, 0, b"DEFAULT:id\0")
    assert (await agent.next()).rest == b"root:id\0"
    client.close()
    process.send_signal(signal.SIGTERM)
    code, said = await ended(process)
    assert code == 0
    assert "the agent is there" in said
    assert place.sockets == set()


async def test_policy_program_decides_where_it_is_named(place: Place, agent: FakeAgent):
    """It gets source, target and service as words of their own; its failure is a denial.

    The service is not run by root, though the daemon is.
    """
    place.root.chmod(0o755)
    program = place.root / "policy"
    program.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@" >"$0.asked"\n'
        'printf "user=DEFAULT\\nresult=allow\\ntarget=@adminvm\\nautostart=True\\n'
        'requested_target=@adminvm\\n"\n[ "$4" = my.Good+a ]\n'
    )
    program.chmod(0o755)
    service = place.root / "my.Good"
    service.write_text(
        "#!/bin/sh\nprintf '\\033[2J\\rforged\\n%s\\n' \"$1\" >&2\n"
        'read line; echo "$line $1 $(id -un)"; exit 42\n'
    )
    service.chmod(0o755)
    process = await place.start(
        "-D",
        "-u",
        UUID,
        "-p",
        str(program),
        f"--socket-dir={place.root}/run/qubes",
        "42",
        "work",
        QREXEC_SERVICE_PATH=str(place.root),
    )
    await agent.ready()
    agent.send(trigger(b"dom0", b"my.Bad+$(a)\0"))
    assert await agent.next() == (REFUSED, IDENT)
    asked = place.root / "policy.asked"
    assert asked.read_text() == "--\nwork\ndom0\nmy.Bad+__a_\n"
    agent.send(trigger(b"dom0", b"my.Good+a\0", source=b"far"))
    assert await agent.next() == (REFUSED, IDENT)
    # A service of the admin qube is a program that connects the request.
    agent.send(trigger(b"dom0", b"my.Good+a\0"))
    connect = await agent.next()
    assert (connect.kind, connect.params, connect.rest) == (CONNECT, (0, 513), IDENT)
    data = await agent.wait_for(0, 513)
    await data.greet()
    data.send(frame(STDIN, b"hello\n"), frame(STDIN))
    said = {await data.next() for _ in range(3)}
    who = "qubes-rpc" if os.getuid() == 0 else getpass.getuser()
    assert said == {(STDOUT, f"hello a {who}\n".encode()), (STDOUT, b""), (STDERR, b"")}
    assert await data.next() == (EXIT, b"*\0\0\0")
    data.close()
    process.send_signal(signal.SIGTERM)
    code, said = await ended(process)
    assert code == 0
    # QSB-087: what a service says is a line of the log that names it, and moves no cursor.
    lines = [line for line in said.splitlines() if "a service says" in line]
    assert len(lines) == 2
    assert all(line.isprintable() and "my.Good+a" in line for line in lines)
    assert "forged" in lines[0]
    assert "\x1b[2J" not in said


async def test_plain_streams_take_the_place_of_sockets_by_name(place: Place):
    """What lies at `PREFIX.512` is the agent, and takes commands of any length."""
    async with fake_agent(place.root / "run/vchan", 42) as agent:
        (place.root / "run/vchan/vchan.42.0.512.sock").rename(place.root / "port.512")
        process = await place.start(
            "-D", "-u", UUID, "42", "work", CAISSON_VCHAN_STREAMS=f"{place.root}/port"
        )
        await agent.ready()
        while "qrexec.work" not in place.sockets:  # noqa: ASYNC110 - by another process
            await asyncio.sleep(0.002)
        client = await Client.to(place.root / "run/qubes/qrexec.work")
        text = b"user:" + b"x" * 65_521 + b"\0"
        await client.command(JUST_EXEC, 0, 0, text)
        assert (await agent.next()).rest == text
        client.close()
        process.send_signal(signal.SIGTERM)
        assert (await ended(process))[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("42", "work"),
        ("-u", "x", "42", "work"),
        ("-u", "00000000-0000-0000-0000-000000000000", "42", "work"),
        ("-u", UUID, "0", "work"),
        ("-u", UUID, "-1", "work"),
        ("-u", UUID, "042", "work"),
        ("-u", UUID, "2147483648", "work"),
        ("-u", UUID, "x", "work"),
        ("-u", UUID, "42"),
        ("-u", UUID, "42", "work", "user", "more"),
        ("-u", UUID, "-p", "/nonexistent", "42", "work"),
    ],
)
def test_command_line_without_meaning_is_code_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
):
    """With what is wrong, and what would be right."""
    assert command.main(qrexec_daemon.parser(), qrexec_daemon.run, arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "\nhint: " in said


@pytest.mark.parametrize(("name", "user"), [("../x", "user"), ("a b", "user"), ("work", "a:b")])
def test_names_are_checked(name: str, user: str, capsys: pytest.CaptureFixture[str]):
    """They become names of files and words of commands."""
    arguments = ("-u", UUID, "42", name, user)
    assert command.main(qrexec_daemon.parser(), qrexec_daemon.run, arguments) == 1
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.root
def test_services_for_a_qube_are_not_run_by_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A daemon of root's has them run as they are for the broker; any other one has no choice."""
    arguments = qrexec_daemon.parser().parse_args(["-u", UUID, "42", "work"])
    assert qrexec_daemon._settings(arguments, Paths(tmp_path)).service_user == "qubes-rpc"
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert qrexec_daemon._settings(arguments, Paths(tmp_path)).service_user == ""


async def test_program_gets_the_descriptors_that_it_is_given():
    """CVE-2024-21626: and no others, whatever is open here, under whatever numbers."""
    reader, writer = os.pipe()
    stray = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
    try:
        words = ("sh", "-c", "ls /proc/self/fd; exit 7")
        program = Program(words, {"PATH": os.environ["PATH"]}, {1: writer, 3: stray, 4: reader})
        assert await program.wait() == 7
        os.close(writer)
        writer = -1
        listing = await asyncio.to_thread(os.read, reader, 65_536)
    finally:
        for descriptor in (reader, writer, stray):
            if descriptor >= 0:
                os.close(descriptor)
    # Whoever started the tests may have left some that are no secret; `ls` has one of its own.
    inherited = _inherited()
    assert {int(word) for word in listing.split()} - inherited == {0, 1, 2, 3, 4, 5} - inherited


def _inherited() -> set[int]:
    """What programs get that are started without care."""
    found = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        with contextlib.suppress(OSError):
            if os.get_inheritable(int(name)):
                found.add(int(name))
    return found


async def test_program_that_cannot_be_watched_does_not_run(monkeypatch: pytest.MonkeyPatch):
    """Without a descriptor for it nobody would bury it, or stop it when its call ends."""
    started = []
    spawn = os.posix_spawn

    def noted(*given: Any, **more: Any) -> int:
        started.append(spawn(*given, **more))
        return started[-1]

    def none_left(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "posix_spawn", noted)
    monkeypatch.setattr(os, "pidfd_open", none_left)
    with pytest.raises(DaemonError, match="cannot be watched"):
        Program(("sleep", "infinity"), dict(os.environ), {})
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)
