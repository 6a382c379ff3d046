"""`caisson up` and `caisson down`: both daemons where no systemd does it."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from caisson.errors import CaissonError, DaemonError
from caisson.paths import Paths
from caisson.tools import terminal

_DAEMONS = ("qubesd", "broker")
_READY_SECONDS = 30.0
_STOP_SECONDS = 20.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
_CALM_SECONDS = 30.0
_LAST_LINES = 15


@dataclass(slots=True)
class Daemon:
    """One daemon, started again whenever it ends.

    Attributes:
        lifeline: what it reads; it ends when the other end closes, which only we hold.
        log_start: where in its log the words of its latest start begin.
    """

    name: str
    log: Path
    environment: dict[str, str]
    lifeline: int
    log_start: int = 0
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause: float = _FIRST_PAUSE
    due: float = field(default=0.0)

    def start(self) -> None:
        """Start it; what it says goes to its log."""
        with self.log.open("ab") as log:
            self.log_start = log.tell()
            self.process = subprocess.Popen(
                # `-P`: nobody's current directory may give root a module to import.
                [sys.executable, "-P", "-m", f"caisson.daemons.{self.name}", "--until-eof"],
                env=self.environment,
                stdin=self.lifeline,
                stdout=log,
                stderr=log,
                # The supervisor hands on a terminal's Ctrl-C itself, once.
                start_new_session=True,
            )
        self.started = time.monotonic()

    def look_after(self) -> None:
        """Start it again if it has ended, later each time that it ends soon."""
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            terminal.say(
                f"caisson: {self.name} ended with {self.process.returncode}; see `{self.log}`"
            )
            self.process = None
            calm = now - self.started > _CALM_SECONDS
            self.pause = _FIRST_PAUSE if calm else min(self.pause * 2, _LONGEST_PAUSE)
            self.due = now + self.pause
        if self.process is None and now >= self.due:
            self.start()

    def stop(self) -> None:
        """Ask it to end; if it does not, end it."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        """The end of what it said since it was started."""
        with suppress(OSError), self.log.open("rb") as log:
            log.seek(self.log_start)
            said = log.read().decode(errors="replace")
            return "".join(said.splitlines(keepends=True)[-_LAST_LINES:])
        return ""


def up(root: str, *, detach: bool) -> int:
    """Start both daemons and stay with them, in the foreground or behind."""
    paths = Paths(Path(root))
    if os.geteuid() != 0:
        raise DaemonError("the daemons need root", hint="run: `sudo caisson up`")
    for directory in (paths.run, paths.log):
        directory.mkdir(parents=True, exist_ok=True)
    with _only_one(paths):
        if detach:
            return _detached(paths)
        return _supervise(paths, None)


def down(root: str) -> int:
    """End the daemons that `up` started."""
    paths = Paths(Path(root))
    try:
        pid = _supervisor(paths)
    except PermissionError:
        raise DaemonError("stopping the daemons needs root", "run: `sudo caisson down`") from None
    if pid is None:
        raise DaemonError(
            f"no daemons to stop: `caisson up` does not run for `{root}`",
            hint="where systemd runs them: `sudo systemctl stop qubesd qubes-broker`",
        )
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0
    try:
        # The lock was held a moment ago by this very process: the number was not reused.
        if _supervisor(paths) == pid:
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        ended = select.select([descriptor], [], [], 2 * _STOP_SECONDS + 5)[0]
    finally:
        os.close(descriptor)
    if not ended:
        raise DaemonError("the daemons did not stop in time", hint=f"see `{paths.log}`")
    return 0


def _lock_path(paths: Paths) -> Path:
    return paths.run / "caisson-up.lock"


@contextmanager
def _only_one(paths: Paths) -> Iterator[None]:
    """Hold the lock that says that somebody looks after this instance.

    Root's alone: whoever can open the file can hold the lock, too.
    """
    lock = os.open(_lock_path(paths), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise DaemonError("the daemons run already", hint="stop them with `caisson down`") from None
    try:
        yield
    finally:
        os.close(lock)


def _supervisor(paths: Paths) -> int | None:
    """The process that holds the lock; None when nobody does."""
    try:
        lock = os.open(_lock_path(paths), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(lock, 32, 0).strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(lock)
    return None


def _detached(paths: Paths) -> int:
    """Leave a supervisor behind and return when the daemons are ready."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        # From here on this is the supervisor; it may not run into the caller's code again.
        code = 1
        try:
            os.setsid()
            os.close(reader)
            with (paths.log / "caisson-up.log").open("ab") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            code = _supervise(paths, writer)
        except CaissonError as error:
            with suppress(OSError):
                os.write(writer, str(error).encode())
        finally:
            os._exit(code)
    os.close(writer)
    # Our end of the lock goes with this process; the supervisor's copy keeps it.
    with open(reader, "rb") as answer:  # noqa: PTH123 - a descriptor, not a path
        text = answer.read().decode(errors="replace")
    if text == "ready":
        return 0
    message, _, hint = text.partition("\nhint: ")
    raise DaemonError(message or "the daemons did not start", hint or f"see `{paths.log}`")


def _supervise(paths: Paths, answer: int | None) -> int:
    """Run both daemons until told to stop.

    Args:
        paths: the instance.
        answer: a descriptor that is told `ready`, or why not; None in the foreground.
    """
    stop_reader, stop_writer = socket.socketpair()
    stop_writer.setblocking(False)
    signal.set_wakeup_fd(stop_writer.fileno())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    lock = os.open(_lock_path(paths), os.O_WRONLY | os.O_CLOEXEC)
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    os.close(lock)
    notify = paths.run / "caisson-up.notify"
    lifeline, _held = os.pipe()
    with _notifications(notify) as notifications:
        daemons = [
            Daemon(
                name,
                paths.log / f"{name}.log",
                {**os.environ, "CAISSON_ROOT": str(paths.root), "NOTIFY_SOCKET": str(notify)},
                lifeline,
            )
            for name in _DAEMONS
        ]
        try:
            for daemon in daemons:
                daemon.start()
            _wait_until_ready(daemons, notifications, stop_reader)
            if answer is not None:
                os.write(answer, b"ready")
                os.close(answer)
            else:
                terminal.say("the daemons run; Ctrl-C stops them")
            _look_after(daemons, notifications, stop_reader)
        finally:
            # The broker first: it needs nothing of the other to end.
            for daemon in reversed(daemons):
                daemon.stop()
    return 0


@contextmanager
def _notifications(path: Path) -> Iterator[socket.socket]:
    """The socket where daemons say that they are ready, as systemd has it."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        umask = os.umask(0o177)  # both daemons connect as root
        try:
            notifications.bind(os.fspath(path))
        finally:
            os.umask(umask)
        notifications.setblocking(False)
        try:
            yield notifications
        finally:
            path.unlink(missing_ok=True)


class _StoppedError(CaissonError):
    """Told to stop."""


def _wait_until_ready(
    daemons: list[Daemon], notifications: socket.socket, stop: socket.socket
) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    ready = 0
    while ready < len(daemons):
        left = deadline - time.monotonic()
        if left <= 0:
            raise DaemonError(
                f"the daemons were not ready within {_READY_SECONDS:.0f} s",
                hint=f"see `{daemons[0].log.parent}`",
            )
        readable = select.select([notifications, stop], [], [], left)[0]
        if stop in readable and _told_to_stop(stop):
            raise _StoppedError("stopped before the daemons were ready")
        if notifications in readable:
            ready += notifications.recv(4096).count(b"READY=1")
        for daemon in daemons:
            if daemon.process is not None and daemon.process.poll() is not None:
                raise DaemonError(
                    f"`{daemon.name}` did not start:\n{daemon.last_words().rstrip()}",
                    hint=f"its whole log is `{daemon.log}`",
                )


def _look_after(daemons: list[Daemon], notifications: socket.socket, stop: socket.socket) -> None:
    while True:
        for daemon in daemons:
            daemon.look_after()
        dues = [d.due - time.monotonic() for d in daemons if d.process is None]
        timeout = max(0.0, min(dues)) if dues else None
        readable = select.select([notifications, stop], [], [], timeout)[0]
        if notifications in readable:
            notifications.recv(4096)
        if stop in readable and _told_to_stop(stop):
            return


def _told_to_stop(stop: socket.socket) -> bool:
    """Whether one of the signals that came was to stop, and not just that a child ended."""
    return any(number != signal.SIGCHLD for number in stop.recv(4096))
