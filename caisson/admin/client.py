"""The client of the Admin API, as the commands use it: synchronous, and quick to import.

In the admin qube it speaks to the daemon's socket; inside another qube the same calls go over
qrexec, under policy (specification sheet `admin-api`, section 1.5).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, ClassVar

from caisson.admin import wire
from caisson.errors import DaemonError, QubeNotFoundError, ValueRefusedError
from caisson.names import shown

QREXEC_CLIENT = "qrexec-client-vm"
_CHUNK = 65_536


class NoAnswerError(DaemonError):
    """The daemon, or the policy on the way to it, refused a call without saying why."""

    wire_name: ClassVar[str] = "QubesDaemonAccessError"


class Client:
    """Calls the daemon of one instance.

    Each call opens a connection of its own, so one client serves many threads.

    Args:
        root: the root directory of the instance; by default `CAISSON_ROOT`, else `/`.
        qrexec: the program that calls services of other qubes, where calls are to go over qrexec.
            By default that is so where the root is `/`, no daemon has its socket there, and the
            program is on `PATH`. An instance with a root of its own is never taken for this one.
    """

    def __init__(self, root: str | None = None, *, qrexec: str | None = None) -> None:
        self.root = os.path.abspath(root or os.environ.get("CAISSON_ROOT") or "/")  # noqa: PTH100
        self.socket_path = self._below_root("run/qubesd.sock")
        self.qrexec = qrexec or self._qrexec_of_this_qube()

    def call(
        self, method: str, argument: str = "", destination: str = "dom0", payload: bytes = b""
    ) -> bytes:
        """Call a method and wait for its answer, however long it takes.

        Raises:
            CaissonError: the daemon refused; the class tells the reason.
            NoAnswerError: it closed the connection without an answer, or the call was denied.
            DaemonError: there is no daemon.
            ValueRefusedError: the payload is longer than a request may be.
        """
        with self._answer(method, argument, destination, payload) as chunks:
            reply = b"".join(chunks)
        return _content(method, reply)

    def service(self, method: str, argument: str = "", payload: bytes = b"") -> tuple[bytes, bytes]:
        """Call a service of the admin qube that answers other qubes without a frame, `policy.*`.

        In the admin qube it is a method like the others.

        Returns:
            The answer, and what the service tells a person beside it.

        Raises:
            CaissonError: the service refused; the class tells the reason.
            NoAnswerError: the call was denied.
        """
        if self.qrexec is None:
            return self.call(method, argument, "dom0", payload), b""
        return _run_service(self.qrexec, method, argument, payload)

    def text(
        self, method: str, argument: str = "", destination: str = "dom0", payload: bytes = b""
    ) -> str:
        """Call a method whose answer is text."""
        return self.call(method, argument, destination, payload).decode("utf-8", "backslashreplace")

    def lines(self, method: str, argument: str = "", destination: str = "dom0") -> list[str]:
        """Call a method whose answer is a list, one item a line."""
        text = self.text(method, argument, destination)
        # Not `splitlines`, which takes a form feed in a value, and more, for the end of a line.
        return text.removesuffix("\n").split("\n") if text else []

    def events(
        self, method: str = "admin.Events", argument: str = "", destination: str = "dom0"
    ) -> Iterator[wire.Occurrence]:
        """Yield the events of a stream until the daemon ends it."""
        with self._answer(method, argument, destination, b"") as chunks:
            yield from wire.parse_events(chunks)

    def exchange(self, request: bytes, socket_path: str | None = None) -> Iterator[bytes]:
        """Send the bytes of a request to a socket and yield those of its reply as they come."""
        with self._connection(request, socket_path or self.socket_path) as connection:
            yield from _received(connection)

    def upload(self, method: str, argument: str, destination: str, data: Iterator[bytes]) -> bytes:
        """Call a method that takes more than fits a request: the data of a volume (section 1.6).

        In the admin qube a program in `/etc/qubes-rpc` does it.

        Raises:
            CaissonError: the daemon refused.
            DaemonError: the program is missing, or it gave no answer.
        """
        if self.qrexec is not None:
            return self._piped([self.qrexec, destination, f"{method}+{argument}"], method, data)
        program = self._below_root(f"etc/qubes-rpc/{method}")
        if not os.access(program, os.X_OK):
            # The daemon says best why there is no such program.
            self.call("admin.vm.volume.Import", argument, destination)
            raise DaemonError(
                f"the program `{program}` is missing", "it takes the data of volumes; install it"
            )
        environment = [
            f"CAISSON_ROOT={self.root}",
            "QREXEC_REMOTE_DOMAIN=dom0",
            f"QREXEC_REQUESTED_TARGET={destination}",
        ]
        argv = ["env", *environment, program, argument]
        if os.geteuid() != 0:
            argv.insert(0, "sudo")
        return self._piped(argv, method, data)

    def _piped(self, argv: list[str], method: str, data: Iterator[bytes]) -> bytes:
        import subprocess  # noqa: PLC0415 - most commands never need it

        with (
            _memory(b"") as complaint,
            _program(argv[0]),
            subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaint
            ) as process,
        ):
            try:
                for chunk in data:
                    _written(process.stdin, chunk)
            except BrokenPipeError:
                # It has read enough to refuse; its reply says why.
                pass
            reply = process.communicate()[0]
            if process.returncode != 0 and not reply:
                raise _denied(method, process.returncode, _read(complaint))
        return _content(method, reply)

    @contextmanager
    def _answer(
        self, method: str, argument: str, destination: str, payload: bytes
    ) -> Iterator[Iterator[bytes]]:
        if not destination.isascii() or " " in destination or "\0" in destination:
            raise QubeNotFoundError(
                f"no qube can be called `{shown(destination)}`", hint="list the qubes with `qvm-ls`"
            )
        request = wire.build_request(method, argument, destination, payload)
        longest = wire.longest_request(request)
        if self.qrexec is not None:
            yield self._over_qrexec(self.qrexec, method, argument, destination, payload)
            return
        if len(request) > longest:
            most = longest - (len(request) - len(payload))
            raise ValueRefusedError(
                f"the value is {len(payload)} bytes long; `{method}` takes at most {most}"
            )
        with self._connection(request, self.socket_path) as connection:
            yield _received(connection)

    def _over_qrexec(
        self, program: str, method: str, argument: str, destination: str, payload: bytes
    ) -> Iterator[bytes]:
        """Call as a service of the destination: the same reply, without the request's header."""
        import subprocess  # noqa: PLC0415 - most commands never need it

        argv = [program, destination, f"{method}+{argument}"]
        with (
            _memory(payload) as data,
            _memory(b"") as complaint,
            _program(program),
            subprocess.Popen(argv, stdin=data, stdout=subprocess.PIPE, stderr=complaint) as process,
        ):
            try:
                yield from _chunks(process.stdout)
            except GeneratorExit:
                # Nobody wants the rest of the stream.
                process.terminate()
                raise
            if process.wait() != 0:
                raise _denied(method, process.returncode, _read(complaint))

    @contextmanager
    def _connection(self, request: bytes, path: str) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.connect(path)
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
            except (FileNotFoundError, ConnectionRefusedError):
                raise DaemonError(
                    f"the daemon does not run: nobody answers at `{path}`",
                    hint="start it: `sudo caisson up`, or `sudo systemctl start qubesd`",
                ) from None
            except PermissionError:
                raise DaemonError(
                    f"no permission to speak to the daemon at `{path}`",
                    hint="use sudo, or join the group and log in again: "
                    "`sudo usermod -aG qubes $USER`",
                ) from None
            except OSError as error:
                raise DaemonError(
                    f"cannot speak to the daemon at `{path}`: {error.strerror}"
                ) from None
            yield connection

    def _below_root(self, path: str) -> str:
        return os.path.join(self.root, path)  # noqa: PTH118

    def _qrexec_of_this_qube(self) -> str | None:
        if self.root != "/" or os.path.exists(self.socket_path):  # noqa: PTH110
            return None
        return on_path(QREXEC_CLIENT)


def on_path(program: str) -> str | None:
    """The path of a program that `PATH` leads to; None where there is none."""
    candidates = (os.path.join(folder, program) for folder in os.get_exec_path())  # noqa: PTH118
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def _run_service(program: str, method: str, argument: str, payload: bytes) -> tuple[bytes, bytes]:
    import subprocess  # noqa: PLC0415 - most commands never need it

    service = f"{method}+{argument}" if argument else method
    with _memory(payload) as data, _program(program):
        done = subprocess.run(
            [program, "dom0", service], stdin=data, capture_output=True, check=False
        )
    if done.returncode != 0:
        raise wire.parse_complaint(done.stderr) or _denied(method, done.returncode, done.stderr)
    return done.stdout, done.stderr


def _content(method: str, reply: bytes) -> bytes:
    if not reply:
        raise NoAnswerError(
            f"the daemon gave no answer to `{method}`",
            hint="its log tells why; `caisson doctor` checks the machine",
        )
    return wire.parse_reply(reply)


def _denied(method: str, code: int, complaint: bytes) -> NoAnswerError:
    said = shown(complaint.strip().splitlines()[-1]) if complaint.strip() else f"exit code {code}"
    return NoAnswerError(
        f"the call of `{method}` failed: {said}",
        hint="the policy of the admin qube says which qube may call it",
    )


def _received(connection: socket.socket) -> Iterator[bytes]:
    try:
        while chunk := connection.recv(_CHUNK):
            yield chunk
    except ConnectionError:
        return


def _chunks(stream: IO[bytes] | None) -> Iterator[bytes]:
    """What a program writes, as it comes."""
    if stream is not None:
        while chunk := os.read(stream.fileno(), _CHUNK):
            yield chunk


def _written(stream: IO[bytes] | None, chunk: bytes) -> None:
    if stream is not None:
        stream.write(chunk)
        stream.flush()


@contextmanager
def _memory(content: bytes) -> Iterator[int]:
    """A file in memory: unlike a pipe it takes any amount while nobody reads or writes."""
    descriptor = os.memfd_create("call", os.MFD_CLOEXEC)
    try:
        os.pwrite(descriptor, content, 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> bytes:
    return os.pread(descriptor, _CHUNK, 0)


@contextmanager
def _program(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise DaemonError(f"cannot run `{name}`: {error.strerror}") from None
