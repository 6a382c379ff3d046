"""Network namespaces: opened once, entered by one thread that does nothing else.

A thread's namespace is what new sockets and `/proc/sys/net` belong to.
Sockets stay in the namespace that they were made in, so a visit is short.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import re
import select
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from caisson.errors import InternalError, NetworkError
from caisson.names import shown

_CLONE_NEWNET = 0x4000_0000
_NS_GET_NSTYPE = 0xB703
_UIDS = 65_536
_OWN = Path("/proc/thread-self/ns/net")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_NAMES = Path("run/netns")
# `ip netns` mounts names where it runs: a daemon with a mount namespace of its own never sees
# the later ones. A descriptor of the root that it left still leads there.
_roots = [Path("/")]

P = ParamSpec("P")
T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


def remember_machine_root() -> None:
    """Keep the way to the machine's `/run/netns`; call it before leaving its mount namespace."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _roots.insert(0, Path(f"/proc/self/fd/{root}"))


class Namespace:
    """An open network namespace; it stays alive as long as this does.

    Args:
        descriptor: a file descriptor of the namespace, owned from here on.
        what: how an error names it.
    """

    def __init__(self, descriptor: int, what: str) -> None:
        self.descriptor = descriptor
        self.what = what
        status = os.fstat(descriptor)
        self.identity = (status.st_dev, status.st_ino)

    @classmethod
    def of_process(cls, pid: int, uid_base: int | None = None) -> Self:
        """The namespace of a running process.

        Args:
            pid: the process.
            uid_base: the first of the 65,536 user ids of the qube that the process belongs to.
                A process of another user is another one that got the number: refused.

        Raises:
            NetworkError: the process is gone, is another one, or shares our own namespace.
        """
        try:
            process = os.pidfd_open(pid)
        except OSError as error:
            raise NetworkError(
                f"process `{pid}` of the qube is gone", hint="start the qube again"
            ) from error
        try:
            _check_user(pid, uid_base)
            descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            if _ended(process):
                # Everything that was read by number until here may be of another process.
                os.close(descriptor)
                raise ProcessLookupError(errno.ESRCH, "the process ended")
        except OSError as error:
            raise NetworkError(
                f"process `{pid}` of the qube is gone", hint="start the qube again"
            ) from error
        finally:
            os.close(process)
        namespace = cls(descriptor, f"the network namespace of process {pid}")
        if namespace.identity == _own_identity():
            namespace.close()
            raise NetworkError(
                f"process `{pid}` shares the machine's network namespace",
                hint="a qube needs a network namespace of its own; restart the qube",
            )
        return namespace

    @classmethod
    def of_path(cls, path: Path, what: str) -> Self:
        """The namespace that a path leads to.

        Raises:
            OSError: the path cannot be opened.
            NetworkError: it is no network namespace.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            kind = fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != _CLONE_NEWNET:
            os.close(descriptor)
            raise NetworkError(
                f"{what} is not a network namespace: `{path}`", hint="make one: ip netns add NAME"
            )
        return cls(descriptor, what)

    @classmethod
    def named(cls, name: str) -> Self:
        """The namespace that `ip netns add NAME` made.

        Raises:
            NetworkError: there is none of that name.
        """
        what = f"network namespace `{name}`"
        for root in _roots:
            try:
                return cls.of_path(root / _NAMES / name, what)
            except (OSError, NetworkError):
                continue
        raise NetworkError(f"{what} does not exist", hint=f"make it: ip netns add {name}")

    @classmethod
    def fresh(cls, what: str) -> Self:
        """A new namespace that nobody else has.

        Raises:
            OSError: it cannot be made.
        """
        with cls.of_path(_OWN, "the daemon's own network namespace") as home:
            return home.run(cls._unshare, what)

    @classmethod
    def _unshare(cls, what: str) -> Self:
        if _libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "cannot make a network namespace")
        return cls.of_path(_OWN, what)

    def run(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `action` inside the namespace, in the calling thread.

        Raises:
            InternalError: called on the main thread, whose namespace must never change.
        """
        if threading.current_thread() is threading.main_thread():
            raise InternalError("the main thread must stay in its network namespace")
        home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(self.descriptor, self.what)
            try:
                return action(*args, **kwargs)
            finally:
                _enter(home, "the daemon's own network namespace")
        finally:
            os.close(home)

    def close(self) -> None:
        """Let the namespace go."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Worker:
    """The one thread that visits namespaces; everything that blocks runs here, in order."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="network")

    async def run(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `action` on the thread and wait for it."""
        return await asyncio.wrap_future(self.submit(action, *args, **kwargs))

    def submit(self, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have `action` called on the thread."""
        return self._thread.submit(action, *args, **kwargs)

    def close(self) -> None:
        """End the thread after what it has begun."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def valid_name(untrusted: str) -> str:
    """The name of a network namespace, checked.

    Raises:
        NetworkError: it has other characters than `ip netns` names need, or could leave its folder.
    """
    if not _NAME.fullmatch(untrusted):
        raise NetworkError(
            f"`{shown(untrusted)}` is not the name of a network namespace",
            hint="use 1 to 64 letters, digits, `.`, `_` and `-`, starting with a letter or digit",
        )
    return untrusted


def _enter(descriptor: int, what: str) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise NetworkError(
            f"cannot enter {what}: {os.strerror(code)}", hint="qubesd needs root: CAP_SYS_ADMIN"
        )


def _own_identity() -> tuple[int, int]:
    status = Path("/proc/self/ns/net").stat()
    return (status.st_dev, status.st_ino)


def _ended(process: int) -> bool:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(0))


def _check_user(pid: int, uid_base: int | None) -> None:
    if uid_base is None:
        return
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("Uid:"))
    uid = int(line.split()[1])
    if not uid_base <= uid < uid_base + _UIDS:
        raise NetworkError(
            f"process `{pid}` is not of the qube: its user id is {uid}, expected one from "
            f"{uid_base} to {uid_base + _UIDS - 1}",
            hint="start the qube again",
        )
