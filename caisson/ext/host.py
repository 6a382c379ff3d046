"""Finds the extensions and calls them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import entry_points
from typing import Self

import structlog

from caisson.errors import CaissonError, DaemonError, PermissionDeniedError
from caisson.ext.interface import (
    Core,
    Extension,
    Filter,
    Handler,
    Hook,
    Permission,
    Question,
    Shown,
    hooks_of,
)
from caisson.lifecycle import Judgement, Rule
from caisson.model import Change, Event, System
from caisson.names import DOM0, QubeName

GROUP = "caisson.ext"
HANDLER_SECONDS = 60.0
"""How long one handler may take with one event."""
_log = structlog.get_logger("ext")


class Extensions:
    """All extensions of a daemon.

    From its construction on, the lifecycle follows their rules and judgements; their handlers
    hear of events while `run` goes on.
    """

    def __init__(self, core: Core, classes: Iterable[Callable[[Core], Extension]]) -> None:
        self.core = core
        self._permissions: list[tuple[Hook, Permission]] = []
        self._rules: list[Rule] = []
        self._judgements: list[Judgement] = []
        self._listeners: list[_Listener] = []
        for klass in classes:
            self._take(klass(core))
        core.qubes.follow(self._ruled, self._judge)

    @classmethod
    def load(cls, core: Core) -> Self:
        """Make every extension that is installed.

        Raises:
            DaemonError: one cannot be loaded; it may be a barrier, so nothing works without it.
        """
        classes = []
        for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
            try:
                classes.append(entry.load())
            except Exception as error:
                raise DaemonError(
                    f"extension `{entry.name}` cannot be loaded: {error}",
                    hint=f"mend or uninstall the package that brings `{entry.value}`",
                ) from error
        if not classes:
            raise DaemonError(
                f"no extension is registered under `{GROUP}`: the daemon would judge nobody",
                hint="install Caisson again: `sudo script/setup`",
            )
        return cls(core, classes)

    def _take(self, extension: Extension) -> None:
        handlers: list[tuple[Hook, Handler]] = []
        for hook, method in hooks_of(extension):
            match hook.kind:
                case "on":
                    handlers.append((hook, method))
                case "permission":
                    self._permissions.append((hook, method))
                case "rule":
                    self._rules.append(method)
                case "judgement":
                    self._judgements.append(method)
        if handlers:
            self._listeners.append(_Listener(self.core, type(extension).__name__, handlers))

    def ask(self, question: Question) -> Filter | None:
        """Ask whether a method may be called; returns what its caller is shown, None for all.

        Raises:
            PermissionDeniedError: an extension refuses.
        """
        asked = [each for hook, each in self._permissions if _fits(hook, question.method)]
        if not asked:
            _refuse_unjudged(question.origin.name)
        filters = [found for each in asked if (found := each(question)) is not None]
        return _All(tuple(filters)) if filters else None

    def _ruled(self, system: System, change: Change) -> Change:
        for each in self._rules:
            change = each(system, change)
        return change

    def _judge(self, origin: QubeName, change: Change) -> None:
        if not self._judgements:
            _refuse_unjudged(origin)
        for each in self._judgements:
            each(origin, change)

    async def run(self) -> None:
        """Let handlers hear of events, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for listener in self._listeners:
                group.create_task(listener.run())

    async def tell(self, event: Event) -> None:
        """Publish an event, and return when the handlers have dealt with it."""
        waiting = [each.expect(event) for each in self._listeners if each.hears(event)]
        self.core.qubes.events.publish(event)
        await asyncio.gather(*waiting)


class _Listener:
    """One extension's handlers: one event at a time, so that they see them in order."""

    def __init__(self, core: Core, name: str, handlers: list[tuple[Hook, Handler]]) -> None:
        self._core = core
        self._name = name
        self._handlers = handlers
        self._expected: dict[int, asyncio.Future[None]] = {}
        self._subscription = core.qubes.events.subscribe(self._hearing)

    def hears(self, event: Event) -> bool:
        """Whether a handler is there for it."""
        return any(_fits(hook, event.name) for hook, _ in self._handlers)

    def expect(self, event: Event) -> asyncio.Future[None]:
        """What is done once the event, which must stay alive until then, was handled."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._expected[id(event)] = future
        return future

    async def run(self) -> None:
        """Handle events until cancelled."""
        while True:
            with self._subscription as events:
                async for event in events:
                    await self._handle(event)
            _log.error("an extension fell behind and missed events", extension=self._name)
            self._subscription = self._core.qubes.events.subscribe(self._hearing)
            self._give_up()

    def _hearing(self) -> Callable[[Event], bool]:
        return self.hears

    def _give_up(self) -> None:
        """What was expected was among the missed events; nobody shall wait for it for ever."""
        expected, self._expected = self._expected, {}
        for future in expected.values():
            if not future.done():
                future.set_result(None)

    async def _handle(self, event: Event) -> None:
        for hook, handler in self._handlers:
            if _fits(hook, event.name):
                await self._guarded(handler, event)
        if (future := self._expected.pop(id(event), None)) is not None and not future.done():
            future.set_result(None)

    async def _guarded(self, handler: Handler, event: Event) -> None:
        """One handler that fails or hangs takes nothing else with it."""
        try:
            async with asyncio.timeout(HANDLER_SECONDS):
                await handler(event)
        except TimeoutError:
            _log.error("an extension takes too long", extension=self._name, event_name=event.name)
        except CaissonError as error:
            _log.error(
                "an extension failed",
                extension=self._name,
                event_name=event.name,
                error=str(error),
            )
        except Exception:  # noqa: BLE001 - a bug in an extension must not end the daemon
            _log.exception("an extension failed", extension=self._name, event_name=event.name)


def _refuse_unjudged(origin: QubeName) -> None:
    """Where no extension decides about other qubes, they may do nothing."""
    if origin != DOM0:
        raise PermissionDeniedError(
            f"qube `{origin}` may do nothing here", hint="no extension judges the calls of qubes"
        )


def _fits(hook: Hook, name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in hook.patterns)


@dataclass(frozen=True, slots=True)
class _All:
    """Shows what every one of some filters shows."""

    filters: tuple[Filter, ...]

    def __call__(self) -> Shown:
        looks = [each() for each in self.filters]
        if len(looks) == 1:
            return looks[0]
        return lambda item: all(shown(item) for shown in looks)
