"""The life of qubes against a plain reference: random acts, restarts of the daemon among them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from lifecycle_lab import BASE, RED, TEMPLATE, Lab, report, until

from caisson.errors import (
    CaissonError,
    EngineError,
    NotHaltedError,
    NotPausedError,
    NotRunningError,
    NotStartedError,
    QubeExistsError,
    QubeNotFoundError,
)
from caisson.model import Klass
from caisson.names import DOM0, QubeName

LASTING = [QubeName(name) for name in ("work", "a", "b")]
names = st.sampled_from(LASTING)
HALTED, RUNNING, PAUSED = "Halted", "Running", "Paused"
_TOLD = {
    "domain-pre-start": "Transient",
    "domain-start": RUNNING,
    "domain-start-failed": HALTED,
    "domain-paused": PAUSED,
    "domain-unpaused": RUNNING,
    "domain-shutdown": HALTED,
}
"""What a client that only listens takes each event for (sheet `admin-api`, section 3.3)."""


class Life(RuleBasedStateMachine):
    """The reference knows, of each qube, a power state and the files it has kept."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.lab = self.run(self._lab())
        self.states: dict[QubeName, str] = {}
        self.kept: dict[QubeName, set[str]] = {}
        self.written: dict[QubeName, set[str]] = {}
        self.disposables: set[QubeName] = set()
        self.listener: dict[str, str] = {}
        self.count = 0

    async def _lab(self) -> Lab:
        lab = Lab(Path(self.directory.name) / "instance")
        await lab.begin()
        return lab

    def run(self, act: Awaitable[Any]) -> Any:
        """Turn the loop until an act is over, and what follows from it."""

        async def whole() -> Any:
            try:
                return await act
            finally:
                if hasattr(self, "lab"):
                    await self.lab.settle()

        return self.runner.run(whole())

    def refused(self, error: type[CaissonError], act: Awaitable[Any]) -> None:
        """The act is refused by exactly this error."""
        with pytest.raises(CaissonError) as caught:
            self.run(act)
        assert type(caught.value) is error

    def teardown(self) -> None:
        """Stop everything."""
        self.run(self.lab.stop())
        self.runner.close()
        self.lab.pool.close()
        self.directory.cleanup()

    @initialize()
    def populate(self) -> None:
        """A template, `work`, and a base of disposables."""
        self.run(self.lab.populate())
        self.states = {TEMPLATE: HALTED, BASE: HALTED, LASTING[0]: HALTED}
        self.kept = {name: set() for name in self.states}
        self.written = {name: set() for name in self.states}
        self.listener = dict.fromkeys(self.states, HALTED)

    @rule(name=names)
    def create(self, name: QubeName) -> None:
        """A lasting qube."""
        if name in self.states:
            self.refused(QubeExistsError, self.lab.qubes.create(Klass.APP, name, RED, None, DOM0))
            return
        self.run(self.lab.app(name))
        self._born(name)

    @rule()
    def create_disposable(self) -> None:
        """One that is not started yet."""
        name = self.run(self.lab.qubes.create_disposable(BASE, DOM0))
        self._born(name)
        self.disposables.add(name)

    def _born(self, name: QubeName) -> None:
        self.states[name] = HALTED
        self.kept[name], self.written[name] = set(), set()

    def _ended(self, name: QubeName) -> None:
        """A run is over: what was written is kept, or all is gone."""
        self.states[name] = HALTED
        self.kept[name] |= self.written.pop(name)
        self.written[name] = set()
        if name in self.disposables:
            self._forgotten(name)

    def _forgotten(self, name: QubeName) -> None:
        self.disposables.discard(name)
        for known in (self.states, self.kept, self.written):
            known.pop(name, None)

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        """Any: one that is up stays as it is."""
        name = data.draw(st.sampled_from(sorted(self.states)))
        self.run(self.lab.qubes.start(name))
        if self.states[name] == HALTED:
            self.states[name] = RUNNING

    @rule(data=st.data(), how=st.sampled_from(["engine", "barrier", "store", "ends"]))
    def start_in_vain(self, data: st.DataObject, how: str) -> None:
        """A start that fails; a disposable is gone by it."""
        name = data.draw(st.sampled_from(sorted(self.states)))
        lab = self.lab
        match how:
            case "engine":
                lab.engine.fail_start = EngineError("no")
            case "barrier":
                lab.report = report("seccomp")
            case "store":
                lab.refuse_writes()
            case _:
                lab.engine.on_start = lambda instance: instance.end()
        try:
            self.run(lab.qubes.start(name))
        except CaissonError:
            assert self.states[name] == HALTED
            if how == "store" and name in self.disposables:
                # It cannot be removed either; the next daemon does that.
                assert name in lab.system.qubes
            elif name in self.disposables:
                self._forgotten(name)
        else:
            assert self.states[name] != HALTED
        finally:
            lab.engine.fail_start = None
            lab.report = report()
            lab.engine.on_start = lab.play_agent
            lab.refuse_writes(really=False)

    @rule(data=st.data(), act=st.sampled_from(["shutdown", "kill", "end", "cancelled kill"]))
    def end(self, data: st.DataObject, act: str) -> None:
        """Asked to, forced to, by itself, or by someone who does not wait."""
        name = data.draw(st.sampled_from(sorted(self.states)))
        qubes = self.lab.qubes
        match act:
            case "shutdown":
                ending: Awaitable[Any] = qubes.shutdown(name, wait=True)
            case "kill":
                ending = qubes.kill(name)
            case "end":
                ending = self._end_by_itself(name)
            case _:
                ending = self._kill_and_leave(name)
        if self.states[name] == HALTED:
            self.refused(NotStartedError, ending)
        elif self.states[name] == PAUSED and act == "shutdown":
            self.refused(NotRunningError, ending)
        else:
            self.run(ending)
            self._ended(name)

    async def _end_by_itself(self, name: QubeName) -> None:
        if self.states[name] == HALTED:
            raise NotStartedError("it is halted")
        power = self.lab.qubes._ledger.power(self.lab.system.qube(name))
        self.lab.instance(name).end()
        await power.gone.wait()

    async def _kill_and_leave(self, name: QubeName) -> None:
        if self.states[name] == HALTED:
            raise NotStartedError("it is halted")
        power = self.lab.qubes._ledger.power(self.lab.system.qube(name))
        killing = asyncio.create_task(self.lab.qubes.kill(name))
        await self.lab.settle()
        killing.cancel()
        with suppress(asyncio.CancelledError):
            await killing
        await power.gone.wait()

    @rule(data=st.data(), thaw=st.booleans())
    def pause(self, data: st.DataObject, thaw: bool) -> None:
        """Or unpause."""
        name = data.draw(st.sampled_from(sorted(self.states)))
        wanted, error = (PAUSED, NotPausedError) if thaw else (RUNNING, NotRunningError)
        act = self.lab.qubes.unpause(name) if thaw else self.lab.qubes.pause(name)
        if self.states[name] != wanted:
            self.refused(error, act)
            return
        self.run(act)
        self.states[name] = RUNNING if thaw else PAUSED

    @rule()
    def renew_template(self) -> None:
        """It moves on to a new root, under those that run on the old."""
        if self.states[TEMPLATE] == HALTED:
            self.run(self.lab.install(TEMPLATE))
        else:
            self.refused(NotHaltedError, self.lab.install(TEMPLATE))

    @rule(name=names)
    def remove(self, name: QubeName) -> None:
        """A lasting qube."""
        if name not in self.states:
            self.refused(QubeNotFoundError, self._remove(name))
        elif self.states[name] != HALTED:
            self.refused(NotHaltedError, self._remove(name))
        else:
            self.run(self._remove(name))
            self._forgotten(name)

    async def _remove(self, name: QubeName) -> None:
        await self.lab.qubes.remove(name)

    @precondition(lambda self: any(state == RUNNING for state in self.states.values()))
    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        """A running qube writes a file."""
        running = sorted(name for name, state in self.states.items() if state == RUNNING)
        name = data.draw(st.sampled_from(running))
        self.count += 1
        self.lab.write(name, f"f{self.count}")
        self.written[name].add(f"f{self.count}")

    @rule(crashed=st.sets(st.integers(0, 5), max_size=2), cut_off=st.booleans())
    def restart(self, crashed: set[int], cut_off: bool) -> None:
        """The daemon stops and starts; some qubes end meanwhile, some acts are cut off."""
        running = sorted(name for name, state in self.states.items() if state != HALTED)
        dead = [name for index, name in enumerate(running) if index in crashed]

        async def again() -> None:
            acts = []
            if cut_off and self.states[TEMPLATE] == HALTED:
                acts.append(asyncio.create_task(self.lab.qubes.start(TEMPLATE)))
                await asyncio.sleep(0)
            await self.lab.stop()
            await asyncio.gather(*acts, return_exceptions=True)
            for name in dead:
                self.lab.instance(name).end()
            await self.lab.begin()

        self.run(again())
        for name in dead:
            self._ended(name)
        for name in tuple(self.disposables):
            if self.states[name] == HALTED:
                self._forgotten(name)
        self.states[TEMPLATE] = str(self.lab.state(TEMPLATE))
        # A listener reads the state anew when its connection was lost.
        self.listener = {name: str(self.lab.state(name)) for name in self.states}
        self.lab.news()

    @rule(data=st.data(), among=st.integers(2, 4))
    def at_once(self, data: st.DataObject, among: int) -> None:
        """Several starts and kills of one qube: whole acts in some order."""
        lasting = sorted(set(self.states) - self.disposables)
        name = data.draw(st.sampled_from(lasting))
        qubes = self.lab.qubes
        acts: list[Callable[[QubeName], Awaitable[None]]] = data.draw(
            st.lists(st.sampled_from([qubes.start, qubes.kill]), min_size=among, max_size=among)
        )

        async def all_of_them() -> None:
            await asyncio.gather(*(act(name) for act in acts), return_exceptions=True)
            await until(lambda: str(self.lab.state(name)) in {HALTED, RUNNING, PAUSED})

        self.run(all_of_them())
        self.kept[name] |= self.written[name]
        state = str(self.lab.state(name))
        if state == HALTED:
            self.written[name] = set()
        elif qubes.kill in acts:
            # Whether the files belong to the present run or to a former one is not known.
            self.run(qubes.kill(name))
            state, self.written[name] = HALTED, set()
        else:
            self.kept[name] -= self.written[name]
        self.states[name] = state

    @invariant()
    def power_states_agree(self) -> None:
        """With the reference, the engine, the broker, and whoever listens."""
        lab = self.lab
        qubes = {name for name in lab.system.qubes if name != DOM0}
        assert qubes == set(self.states)
        for name, state in self.states.items():
            assert str(lab.state(name)) == state
            assert lab.door.states.get(name, state) == state
        assert set(lab.running()) == {n for n, state in self.states.items() if state != HALTED}
        assert lab.door.opened == set(lab.running())

    @invariant()
    def no_layer_is_leaked_or_lost(self) -> None:
        """What is on disk is what volumes need; a halted qube has no writable layer."""
        assert self.lab.pool.layers() == self.lab.known_layers()
        for name, state in self.states.items():
            assert bool(self.lab.dirty(name)) == (state != HALTED)

    @invariant()
    def every_kept_file_is_there(self) -> None:
        """Of each lasting qube, after any number of runs and crashes."""
        for name in set(self.states) - self.disposables:
            for file in self.kept[name]:
                assert self.lab.read(name, file) == "x", (name, file)

    @invariant()
    def disposables_do_not_outlive_their_run(self) -> None:
        """One that exists was not ended."""
        for name in self.disposables:
            assert self.lab.dirty(name) or self.states[name] == HALTED

    @invariant()
    def a_listener_knows_what_an_asker_knows(self) -> None:
        """From the events alone, one finds every qube and its state."""
        for event in self.lab.heard._events:
            subject = event.subject or event.kwargs.get("vm", "")
            match event.name:
                case "domain-add":
                    assert subject not in self.listener
                    self.listener[subject] = HALTED
                case "domain-delete":
                    assert self.listener.pop(subject) == HALTED
                case "domain-remove-from-disk":
                    assert subject not in self.listener
                case name if name in _TOLD:
                    assert subject in self.listener
                    self.listener[subject] = _TOLD[name]
        self.lab.heard.take()
        assert self.listener == self.states


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
)
