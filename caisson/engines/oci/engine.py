"""The engine: starts qubes with an OCI runtime, finds them again, ends them."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import structlog

from caisson.engines.barriers import BARRIERS
from caisson.engines.interface import Instance, RunSpec, Usage
from caisson.engines.oci import cgroups, seccomp
from caisson.engines.oci.doctor import examine
from caisson.engines.oci.idmap import Maps, Ranges, base_of
from caisson.engines.oci.instances import OciInstance, Record, Records, start_time, this_boot
from caisson.engines.oci.mounts import Assembly, machine_layout
from caisson.engines.oci.probe import choose
from caisson.engines.oci.runtime import Launcher, Runtime, finish
from caisson.engines.oci.spec import config
from caisson.errors import CaissonError, EngineError
from caisson.findings import Finding
from caisson.paths import Paths

_log = structlog.get_logger(__name__)
_KILL_DEADLINE = 10.0
_REFILL_AFTER = 0.02
_WORKERS = 8


class OciEngine:
    """Runs qubes as containers.

    `enter_private_namespace` comes first, once a process. One engine serves one instance.

    Args:
        paths: the instance.
        runtime: use this runtime; None chooses by a probe.
        spares: how many launchers wait ready, so that a start finds its control group made.
    """

    name = "oci"
    isolation = "container"
    virt_modes = frozenset({"container"})

    def __init__(self, paths: Paths, *, runtime: Runtime | None = None, spares: int = 2) -> None:
        self._paths = paths
        self._records = Records(paths.engine)
        self._maps = Maps()
        self._ranges = Ranges()
        self._assembly = Assembly(paths.pool, paths.instance)
        self._threads = ThreadPoolExecutor(_WORKERS, thread_name_prefix="engine")
        self._lock = threading.Lock()
        self._runtime = runtime
        self._groups: cgroups.Groups | None = None
        self._spares: list[Launcher] = []
        self._spares_wanted = spares
        self._refill: asyncio.TimerHandle | None = None
        self._background: set[asyncio.Future[None]] = set()
        self._running: dict[str, OciInstance] = {}
        self._unfinished: set[str] = set()
        self._closed = False

    async def start(self, spec: RunSpec) -> Instance:
        """Start a qube; see `Engine.start`."""
        loop = asyncio.get_running_loop()
        starting = loop.run_in_executor(self._threads, self._start, spec)
        try:
            record, pidfd, errors = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(self._abandon)
            raise
        finally:
            self._refill_soon()
        return self._watch(record, pidfd, errors)

    async def adopt(self) -> list[Instance]:
        """Find running qubes, and clean up after those that have ended; see `Engine.adopt`."""
        loop = asyncio.get_running_loop()
        alive = await loop.run_in_executor(self._threads, self._recover)
        found: list[Instance] = []
        for record in alive:
            try:
                pidfd = os.pidfd_open(record.pid)
            except ProcessLookupError:
                await loop.run_in_executor(self._threads, self._clean, record)
                continue
            instance = self._watch(record, pidfd, None)
            instance.paused = self._group(instance).frozen()
            found.append(instance)
        self._refill_soon()
        return found

    async def kill(self, instance: Instance) -> None:
        """End every process of the qube; see `Engine.kill`."""
        own = self._own(instance)
        if own is None:
            return
        own.kill()
        # A frozen process takes its death only when thawed.
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._group(own).thaw)
        try:
            await asyncio.wait_for(own.wait(), _KILL_DEADLINE)
        except TimeoutError:
            raise EngineError(
                f"the processes of `{own.name}` did not end within {_KILL_DEADLINE:.0f} seconds",
                hint="a process may hang in the kernel: see `dmesg`",
            ) from None

    async def pause(self, instance: Instance) -> None:
        """Freeze the qube; see `Engine.pause`."""
        own = self._own(instance)
        if own is None:
            raise EngineError(f"`{instance.name}` has ended")
        group = self._group(own)
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, group.freeze)
        except OSError as error:
            raise EngineError(f"`{own.name}` cannot be paused: {error.strerror}") from error

    async def unpause(self, instance: Instance) -> None:
        """Undo `pause`; see `Engine.unpause`."""
        own = self._own(instance)
        if own is not None:
            group = self._group(own)
            await asyncio.get_running_loop().run_in_executor(self._threads, group.thaw)

    async def usage(self, instance: Instance) -> Usage:
        """What the qube uses; see `Engine.usage`."""
        own = self._own(instance)
        if own is None:
            raise EngineError(f"`{instance.name}` has ended")
        try:
            memory, nanoseconds, swap = self._group(own).usage()
        except OSError as error:
            raise EngineError(f"`{own.name}` cannot be measured: {error.strerror}") from error
        return Usage(
            memory=memory // 1024,
            cpu_time=nanoseconds // 1_000_000,
            swap=None if swap is None else swap // 1024,
        )

    def barriers(self, instance: Instance) -> frozenset[str]:
        """Every barrier of a container."""
        del instance
        return BARRIERS

    async def doctor(self) -> list[Finding]:
        """What this machine has and lacks; see `Engine.doctor`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, examine, self._paths, self._assembly, self._maps
        )

    async def close(self) -> None:
        """Let go of everything; running qubes keep running."""
        if self._closed:
            return
        self._closed = True
        if self._refill is not None:
            self._refill.cancel()
        while self._background:
            await asyncio.wait(self._background)
        for instance in self._running.values():
            instance.let_go()
        self._running.clear()
        await asyncio.get_running_loop().run_in_executor(self._threads, self._drop_spares)
        self._threads.shutdown()
        self._maps.close()

    # What follows up to `_watch` runs in a worker thread.

    def _start(self, spec: RunSpec) -> tuple[Record, int, int]:
        record_path = self._records.path(spec.id)
        if record_path.exists():
            raise EngineError(f"a qube with the id `{spec.id}` runs already")
        launcher = self._take()
        record = Record(
            id=spec.id, name=str(spec.name), group=launcher.name, slot=-1, boot=this_boot()
        )
        try:
            self._records.write(record)
            slot = self._ranges.take(record_path)
            record = msgspec.structs.replace(record, slot=slot)
            launcher.group.limit(memory_max=spec.memory_max, cpus=spec.cpus, pids_max=spec.pids_max)
            with self._maps.lend(slot) as namespace:
                pid = self._launch(launcher, spec, slot, namespace)
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                raise EngineError(
                    f"the first process of `{spec.name}` ended at once: {launcher.complaint()}"
                ) from None
            record = msgspec.structs.replace(
                record, pid=pid, pid_started=start_time(pid), started=time.time()
            )
            self._records.write(record)
        except BaseException as error:
            launcher.end()
            os.close(launcher.errors)
            self._assembly.discard(launcher.workspace)
            self._clean(record)
            if isinstance(error, OSError):
                raise EngineError(
                    f"cannot start `{spec.name}`: {error}", hint="see `caisson doctor`"
                ) from error
            raise
        self._assembly.discard(launcher.workspace)
        return record, pidfd, launcher.errors

    def _launch(self, launcher: Launcher, spec: RunSpec, slot: int, namespace: int) -> int:
        """Lay everything out and start the first process, in that user namespace."""
        self._assembly.fill(launcher.workspace, spec, slot, namespace)
        content = config(
            spec,
            uid_base=base_of(slot),
            sources=launcher.workspace.sources,
            devices=self._assembly.devices(launcher.workspace),
            cgroup=launcher.runtime.cgroup(f"{self._all_groups().parent()}/{launcher.name}"),
            user_namespace=Path(f"/proc/{os.getpid()}/fd/{namespace}"),
            mappings=not launcher.runtime.reads_mappings,
            filter_code=seccomp.compiled() if launcher.runtime.takes_machine_code else None,
        )
        (launcher.workspace.path / "config.json").write_bytes(msgspec.json.encode(content))
        return launcher.go()

    def _take(self) -> Launcher:
        """A launcher that waits, or a new one."""
        while True:
            with self._lock:
                launcher = self._spares.pop() if self._spares else None
            if launcher is None:
                return self._launcher()
            if launcher.alive:
                return launcher
            self._drop(launcher)

    def _launcher(self) -> Launcher:
        runtime = self._chosen()
        name = f"q{secrets.token_hex(5)}"
        workspace = self._assembly.workspace(name)
        launcher = None
        try:
            group = self._all_groups().make(name)
            try:
                launcher = Launcher(name, runtime, workspace, group)
                launcher.enter_group()
            except BaseException:
                if launcher is not None:
                    launcher.end()
                    os.close(launcher.errors)
                self._finish(name)
                raise
        except BaseException as error:
            self._assembly.discard(workspace)
            if isinstance(error, OSError):
                raise EngineError(
                    f"a control group cannot be made: {error}",
                    hint="run the daemon as root; see `caisson doctor`",
                ) from error
            raise
        return launcher

    def _chosen(self) -> Runtime:
        with self._lock:
            if self._runtime is None:
                self._runtime = choose(self._assembly, self._all_groups())
            return self._runtime

    def _all_groups(self) -> cgroups.Groups:
        if self._groups is None:
            self._groups = cgroups.groups(machine_layout(), self._paths.instance)
        return self._groups

    def _recover(self) -> list[Record]:
        """Return what is alive; remove the remains of everything else."""
        groups = self._all_groups()
        alive, kept = [], {launcher.name for launcher in self._spares}
        for record in self._records.read():
            if record.id in self._running:
                kept.add(record.group)
            elif record.alive:
                self._ranges.hold(record.slot, self._records.path(record.id))
                alive.append(record)
                kept.add(record.group)
            else:
                self._clean(record)
        self._ranges.sweep(self._paths.engine)
        for name in groups.names() - kept:
            self._finish(name)
        return alive

    def _clean(self, record: Record) -> None:
        """Remove what a qube that has ended left: its group, its range of ids, its record."""
        self._finish(record.group)
        if record.slot >= 0:
            self._ranges.release(record.slot, self._records.path(record.id))
        self._records.forget(record.id)

    def _drop(self, launcher: Launcher) -> None:
        launcher.end()
        os.close(launcher.errors)
        self._finish(launcher.name)
        self._assembly.discard(launcher.workspace)

    def _finish(self, group: str) -> None:
        """End what runs in a group and remove it; what fails now is tried again with the next."""
        for name in {group} | self._unfinished:
            try:
                finish(self._all_groups().group(name))
                self._unfinished.discard(name)
            except OSError as error:
                self._unfinished.add(name)
                _log.warning("a control group stays for now", group=name, error=str(error))

    def _drop_spares(self) -> None:
        with self._lock:
            spares, self._spares = self._spares, []
        for launcher in spares:
            self._drop(launcher)
        if self._groups is not None:
            self._groups.remove_parent()

    def _fill_spares(self) -> None:
        made: list[Launcher] = []
        try:
            while len(self._spares) + len(made) < self._spares_wanted:
                made.append(self._launcher())
            self._maps.prepare(self._spares_wanted)
        except CaissonError as error:
            _log.warning("no launcher can wait ready", error=str(error))
        finally:
            with self._lock:
                self._spares += made

    def _watch(self, record: Record, pidfd: int, errors: int | None) -> OciInstance:
        instance = OciInstance(record, pidfd, errors, self._ended)
        self._running[record.id] = instance
        return instance

    def _ended(self, instance: OciInstance) -> None:
        self._running.pop(instance.id, None)
        self._in_background(lambda: self._clean(instance.record))

    def _abandon(self, starting: asyncio.Future[tuple[Record, int, int]]) -> None:
        """The caller of a start is gone: so is the qube."""
        if starting.cancelled() or starting.exception() is not None:
            return
        self._watch(*starting.result()).kill()

    def _refill_soon(self) -> None:
        """Make new spare launchers in a moment, not beside what the caller does next.

        The first move into a v1 group holds up every fork on the machine for some milliseconds.
        """
        if self._refill is None and not self._closed and self._spares_wanted:
            self._refill = asyncio.get_running_loop().call_later(_REFILL_AFTER, self._refill_now)

    def _refill_now(self) -> None:
        self._refill = None
        if not self._closed:
            self._in_background(self._fill_spares)

    def _in_background(self, work: object) -> None:
        assert callable(work)  # noqa: S101 - for the type checker
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        self._background.add(running)
        running.add_done_callback(self._background.discard)

    def _group(self, instance: OciInstance) -> cgroups.Group:
        return self._all_groups().group(instance.record.group)

    def _own(self, instance: Instance) -> OciInstance | None:
        return self._running.get(instance.id)
