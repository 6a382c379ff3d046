"""How a qube comes up, runs and goes: the one place that uses engines, storage and network."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import structlog

from caisson.engines import Engine, Instance, Usage, missing
from caisson.errors import (
    CaissonError,
    EngineError,
    NotHaltedError,
    NotPausedError,
    NotRunningError,
    NotStartedError,
    QubeError,
    QubeInUseError,
    ShutdownTimeoutError,
)
from caisson.lifecycle.door import Door
from caisson.lifecycle.facts import FactsBoard
from caisson.lifecycle.ledger import Ledger
from caisson.lifecycle.links import Links
from caisson.lifecycle.power import Power
from caisson.lifecycle.spec import run_spec
from caisson.lifecycle.volumes import Volumes
from caisson.model import Event, Klass, PowerState, Qube
from caisson.model.events import event_of
from caisson.names import QubeName, shown

T = TypeVar("T")
_MOST_CLAIMS = 4
_COMPUTED = ("xid", "stubdom_xid", "start_time")
_RESTORING = "backup-restore-in-progress"
_SERVERS: Mapping[str, tuple[str, type[QubeError]]] = {
    "netvm": ("network", QubeInUseError),
    "audiovm": ("audio", QubeInUseError),
    "guivm": ("GUI", QubeError),
}
"""What running qubes may depend on, and what its shutdown is refused with (section 2.4)."""
_log = structlog.get_logger(__name__)


class Running:
    """Starts and stops qubes, and notices when one ends by itself.

    Args:
        ledger: the model and its writer.
        tasks: owns the watcher of every running qube; cancelling it leaves qubes running.
        retire: called when a qube that cleans up after itself has ended.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        engine: Engine,
        links: Links,
        volumes: Volumes,
        door: Door,
        qube_files: Path,
        facts: FactsBoard,
        tasks: asyncio.TaskGroup,
        retire: Callable[[Qube], Coroutine[Any, Any, None]],
    ) -> None:
        self._ledger = ledger
        self._engine = engine
        self._links = links
        self._volumes = volumes
        self._door = door
        self._qube_files = qube_files
        self._facts = facts
        self._tasks = tasks
        self._retire = retire

    @property
    def isolation(self) -> str:
        """The wall around the qubes that run here, as prompts show it."""
        return self._engine.isolation

    async def start(self, qube: Qube) -> None:
        """Bring a qube up, its network qubes first; returns when its agent is admitted.

        A qube that is up already stays as it is; one that is going down is waited for.
        One that cleans up after itself is removed when it cannot start.
        When the daemon is stopped meanwhile, what was begun stays for the next one to adopt or
        put away, as after a crash.

        Raises:
            NotHaltedError: the admin qube always runs; or it does not end.
            EngineError: the qube did not come up, or a barrier is down; nothing is left behind.
        """
        if qube.klass in {Klass.ADMIN, Klass.REMOTE}:
            raise NotHaltedError(f"qube `{qube.name}` always runs")
        power = self._ledger.power(qube)
        async with power.turn:
            if power.up or await self._stays(qube, power):
                return
            self._ledger.require(qube)
            await self._start(qube, power)

    async def shutdown(self, qube: Qube, *, force: bool, wait: bool) -> None:
        """Ask a qube to shut down.

        Args:
            qube: the qube.
            force: also when others get their network through it, or when it is paused.
            wait: return only when it is gone.

        Raises:
            NotStartedError: it is halted.
            QubeInUseError: running qubes get their network or their sound through it.
            QubeError: it shows the windows of running qubes.
            ShutdownTimeoutError: it is still there after its `shutdown_timeout`.
        """
        power, instance = self._instance(qube)
        if power.state is PowerState.PAUSED:
            if not force:
                raise NotRunningError(
                    f"qube `{qube.name}` is paused",
                    hint=f"unpause it first: `qvm-unpause {qube.name}`, or use --force",
                )
            await self.unpause(qube)
        if not force:
            self._refuse_needed(qube)
        if instance is not None and power.instance is instance:
            power.state = PowerState.HALTING
            instance.terminate()
            await self._tell(qube, "domain-pre-shutdown", force=str(force))
        if wait:
            await self._wait_until_gone(qube, power)

    async def kill(self, qube: Qube) -> None:
        """End a qube at once; returns when its volumes are put away."""
        power, instance = self._instance(qube)
        if instance is not None:
            await self._engine.kill(instance)
        await power.gone.wait()

    async def pause(self, qube: Qube) -> None:
        """Freeze a running qube."""
        power, instance = self._instance(qube, NotRunningError)
        async with power.turn:
            if instance is None or not power.runs(instance, PowerState.RUNNING):
                raise NotRunningError(f"qube `{qube.name}` is {power.state}, not running")
            self._ledger.publish(qube, "domain-pre-paused")
            await self._engine.pause(instance)
            if not power.runs(instance, PowerState.RUNNING):
                await self._engine.unpause(instance)  # what is to end must run to do so
                raise NotRunningError(f"qube `{qube.name}` is {power.state}, not running")
            power.state = PowerState.PAUSED
            await self._tell(qube, "domain-paused")

    async def unpause(self, qube: Qube) -> None:
        """Let a paused qube go on."""
        power, instance = self._instance(qube, NotPausedError)
        async with power.turn:
            if instance is None or not power.runs(instance, PowerState.PAUSED):
                raise NotPausedError(f"qube `{qube.name}` is {power.state}, not paused")
            self._ledger.publish(qube, "domain-pre-unpaused")
            await self._engine.unpause(instance)
            if not power.runs(instance, PowerState.PAUSED):
                raise NotPausedError(f"qube `{qube.name}` is {power.state}, not paused")
            power.state = PowerState.RUNNING
            await self._tell(qube, "domain-unpaused")

    async def resume(self, qube: Qube) -> None:
        """Let a qube go on that was sent to sleep: it was frozen."""
        await self.unpause(qube)
        self._ledger.publish(qube, "domain-resumed")

    async def usage(self, qube: Qube) -> Usage:
        """What a qube uses; nothing where it does not run."""
        power = self._ledger.powers.get(qube)
        if power is not None and power.instance is not None:
            with suppress(EngineError):  # it is just ending
                return await self._engine.usage(power.instance)
        return Usage(memory=0, cpu_time=0)

    async def replug(self, qube: Qube) -> None:
        """Move the link of a running qube to its present network qube."""
        power = self._ledger.power(qube)
        async with power.turn:
            if power.instance is None:
                return
            await self._links.move(qube, power.instance)

    def agent_said(self, name: QubeName, pid: int, untrusted_report: Mapping[str, Any]) -> None:
        """Judge the first words of an agent: the right process, and every barrier up.

        Called for each agent that connects to the broker, again after either daemon's restart.
        """
        qube = self._ledger.system.qubes.get(name)
        power = None if qube is None else self._ledger.powers.get(qube)
        instance = None if power is None else power.instance
        if power is not None and power.state is PowerState.TRANSIENT and instance is None:
            if len(power.claims) < _MOST_CLAIMS:
                power.claims[pid] = untrusted_report
            return
        if qube is None or power is None or instance is None or instance.pid != pid:
            self._door.reject(name, pid, "not the first process of this qube")
            return
        down = missing(untrusted_report)
        if power.verdict is not None and not power.verdict.done():
            power.verdict.set_result(down)
        elif down:
            _log.error("a barrier of a running qube is down", qube=name, barriers=down)
            self._tasks.create_task(self._guarded(qube, "kill", self._engine.kill(instance)))
        elif power.state is not PowerState.TRANSIENT:  # the end of the start admits it
            self._door.admit(name, pid)

    def set_up_ended(self, name: QubeName, pid: int, failures: int) -> None:
        """Hear, once a run, how the set-up of a qube went by its agent's word; for people only."""
        qube = self._ledger.system.qubes.get(name)
        power = None if qube is None else self._ledger.powers.get(qube)
        if qube is None or power is None or power.instance is None or power.instance.pid != pid:
            return
        if power.set_up is None or power.set_up.done():
            return
        power.set_up.set_result(failures)
        if failures:
            _log.warning("the set-up of a qube had failures", qube=name, failures=failures)
            self._ledger.publish(qube, "domain-setup-failed", failures=str(failures))

    async def set_up_of(self, qube: Qube, patience: float) -> int | None:
        """How many things failed in the set-up of a qube; None where it goes on, or is not known.

        Args:
            qube: the qube.
            patience: seconds that it may still take.
        """
        power = self._ledger.powers.get(qube)
        ending = None if power is None else power.set_up
        if ending is None:
            return None
        await asyncio.wait({ending}, timeout=patience)
        return ending.result() if ending.done() and not ending.cancelled() else None

    async def adopt(self) -> None:
        """After a restart of the daemon: take over what runs, put away what does not."""
        adopted: dict[Qube, Instance] = {}
        for instance in await self._engine.adopt():
            found = self._ledger.system.qubes.get(instance.name)
            if found is None or found in adopted:
                _log.error("a qube that nobody knows is ended", qube=instance.name)
                await self._engine.kill(instance)
                continue
            adopted[found] = instance
            power = self._ledger.power(found)
            power.gone.clear()
            power.instance = instance
            power.state = PowerState.PAUSED if instance.paused else PowerState.RUNNING
        self._facts.adopt(qube.name for qube in adopted)
        # Before anything is put away: that may make layers in the background.
        self._volumes.recover()
        for qube in tuple(self._ledger.system.qubes.values()):
            if qube not in adopted:
                await self._guarded(qube, "put the volumes away", self._volumes.end(qube))
                if self.cleans_up(qube):
                    await self._guarded(qube, "remove", self._retire(qube))
        for qube, instance in adopted.items():
            await self._door.open_qube(qube.name)
            await self._guarded(qube, "plug", self._links.bring_up(qube, instance))
        await self._links.sweep()
        for qube, instance in adopted.items():
            self._watch(qube, self._ledger.power(qube), instance)

    def _refuse_needed(self, qube: Qube) -> None:
        """Refuse to stop what running qubes depend on."""
        system = self._ledger.system
        others = [
            each for each in self._ledger.powers if each is not qube and self._ledger.up(each)
        ]
        for prop, (what, refusal) in _SERVERS.items():
            for each in others:
                if system.has(each, prop) and system.value(each, prop) is qube:
                    raise refusal(
                        f"qube `{qube.name}` is the {what} qube of `{each.name}`, which is running",
                        hint="shut its clients down first, or use --force",
                    )

    async def _start(self, qube: Qube, power: Power) -> None:
        system = self._ledger.system
        guid = secrets.token_hex(16)
        power.gone.clear()
        power.state = PowerState.TRANSIENT
        try:
            _refuse_prohibited(qube, system.feature([qube], "prohibit-start"))
            self._refuse_other_walls(qube)
            self._ledger.publish(qube, "domain-pre-start", start_guid=guid, mem_required="0")
            netvm = system.netvm_of(qube)
            if netvm is not None:
                await self.start(netvm)
            plan = await self._volumes.begin(qube)
            self._ledger.publish(qube, "domain-verify-files")
            socket_dir = await self._door.open_qube(qube.name)
            self._ledger.publish(qube, "domain-pre-spawn", start_guid=guid)
            instance = await self._engine.start(
                run_spec(
                    system,
                    qube,
                    plan,
                    qube_files=self._qube_files,
                    socket_dir=socket_dir,
                    facts=self._facts.begin(qube),
                )
            )
        except Exception as error:
            await self._put_away(qube, power, "domain-start-failed", reason=str(error))
            raise
        power.instance = instance
        power.verdict = asyncio.get_running_loop().create_future()
        power.set_up = asyncio.get_running_loop().create_future()
        self._publish_resets(qube)
        self._ledger.publish(qube, "domain-spawn", start_guid=guid)
        self._ledger.publish(qube, "domain-qdb-create")
        claims, power.claims = power.claims, {}
        for pid, report in claims.items():
            self.agent_said(qube.name, pid, report)
        try:
            await self._bring_up(qube, instance, power.verdict)
        except Exception as error:
            power.state = PowerState.DYING
            self._ledger.publish(qube, "domain-start-failed", reason=str(error))
            await self._guarded(qube, "kill", self._engine.kill(instance))
            # Nobody else put it away yet, and nobody can before this task waits.
            self._watch(qube, power, instance)
            if instance.ended:
                await power.gone.wait()
            raise
        power.state = PowerState.RUNNING
        self._watch(qube, power, instance)
        await self._ledger.announce([qube.name], *_first_go(qube, guid))

    def _refuse_other_walls(self, qube: Qube) -> None:
        """A qube that is to have another wall must not run behind this one."""
        wanted = str(self._ledger.system.value(qube, "virt_mode"))
        if wanted not in self._engine.virt_modes:
            raise EngineError(
                f"qube `{qube.name}` is to run with virt_mode `{wanted}`, "
                f"and this machine has no engine for it",
                hint=f"run it as a container: `qvm-prefs {qube.name} virt_mode container`",
            )

    async def _bring_up(
        self, qube: Qube, instance: Instance, verdict: asyncio.Future[list[str]]
    ) -> None:
        """From the first process to an admitted agent: limits, links and barriers."""
        seconds = int(str(self._ledger.system.value(qube, "qrexec_timeout")))
        try:
            async with asyncio.timeout(seconds):
                await _unless_ended(instance, self._ready(qube, instance, verdict))
        except TimeoutError:
            raise EngineError(
                f"the agent of qube `{qube.name}` did not answer within {seconds} s",
                hint="see whether the broker runs: `caisson doctor`",
            ) from None

    async def _ready(
        self, qube: Qube, instance: Instance, verdict: asyncio.Future[list[str]]
    ) -> None:
        down = await _together(verdict, self._links.bring_up(qube, instance))
        if instance.ended:
            raise _ended_early(instance)
        if down:
            raise EngineError(
                f"qube `{qube.name}` was stopped: its barrier `{shown(down[0])}` is not up",
                hint="see what this machine lacks: `caisson doctor`",
            )
        self._door.admit(qube.name, instance.pid)

    def _watch(self, qube: Qube, power: Power, instance: Instance) -> None:
        self._tasks.create_task(self._until_gone(qube, power, instance))

    async def _until_gone(self, qube: Qube, power: Power, instance: Instance) -> None:
        await instance.wait()
        power.state = PowerState.HALTING
        self._ledger.publish(qube, "domain-stopped")
        await self._put_away(qube, power, "domain-shutdown")

    async def _put_away(self, qube: Qube, power: Power, event: str, **values: str) -> None:
        """Give back everything that a run took; a part that fails does not keep the others."""
        if power.instance is not None:
            power.instance = None
            self._publish_resets(qube)
        power.verdict = None
        if power.set_up is not None:
            power.set_up.cancel()
            power.set_up = None
        power.claims.clear()
        await self._guarded(qube, "close the door", self._door.close_qube(qube.name))
        self._facts.end(qube.name)
        await self._guarded(qube, "unplug", self._links.take_down(qube))
        await self._guarded(qube, "put the volumes away", self._volumes.end(qube))
        power.state = PowerState.HALTED
        await self._guarded(qube, "tell of its end", self._tell(qube, event, **values))
        if self.cleans_up(qube):
            await self._guarded(qube, "remove", self._retire(qube))
        power.gone.set()

    async def _stays(self, qube: Qube, power: Power) -> bool:
        """Wait for a qube that is going down; True where it thought better of it.

        Raises:
            NotHaltedError: it did not end within its `shutdown_timeout`.
        """
        seconds = self._patience(qube)
        try:
            async with asyncio.timeout(seconds):
                await power.gone.wait()
        except TimeoutError:
            if power.up:
                return True
            raise NotHaltedError(
                f"qube `{qube.name}` is still shutting down after {seconds} s",
                hint=f"end it at once: `qvm-kill {qube.name}`",
            ) from None
        return False

    async def _wait_until_gone(self, qube: Qube, power: Power) -> None:
        seconds = self._patience(qube)
        try:
            async with asyncio.timeout(seconds):
                await power.gone.wait()
        except TimeoutError:
            if power.state is PowerState.HALTING and power.instance is not None:
                power.state = PowerState.RUNNING
            await self._tell(qube, "domain-shutdown-failed", reason="timeout")
            raise ShutdownTimeoutError(
                f"qube `{qube.name}` did not shut down within {seconds} s",
                hint=f"end it at once: `qvm-kill {qube.name}`",
            ) from None

    def _patience(self, qube: Qube) -> int:
        return int(str(self._ledger.system.value(qube, "shutdown_timeout")))

    async def _tell(self, qube: Qube, event: str, /, **values: str) -> None:
        """Tell the broker of a state that has just been entered, and the listeners of the event."""
        await self._ledger.announce([qube.name], event_of(qube, event, values))

    def _publish_resets(self, qube: Qube) -> None:
        for name in _COMPUTED:
            self._ledger.publish(qube, f"property-reset:{name}", name=name)

    def cleans_up(self, qube: Qube) -> bool:
        """Whether the qube is removed when it ends."""
        system = self._ledger.system
        return system.has(qube, "auto_cleanup") and bool(system.value(qube, "auto_cleanup"))

    async def _guarded(self, qube: Qube, what: str, act: Coroutine[Any, Any, None]) -> None:
        try:
            await act
        except CaissonError as error:
            _log.error(f"cannot {what}", qube=qube.name, error=str(error))
        except Exception:  # noqa: BLE001 - a bug in one part must not keep the others
            _log.exception(f"cannot {what}", qube=qube.name)

    def _instance(
        self, qube: Qube, refusal: type[NotStartedError] = NotStartedError
    ) -> tuple[Power, Instance | None]:
        """What runs of a qube; None while the rest of it is put away."""
        if qube.klass in {Klass.ADMIN, Klass.REMOTE}:
            raise QubeError(f"qube `{qube.name}` always runs")
        power = self._ledger.power(qube)
        if power.instance is None and power.state not in {PowerState.HALTING, PowerState.DYING}:
            raise refusal(
                f"qube `{qube.name}` is not running", hint=f"start it: `qvm-start {qube.name}`"
            )
        return power, power.instance


def _first_go(qube: Qube, guid: str) -> tuple[Event, ...]:
    """A qube is ready. Listeners know those that begin as paused, and wait for their first go."""
    return (
        event_of(qube, "domain-pre-unpaused"),
        event_of(qube, "domain-unpaused"),
        event_of(qube, "domain-start", {"start_guid": guid}),
    )


def _refuse_prohibited(qube: Qube, reason: object) -> None:
    if reason:
        raise CaissonError(
            f"starting qube `{qube.name}` is prohibited",
            hint=f"see the reason: `qvm-features {qube.name} prohibit-start`",
        )
    if _RESTORING in qube.tags:
        raise QubeError(
            f"qube `{qube.name}` is being restored from a backup", hint="wait until that is done"
        )


def _ended_early(instance: Instance) -> EngineError:
    said = instance.messages()
    ending = f"qube `{instance.name}` ended while it came up"
    return EngineError(f"{ending}: {said}" if said else ending)


async def _together(first: Awaitable[T], *others: Coroutine[Any, Any, None]) -> T:
    """Wait for all; the first failure cancels the rest and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for other in others:
                group.create_task(other)
            return await first
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _unless_ended(instance: Instance, act: Coroutine[Any, Any, None]) -> None:
    """Wait for `act`, or for the end of the qube, whichever comes first."""
    acting = asyncio.ensure_future(act)
    ending = asyncio.ensure_future(instance.wait())
    try:
        await asyncio.wait({acting, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not acting.done():
            raise _ended_early(instance)
        await acting
    finally:
        for task in (acting, ending):
            task.cancel()
        await asyncio.gather(acting, ending, return_exceptions=True)
