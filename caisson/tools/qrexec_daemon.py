"""`qrexec-daemon`: the admin qube's side of qrexec for one qube that has a wire to it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import resource
import select
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from caisson.admin.client import Client
from caisson.errors import CaissonError, DaemonError
from caisson.names import QubeName, UserName, shown
from caisson.paths import Paths
from caisson.tools import command, terminal
from caisson.tools.command import FAILURE, UsageError

if TYPE_CHECKING:
    from caisson.qrexec.vchan import Settings

TIMEOUT = 3
_SECONDS = 60.0
_ADMIN_PATIENCE = 300.0
"""Seconds for a start, or for making a disposable."""
_LONGEST_REPLY = 65_536
_DOMAIN = re.compile(r"[1-9][0-9]{0,9}")
_HIGHEST_DOMAIN = 2**31 - 1
_READY = b"ready"
_FILES = 8192


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command.parser(
        "qrexec-daemon",
        "Connect a qube that speaks the qrexec wire protocol: a virtual machine, another machine.\n"
        "Waits for the qube's agent, goes to the background, and serves the qube until it is told\n"
        "to stop. Where the broker listens for the qube, the broker decides its calls; else the\n"
        "policy does, and calls go from daemon to daemon.",
        "environment: QREXEC_STARTUP_TIMEOUT: seconds to wait for the agent (default: 60);\n"
        "QREXEC_STARTUP_NOWAIT: do not wait; VCHAN_SOCKET_DIR: directory of the streams;\n"
        "CAISSON_VCHAN_STREAMS: prefix of plain streams, which are used instead\n"
        "exit codes: 0 the agent is there; 1 failed; 2 the command line has no meaning;\n"
        "3 the agent did not come in time",
    )
    made.add_argument("domain", metavar="DOMID", help="number of the qube")
    made.add_argument("name", metavar="NAME", help="name of the qube")
    made.add_argument(
        "default_user",
        metavar="DEFAULT_USER",
        nargs="?",
        default="user",
        help="user in the qube where none is named (default: user)",
    )
    made.add_argument("--uuid", "-u", metavar="UUID", required=True, help="UUID of the qube")
    made.add_argument(
        "--socket-dir",
        metavar="DIR",
        type=Path,
        help="directory of the daemons' sockets (default: /run/qubes)",
    )
    made.add_argument(
        "--policy-program",
        "-p",
        metavar="PROGRAM",
        type=Path,
        help="ask this program, called as qrexec-policy-exec is (default: ask the policy socket)",
    )
    made.add_argument(
        "--direct", "-D", action="store_true", help="stay in the foreground, log on stderr"
    )
    return made


def run(arguments: argparse.Namespace, client: Client) -> int:
    """Serve, here or in the background."""
    settings = _settings(arguments, Paths(Path(client.root)))
    _keep_descriptors_in()
    # A call holds up to four descriptors, and a qube may have 512 of them.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _FILES), hard))
    seconds = None if os.environ.get("QREXEC_STARTUP_NOWAIT") else _timeout()
    log = settings.paths.log / f"qrexec.{settings.name}.log"
    _make_directories(settings.paths)
    # Addresses of sockets are short: those in this directory are given relative to it.
    os.chdir(settings.directory)
    if arguments.direct:
        return _serve(settings, seconds, lambda: None)
    if not arguments.quiet:
        terminal.say(f"waiting for the agent of `{settings.name}`")
    return _in_background(settings, seconds, log)


def _make_directories(paths: Paths) -> None:
    """Have the instance's directories, where nothing else of it ran before."""
    for directory in (paths.run, paths.log):
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)


def _keep_descriptors_in() -> None:
    """What our starter left open is not for the programs that carry a qube's data."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        with contextlib.suppress(OSError):
            if int(name) > 2:  # noqa: PLR2004 - standard streams
                os.set_inheritable(int(name), False)


def _settings(arguments: argparse.Namespace, paths: Paths) -> Settings:
    from caisson.dom0 import DEFAULT_USER
    from caisson.qrexec.vchan import Settings
    from caisson.qrexec.vchan.streams import Places

    program = arguments.policy_program
    if program is not None and not os.access(program, os.X_OK):
        raise UsageError(
            f"policy program `{shown(str(program))}` cannot be run",
            "name a program with --policy-program, or leave the option out",
        )
    return Settings(
        paths,
        (arguments.socket_dir or paths.run).absolute(),
        _domain(arguments.domain),
        QubeName.parse(arguments.name),
        _uuid(arguments.uuid),
        UserName.parse(arguments.default_user),
        program.absolute() if program is not None else None,
        Places.of_environment(paths),
        # What a qube says is not for root; anybody else has no other user to give.
        DEFAULT_USER if os.getuid() == 0 else "",
    )


def _domain(untrusted: str) -> int:
    if _DOMAIN.fullmatch(untrusted) is None or int(untrusted) > _HIGHEST_DOMAIN:
        raise UsageError(
            f"`{shown(untrusted)}` is no number of a qube", f"use 1 to {_HIGHEST_DOMAIN}"
        )
    return int(untrusted)


def _uuid(untrusted: str) -> str:
    try:
        found = uuid.UUID(untrusted)
    except ValueError:
        found = uuid.UUID(int=0)
    if str(found) != untrusted.lower() or not found.int:
        raise UsageError(
            f"`{shown(untrusted)}` is no UUID of a qube",
            "`qvm-prefs NAME uuid` tells it",
        )
    return f"uuid:{found}"


def _timeout() -> float:
    text = os.environ.get("QREXEC_STARTUP_TIMEOUT", "")
    if not text:
        return _SECONDS
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"QREXEC_STARTUP_TIMEOUT `{shown(text)}` is no number of seconds")
    return float(text)


def _in_background(settings: Settings, seconds: float | None, log: Path) -> int:
    """Leave a daemon behind, and tell whether its agent came."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        # From here on this is the daemon; it may not run into the caller's code again.
        code = FAILURE
        try:
            os.setsid()
            os.close(reader)
            null = os.open(os.devnull, os.O_RDWR)
            for number, descriptor in ((0, null), (1, null), (2, output)):
                os.dup2(descriptor, number)
            code = command.guarded(lambda: _serve(settings, None, lambda: _tell(writer)))
        finally:
            os._exit(code)
    os.close(writer)
    os.close(output)
    if seconds is None:
        return 0
    if not select.select([reader], [], [], seconds)[0]:
        os.kill(pid, signal.SIGTERM)
        terminal.complain(_too_late(settings, seconds))
        return TIMEOUT
    if os.read(reader, len(_READY)) == _READY:
        return 0
    raise DaemonError(
        f"the daemon of `{settings.name}` ended before its agent came", hint=f"see `{log}`"
    )


def _tell(writer: int) -> None:
    """Tell the parent, if it waits, that the agent is there."""
    try:
        os.write(writer, _READY)
    except BrokenPipeError:
        pass
    finally:
        os.close(writer)


def _too_late(settings: Settings, seconds: float) -> CaissonError:
    return DaemonError(
        f"the agent of `{settings.name}` did not connect within {seconds:.0f} s",
        hint="start it in the qube: qrexec-agent; or wait longer: QREXEC_STARTUP_TIMEOUT=SECONDS",
    )


def _serve(settings: Settings, seconds: float | None, connected: Callable[[], None]) -> int:
    """Serve until told to stop.

    Args:
        settings: what the daemon is about.
        seconds: how long to wait for the agent's first hello; None: for ever.
        connected: called then.
    """
    from caisson.daemons import logs

    logs.configure()
    try:
        asyncio.run(_served(settings, seconds, connected))
    except TimeoutError:
        assert seconds is not None  # noqa: S101
        terminal.complain(_too_late(settings, seconds))
        return TIMEOUT
    except asyncio.CancelledError:
        pass
    return 0


async def _served(settings: Settings, seconds: float | None, connected: Callable[[], None]) -> None:
    from caisson.qrexec.vchan import Daemon

    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    told = False

    def there() -> None:
        nonlocal told
        if not told:
            told = True
            patience.reschedule(None)
            _give_up_borrowed()
            connected()

    async def admin(method: str, destination: str, payload: bytes) -> bytes:
        return await _admin(settings.paths.qubesd, method, destination, payload)

    async with asyncio.timeout(seconds) as patience:
        await Daemon(settings, admin, there).run()


def _give_up_borrowed() -> None:
    """Be whoever started us, where the program belongs to somebody else and lends its rights."""
    group, user = os.getgid(), os.getuid()
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)


async def _admin(path: Path, method: str, destination: str, payload: bytes) -> bytes:
    """Call qubesd; unlike `Client` it waits in the loop, and can be cancelled."""
    from caisson.admin import wire
    from caisson.qrexec.link import address

    try:
        async with asyncio.timeout(_ADMIN_PATIENCE):
            reader, writer = await asyncio.open_unix_connection(address(path))
            try:
                writer.write(wire.build_request(method, "", destination, payload))
                writer.write_eof()
                reply = await reader.read(_LONGEST_REPLY)
                while not reader.at_eof() and len(reply) < _LONGEST_REPLY:
                    reply += await reader.read(_LONGEST_REPLY)
            finally:
                writer.close()
    except TimeoutError:
        raise DaemonError(f"qubesd took too long for `{method}`") from None
    except OSError as e:
        raise DaemonError(
            f"qubesd does not answer at `{path}`: {(e.strerror or str(e)).lower()}",
            hint="start the daemons: caisson up",
        ) from None
    if not reply:
        raise DaemonError(f"qubesd gives no answer to `{method}`")
    return wire.parse_reply(reply)


def main() -> int:
    """Entry point."""
    return command.main(parser(), run)
