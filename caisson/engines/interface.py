"""What every engine promises: the types that pass between the lifecycle and an engine."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from caisson.findings import Finding
from caisson.names import QubeName

ID_RANGE = 65_536
FACTS = "/run/qubesdb"
SYSTEM_AGENT = "/usr/lib/qubes/qrexec-agent"


@dataclass(frozen=True)
class Tree:
    """A stack of layers that becomes one directory tree in a qube.

    Args:
        target: where it is mounted in the qube.
        lower: ids of immutable layers, newest first.
        upper: id of the layer that takes the writes; None makes the tree read-only.
        kept: False where the writes are thrown away, so that they need not survive a power cut.
    """

    target: str
    lower: tuple[str, ...]
    upper: str | None = None
    kept: bool = True


@dataclass(frozen=True)
class Bind:
    """A directory of the host that a qube sees; never with setuid files, devices or programs."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class RunSpec:
    """Everything that an engine needs to run a qube once.

    Args:
        id: unique for this run; letters, digits and `-`.
        name: the qube; becomes its host name.
        root: the tree at `/`.
        private: the tree at `/rw`; its `home` and `usrlocal` appear at `/home` and `/usr/local`.
        host_usr: True where `/usr` is the machine's own, read-only.
        qube_files: the directory of our files that every qube sees (`usr/lib/qubes`, …).
        socket_dir: appears read-only as `/run/qubes`.
        memory_max: limit in bytes.
        cpus: limit in processors, fractions allowed.
        pids_max: limit of processes and threads.
        forwarding: True where the qube passes packets on for others.
        files: content of small files, by their path below `/etc`.
        argv: the first process; the qube's agent unless a test says otherwise.
        binds: further directories of the host.
        facts: what the qube is told of itself, kept current by the lifecycle; appears read-only
            as `/run/qubesdb`.
    """

    id: str
    name: QubeName
    root: Tree
    private: Tree | None
    host_usr: bool
    qube_files: Path
    socket_dir: Path
    memory_max: int
    cpus: float
    pids_max: int
    forwarding: bool = False
    files: Mapping[str, bytes] = field(default_factory=lambda: MappingProxyType({}))
    argv: tuple[str, ...] = (SYSTEM_AGENT,)
    binds: tuple[Bind, ...] = ()
    facts: Path | None = None


@dataclass(frozen=True)
class Usage:
    """What a qube uses.

    Args:
        memory: at this moment, in KiB; what its files hold in the machine's cache included.
        cpu_time: since its start, in milliseconds.
        swap: what of it was swapped out, in KiB; None where the machine does not count that.
    """

    memory: int
    cpu_time: int
    swap: int | None = None


class Instance:
    """A qube that an engine runs.

    Attributes:
        id: the id of its `RunSpec`.
        name: the qube.
        pid: its first process, as the host sees it.
        uid_base: the host's id of the qube's root.
        started: seconds since the epoch.
        paused: True where `Engine.adopt` found it frozen.
    """

    def __init__(self, id_: str, name: QubeName, pid: int, uid_base: int, started: float) -> None:
        self.id = id_
        self.name = name
        self.pid = pid
        self.uid_base = uid_base
        self.started = started
        self.paused = False
        self._ended = asyncio.Event()

    @property
    def ended(self) -> bool:
        """True once the first process is gone, and every other with it."""
        return self._ended.is_set()

    async def wait(self) -> None:
        """Return when the qube has ended."""
        await self._ended.wait()

    def terminate(self) -> None:
        """Ask the qube to shut down; does nothing when it has ended."""
        self._signal(signal.SIGTERM)

    def messages(self) -> str:
        """What the first process wrote to its error output; untrusted, escaped for a terminal."""
        return ""

    def _signal(self, number: signal.Signals) -> None:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.id} pid {self.pid}>"


class Engine(Protocol):
    """Where qubes run. One engine serves one instance of Caisson; its methods are concurrent."""

    name: str
    isolation: str
    virt_modes: frozenset[str]

    async def start(self, spec: RunSpec) -> Instance:
        """Start the first process of a qube.

        Raises:
            EngineError: names the step that failed; nothing of the qube is left behind.
        """
        ...

    async def adopt(self) -> list[Instance]:
        """Find the qubes that survived the daemon, and clean up after those that did not."""
        ...

    async def kill(self, instance: Instance) -> None:
        """End every process of the qube at once; returns when they are gone."""
        ...

    async def pause(self, instance: Instance) -> None:
        """Freeze every process of the qube."""
        ...

    async def unpause(self, instance: Instance) -> None:
        """Undo `pause`."""
        ...

    async def usage(self, instance: Instance) -> Usage:
        """What the qube uses.

        Raises:
            EngineError: it has ended.
        """
        ...

    def barriers(self, instance: Instance) -> frozenset[str]:
        """The barriers that the qube's agent must report as up."""
        ...

    async def doctor(self) -> list[Finding]:
        """What this machine has and lacks for this engine."""
        ...

    async def close(self) -> None:
        """Let go of what the engine holds; running qubes keep running."""
        ...
