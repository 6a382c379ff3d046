"""A daemon that answers recorded frames on a real socket, and tells what it was asked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import AF_UNIX, SHUT_WR, SOCK_STREAM, socket

import pytest
from patience import PATIENCE

BIN = Path(sys.executable).parent
SOON = PATIENCE
_READING = (".List", ".Get", ".GetAll", ".Info", ".ListSnapshots", ".Available", ".Assigned")


@dataclass(frozen=True)
class Refusal:
    """An exception frame."""

    kind: str
    text: str = "no"

    def frame(self) -> bytes:
        """The bytes (sheet `admin-api`, section 1.3)."""
        return f"2\0{self.kind}\0\0{self.text}\0".encode()


NOTHING = Refusal("")
"""No frame at all: the connection is closed."""
# A system of four, and the properties of one of them.
LIST = (
    "dom0 class=AdminVM state=Running uuid=00000000-0000-0000-0000-000000000000\n"
    "src class=AppVM state=Halted uuid=00000000-0000-0000-0000-000000000001\n"
    "tpl class=TemplateVM state=Halted uuid=00000000-0000-0000-0000-000000000002\n"
    "zzz class=AppVM state=Suspended uuid=00000000-0000-0000-0000-000000000003\n"
)
PROPERTIES = (
    "autostart default=True type=bool False\n"
    "dispid default=False type=int 7\n"
    "kernelopts default=False type=str a\\\\b\\nc\n"
    "label default=False type=label red\n"
    "name default=False type=str src\n"
    "netvm default=False type=vm \n"
    "qid default=False type=int 5\n"
    "template default=False type=vm tpl\n"
    "uuid default=False type=str 00000000-0000-0000-0000-000000000001\n"
)

Answer = str | bytes | Refusal
Answers = Mapping[str, Answer | list[Answer] | Callable[[bytes], Answer]]


def asked(request: bytes) -> str:
    """A request as the tests write it: `METHOD+ARGUMENT@DEST PAYLOAD`."""
    header, _, payload = request.partition(b"\0")
    service, source, kind, destination = header.decode().split(" ")
    assert (source, kind) == ("dom0", "name")
    call = f"{service.removesuffix('+')}@{destination}"
    return f"{call} {payload.decode()}" if payload else call


@dataclass
class FakeDaemon:
    """The daemon.

    Args:
        root: root directory of the instance.
        answers: by `METHOD+ARGUMENT@DEST`; of a list, the next each time. What is not there is
            refused as an unknown method is.
    """

    root: Path
    answers: Answers
    requests: list[str] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    @property
    def changes(self) -> list[str]:
        """The requests that ask for more than to be told something."""
        return [
            r for r in self.requests if not r.partition("@")[0].partition("+")[0].endswith(_READING)
        ]

    def reply(self, request: bytes) -> bytes:
        """The reply to a request, which is noted."""
        told = asked(request)
        payload = request.partition(b"\0")[2]
        with self.arrived:
            self.requests.append(told)
            self.arrived.notify_all()
        found = self.answers.get(told.split(" ")[0], Refusal("ProtocolError", "unknown method"))
        if isinstance(found, list):
            found = found.pop(0)
        elif callable(found):
            found = found(payload)
        if found is NOTHING:
            return b""
        if isinstance(found, Refusal):
            return found.frame()
        return b"0\0" + (found if isinstance(found, bytes) else found.encode())

    def wait_for(self, call: str) -> None:
        """Wait until a request has arrived."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: call in self.requests, SOON)

    def environment(self) -> dict[str, str]:
        """The environment of commands that speak to it."""
        kept = {k: v for k, v in os.environ.items() if k not in {"EDITOR", "VISUAL"}}
        path = f"{BIN}:{os.environ['PATH']}"
        return kept | {"CAISSON_ROOT": str(self.root), "PATH": path, "NO_COLOR": "1"}

    def run(
        self, *argv: str, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, str]:
        """Run a command; returns its exit code, stdout and stderr."""
        done = subprocess.run(
            [BIN / argv[0], *argv[1:]],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=SOON,
            env=self.environment() | dict(env or {}),
        )
        return done.returncode, done.stdout, done.stderr.decode()


Start = Callable[[Answers], FakeDaemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a daemon with these answers; it ends with the test."""
    with ExitStack() as running:
        yield lambda answers: running.enter_context(fake_daemon(tmp_path, answers))


@contextmanager
def fake_daemon(root: Path, answers: Answers) -> Iterator[FakeDaemon]:
    """A daemon for as long as the context lasts."""
    daemon = FakeDaemon(root, answers)
    (root / "run").mkdir(exist_ok=True)
    with socket(AF_UNIX, SOCK_STREAM) as listener:
        listener.bind(str(root / "run/qubesd.sock"))
        listener.listen(64)
        thread = threading.Thread(target=_serve, args=(listener, daemon))
        thread.start()
        try:
            yield daemon
        finally:
            # Wakes the thread, which closing the socket would not.
            with socket(AF_UNIX, SOCK_STREAM) as last:
                last.connect(str(root / "run/qubesd.sock"))
                last.shutdown(SHUT_WR)
            thread.join()


def _serve(listener: socket, daemon: FakeDaemon) -> None:
    threads = []
    while True:
        connection, _ = listener.accept()
        request = _received(connection)
        if not request:
            connection.close()
            break
        thread = threading.Thread(target=_answer, args=(connection, request, daemon))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()


def _answer(connection: socket, request: bytes, daemon: FakeDaemon) -> None:
    with connection:
        reply = daemon.reply(request)
        try:
            connection.sendall(reply)
        except BrokenPipeError:
            # The command was interrupted.
            return


def _received(connection: socket) -> bytes:
    chunks = []
    while chunk := connection.recv(65_536):
        chunks.append(chunk)
    return b"".join(chunks)
