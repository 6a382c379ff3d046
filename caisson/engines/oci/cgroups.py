"""Control groups of qubes, whatever kind the machine has: v2, v1, or both side by side.

A group is made before the OCI runtime starts and the runtime is started inside it, so that not
one instruction of a qube runs outside its limits, and no runtime has to understand the layout.
The qube itself never sees a cgroup file system.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from caisson.errors import EngineError

_PERIOD_US = 100_000
_LEAF = "daemon"
NEEDED = ("memory", "cpu", "pids")
_USED = (*NEEDED, "cpuacct", "freezer")
_LEGACY = frozenset(
    {
        *_USED,
        "blkio",
        "cpuset",
        "devices",
        "hugetlb",
        "misc",
        "net_cls",
        "net_prio",
        "perf_event",
        "rdma",
    }
)
_HINT = "run `caisson doctor`; it says how to switch the controller on"


class Kind(enum.StrEnum):
    """How the machine's control groups are mounted."""

    V2 = "v2"
    HYBRID = "hybrid"
    V1 = "v1"


@dataclass(frozen=True)
class Layout:
    """What is mounted where.

    Args:
        kind: the kind.
        unified: mount point of v2.
        legacy: mount point by controller of v1.
    """

    kind: Kind
    unified: Path | None
    legacy: dict[str, Path]

    def controllers(self) -> frozenset[str]:
        """The controllers that can be used."""
        if self.kind is not Kind.V2:
            return frozenset(self.legacy)
        assert self.unified is not None  # noqa: S101 - true by construction
        text = (self.unified / "cgroup.controllers").read_text()
        return frozenset(text.split()) | {"freezer"}


def layout(mountinfo: str | None = None) -> Layout:
    """Read the layout from this process's mount table.

    Raises:
        EngineError: no control groups are mounted.
    """
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    unified: Path | None = None
    legacy: dict[str, Path] = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        point = Path(left.split()[4])
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2":
            unified = point
        elif kind == "cgroup":
            legacy.update(
                (option, point)
                for option in options.split(",")
                if option.startswith("name=") or option in _LEGACY
            )
    if unified is None and not legacy:
        raise EngineError(
            "no control groups are mounted",
            hint="mount them: `mount -t cgroup2 none /sys/fs/cgroup`",
        )
    if unified is None:
        return Layout(Kind.V1, None, legacy)
    return Layout(Kind.HYBRID if legacy else Kind.V2, unified, legacy)


class Group(Protocol):
    """The control group of one qube."""

    @property
    def name(self) -> str:
        """Its name among the groups of the instance."""
        ...

    def limit(self, *, memory_max: int, cpus: float, pids_max: int) -> None:
        """Set the limits."""
        ...

    def enter(self, pid: int) -> None:
        """Move a process into the group; its later children are born there."""
        ...

    def below(self, name: str) -> Group:
        """Make a group inside this one, within its limits."""
        ...

    def freeze(self) -> None:
        """Stop every process in the group from running."""
        ...

    def thaw(self) -> None:
        """Let them run again."""
        ...

    def frozen(self) -> bool:
        """Whether the group is frozen."""
        ...

    def usage(self) -> tuple[int, int, int | None]:
        """Memory in bytes, processor time in nanoseconds, and what is swapped out in bytes."""
        ...

    def processes(self) -> list[int]:
        """The processes in the group and in those below, as the host sees them."""
        ...

    def remove(self) -> None:
        """Remove the group; one that is gone is no error, one with processes is (EBUSY)."""
        ...


class Groups(Protocol):
    """All groups of one instance of Caisson."""

    def make(self, name: str) -> Group:
        """Make a group."""
        ...

    def group(self, name: str) -> Group:
        """A group that exists already."""
        ...

    def names(self) -> set[str]:
        """The groups that exist."""
        ...

    def parent(self) -> str:
        """Path of the groups' parent inside the hierarchy."""
        ...

    def remove_parent(self) -> None:
        """Remove the parent, if it holds no group."""
        ...


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    """Pass over a group that is removed meanwhile, before or after its file was opened."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENODEV}:
            raise


def _write(path: Path, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _number(path: Path) -> int:
    return int(path.read_text())


def _number_if_counted(path: Path) -> int | None:
    try:
        return _number(path)
    except FileNotFoundError:
        return None


def _processes(path: Path) -> set[int]:
    """The processes in a group and in those directly below."""
    found: set[int] = set()
    for directory in (path, *(path / name for name in _subdirectories(path))):
        with _unless_gone():
            found.update(int(pid) for pid in (directory / "cgroup.procs").read_text().split())
    return found


def _remove(path: Path) -> None:
    """Remove a group with those directly below it.

    Its last process may still be on its way out for a moment.
    """
    for name in _subdirectories(path):
        _remove(path / name)
    deadline = time.monotonic() + 5
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.002)
        else:
            return


@dataclass(frozen=True)
class _LegacyGroup:
    name: str
    directories: dict[str, Path]
    elsewhere: tuple[Path, ...] = ()

    def limit(self, *, memory_max: int, cpus: float, pids_max: int) -> None:
        memory = self.directories["memory"]
        _write(memory / "memory.limit_in_bytes", str(memory_max))
        # Memory plus swap; the file is missing where swap is not accounted.
        with contextlib.suppress(FileNotFoundError):
            _write(memory / "memory.memsw.limit_in_bytes", str(memory_max))
        cpu = self.directories["cpu"]
        _write(cpu / "cpu.cfs_period_us", str(_PERIOD_US))
        _write(cpu / "cpu.cfs_quota_us", str(max(1_000, round(cpus * _PERIOD_US))))
        _write(self.directories["pids"] / "pids.max", str(pids_max))

    def enter(self, pid: int) -> None:
        for directory in dict.fromkeys(self.directories.values()):
            _write(directory / "cgroup.procs", str(pid))

    def below(self, name: str) -> Group:
        directories = {key: path / name for key, path in self.directories.items()}
        for directory in directories.values():
            directory.mkdir(mode=0o755, exist_ok=True)
        return _LegacyGroup(f"{self.name}/{name}", directories)

    def freeze(self) -> None:
        state = self._freezer() / "freezer.state"
        _write(state, "FROZEN")
        deadline = time.monotonic() + 5
        while state.read_text().strip() != "FROZEN":
            if time.monotonic() > deadline:
                raise EngineError(f"the processes of group `{self.name}` cannot be frozen")
            time.sleep(0.001)

    def thaw(self) -> None:
        with _unless_gone():
            _write(self._freezer() / "freezer.state", "THAWED")

    def frozen(self) -> bool:
        with contextlib.suppress(OSError, EngineError):
            return (self._freezer() / "freezer.state").read_text().strip() != "THAWED"
        return False

    def usage(self) -> tuple[int, int, int | None]:
        group = self.directories["memory"]
        memory = _number(group / "memory.usage_in_bytes")
        with_swap = _number_if_counted(group / "memory.memsw.usage_in_bytes")
        times = self.directories.get("cpuacct")
        nanoseconds = 0 if times is None else _number(times / "cpuacct.usage")
        return memory, nanoseconds, None if with_swap is None else max(0, with_swap - memory)

    def processes(self) -> list[int]:
        return sorted(set().union(*map(_processes, self.directories.values())))

    def remove(self) -> None:
        for directory in (*self.directories.values(), *self.elsewhere):
            _remove(directory)

    def _freezer(self) -> Path:
        try:
            return self.directories["freezer"]
        except KeyError:
            raise EngineError("the cgroup controller `freezer` is missing", hint=_HINT) from None


class LegacyGroups:
    """Groups in the separate hierarchies of v1."""

    def __init__(self, found: Layout, parent: str) -> None:
        for controller in NEEDED:
            if controller not in found.legacy:
                raise EngineError(f"the cgroup controller `{controller}` is missing", hint=_HINT)
        self._parent = parent
        self._roots = {controller: path / parent for controller, path in found.legacy.items()}

    def make(self, name: str) -> Group:
        """Make a group in every hierarchy."""
        group = self._group(name)
        for directory in group.directories.values():
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        return group

    def group(self, name: str) -> Group:
        """A group that exists already."""
        return self._group(name)

    def names(self) -> set[str]:
        """The groups that exist in any hierarchy."""
        return set().union(*(_subdirectories(root) for root in self._roots.values()))

    def parent(self) -> str:
        """Path of the parent below each hierarchy's root."""
        return f"/{self._parent}"

    def remove_parent(self) -> None:
        """Remove the parent from every hierarchy where it is empty."""
        for root in self._roots.values():
            with contextlib.suppress(OSError):
                root.rmdir()

    def _group(self, name: str) -> _LegacyGroup:
        return _LegacyGroup(
            name,
            {key: root / name for key, root in self._roots.items() if key in _USED},
            # Some runtimes make groups in the hierarchies that we have no use for, too.
            tuple(root / name for key, root in self._roots.items() if key not in _USED),
        )


@dataclass(frozen=True)
class _UnifiedGroup:
    name: str
    directory: Path
    needed: tuple[str, ...]

    def limit(self, *, memory_max: int, cpus: float, pids_max: int) -> None:
        quota = max(1_000, round(cpus * _PERIOD_US))
        values = {
            "memory": ("memory.max", str(memory_max)),
            "cpu": ("cpu.max", f"{quota} {_PERIOD_US}"),
            "pids": ("pids.max", str(pids_max)),
        }
        for controller in self.needed:
            name, value = values[controller]
            _write(self.directory / name, value)
        with contextlib.suppress(FileNotFoundError):
            _write(self.directory / "memory.swap.max", "0")

    def enter(self, pid: int) -> None:
        _write(self.directory / "cgroup.procs", str(pid))

    def below(self, name: str) -> Group:
        group = _UnifiedGroup(f"{self.name}/{name}", self.directory / name, ())
        group.directory.mkdir(mode=0o755, exist_ok=True)
        return group

    def freeze(self) -> None:
        _write(self.directory / "cgroup.freeze", "1")
        deadline = time.monotonic() + 5
        while "frozen 1" not in (self.directory / "cgroup.events").read_text():
            if time.monotonic() > deadline:
                raise EngineError(f"the processes of group `{self.name}` cannot be frozen")
            time.sleep(0.001)

    def thaw(self) -> None:
        with _unless_gone():
            _write(self.directory / "cgroup.freeze", "0")

    def frozen(self) -> bool:
        with contextlib.suppress(OSError):
            return (self.directory / "cgroup.freeze").read_text().strip() == "1"
        return False

    def usage(self) -> tuple[int, int, int | None]:
        memory = _number(self.directory / "memory.current")
        swap = _number_if_counted(self.directory / "memory.swap.current")
        words = dict(
            line.split() for line in (self.directory / "cpu.stat").read_text().splitlines()
        )
        return memory, int(words["usage_usec"]) * 1_000, swap

    def processes(self) -> list[int]:
        return sorted(_processes(self.directory))

    def remove(self) -> None:
        _remove(self.directory)


class UnifiedGroups:
    """Groups in the one hierarchy of v2.

    Next to the daemon's own group where the service manager put it into a leaf of a delegated
    one (`Delegate=yes`, `DelegateSubgroup=daemon`, systemd 254), else directly below the root.
    A delegated group that holds the daemon itself is of no use: once qubes have groups with
    controllers in it, the service manager could not start the next daemon there.
    """

    def __init__(
        self, found: Layout, parent: str, needed: tuple[str, ...] = NEEDED, own: str | None = None
    ) -> None:
        assert found.unified is not None  # noqa: S101 - true by construction
        above = _delegated_group(found.unified) if own is None else found.unified / own.lstrip("/")
        self._above = above
        self._needed = needed
        self._mount = found.unified
        self._root = above / parent
        self._ready = False

    def make(self, name: str) -> Group:
        """Make a group."""
        self._prepare()
        group = _UnifiedGroup(name, self._root / name, self._needed)
        group.directory.mkdir(mode=0o755, exist_ok=True)
        return group

    def group(self, name: str) -> Group:
        """A group that exists already."""
        return _UnifiedGroup(name, self._root / name, self._needed)

    def names(self) -> set[str]:
        """The groups that exist."""
        return _subdirectories(self._root)

    def parent(self) -> str:
        """Path of the parent below the hierarchy's root."""
        return f"/{self._root.relative_to(self._mount)}"

    def remove_parent(self) -> None:
        """Remove the parent, if it is empty."""
        with contextlib.suppress(OSError):
            self._root.rmdir()
            self._ready = False

    def _prepare(self) -> None:
        """Make the parent and switch the controllers on for its groups."""
        if self._ready:
            return
        available = (self._above / "cgroup.controllers").read_text().split()
        for controller in self._needed:
            if controller not in available:
                raise EngineError(f"the cgroup controller `{controller}` is missing", hint=_HINT)
        wanted = " ".join(f"+{controller}" for controller in self._needed)
        if (self._above / "cgroup.type").exists():
            # Any group but the root: with controllers for its children it may hold no processes.
            daemon = self._above / _LEAF
            daemon.mkdir(exist_ok=True)
            for pid in (self._above / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    _write(daemon / "cgroup.procs", pid)
        if wanted:
            _write(self._above / "cgroup.subtree_control", wanted)
        self._root.mkdir(mode=0o755, exist_ok=True)
        if wanted:
            _write(self._root / "cgroup.subtree_control", wanted)
        self._ready = True


def groups(found: Layout, instance: str) -> Groups:
    """The groups of the instance of Caisson with that short name."""
    parent = f"qubes-{instance}" if instance else "qubes"
    if found.kind is Kind.V2:
        return UnifiedGroups(found, parent)
    return LegacyGroups(found, parent)


def _delegated_group(unified: Path) -> Path:
    """The group that the service manager gave us for qubes, or the root."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        own = PurePosixPath(line.removeprefix("0::"))
        if not line.startswith("0::") or own.name != _LEAF:
            continue
        above = unified / own.parent.relative_to("/")
        for attribute in ("trusted.delegate", "user.delegate"):
            with contextlib.suppress(OSError):
                if os.getxattr(above, attribute) == b"1":
                    return above
    return unified


def _subdirectories(directory: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(directory) if entry.is_dir()}
    except FileNotFoundError:
        return set()
