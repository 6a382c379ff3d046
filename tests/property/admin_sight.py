"""A daemon in a thread, all that its API shows, and what a listener knows by events alone."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from pathlib import Path

from admin_lab import running_daemon
from conformance.sheet_client import (
    POWER,
    UNSET,
    EventStream,
    SheetClient,
    Told,
    Value,
    over_socket,
)
from structlog.testing import capture_logs

Mirrored = dict[str, tuple[bool, str]]


class Machine:
    """A daemon in a thread of its own, with a client and a listener."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        self._directory = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()))
        self._thread.start()
        assert self._ready.wait(60)
        self.client = SheetClient(over_socket(self._daemon.paths.qubesd))
        self.stream = EventStream(self._daemon.paths.qubesd)

    async def _live(self) -> None:
        with capture_logs():
            async with running_daemon(Path(self._directory.name)) as self._daemon:
                await self._daemon.install("tpl")
                self._stop = asyncio.Event()
                self._loop = asyncio.get_running_loop()
                self._ready.set()
                await self._stop.wait()

    def close(self) -> None:
        """End it."""
        self.stream.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._directory.cleanup()


def plain(value: Value) -> tuple[bool, str]:
    """A value as an event tells it: whether it is the default, and its text."""
    return value.default, str(None if value.value is UNSET else value.value)


class Sight:
    """All that the API shows."""

    def __init__(self, client: SheetClient) -> None:
        self.labels = {
            name: int(client.text("dom0", "admin.label.Index", name))
            for name in client.lines("dom0", "admin.label.List")
        }
        self.values = {"": client.get_all(None)}
        self.features: dict[str, dict[str, str | None]] = {}
        self.tags: dict[str, set[str]] = {}
        self.notes: dict[str, str] = {}
        listed = client.qubes()
        self.powers = {name: each.state for name, each in listed.items()}
        self.klasses = {name: each.klass for name, each in listed.items()}
        for name, each in listed.items():
            self.values[name] = client.get_all(name)
            features = client.lines(name, "admin.vm.feature.List")
            self.features[name] = {key: client.feature(name, key) for key in features}
            self.tags[name] = set(client.lines(name, "admin.vm.tag.List"))
            assert client.state(name) == each.state
            if each.klass not in {"AdminVM", "RemoteVM"}:
                self.notes[name] = client.call(name, "admin.vm.notes.Get").decode()


class Mirror:
    """What a listener knows: it reads a qube when that comes, and the rest it is told."""

    def __init__(self, sight: Sight) -> None:
        self.values: dict[str, Mirrored] = {"": {}}
        self.features: dict[str, dict[str, str | None]] = {}
        self.tags: dict[str, set[str]] = {}
        self.powers: dict[str, str] = {}
        self.fill(sight)
        for name in sight.powers:
            self._read(name, sight)

    def _read(self, name: str, sight: Sight) -> None:
        self.values[name] = {key: plain(value) for key, value in sight.values[name].items()}
        self.features[name] = dict(sight.features[name])
        self.tags[name] = set(sight.tags[name])
        self.powers[name] = sight.powers[name]

    def fill(self, sight: Sight) -> None:
        """Ask again for the properties that it was told to forget."""
        for name, known in self.values.items():
            for key, value in sight.values[name].items():
                known.setdefault(key, plain(value))

    def hear(self, told: Told, sight: Sight) -> None:  # noqa: C901 - a table
        """Follow one event."""
        kind, _, rest = told.name.partition(":")
        who, kwargs = told.subject, told.kwargs
        if who not in self.values:
            return  # it came and went within one step
        match kind:
            case "domain-add" if kwargs["vm"] in sight.powers:
                self._read(kwargs["vm"], sight)
            case "domain-delete":
                for known in (self.values, self.features, self.tags, self.powers):
                    known.pop(kwargs["vm"], None)
            case "property-set":
                assert kwargs["name"] == rest
                self.values[who][rest] = (False, kwargs["newvalue"])
            case "property-reset":
                assert kwargs["name"] == rest
                self.values[who].pop(rest, None)
            case "domain-feature-set":
                assert kwargs["feature"] == rest
                self.features[who][rest] = kwargs["value"]
            case "domain-feature-delete":
                self.features[who].pop(kwargs["feature"], None)
            case "domain-tag-add":
                self.tags[who].add(kwargs["tag"])
            case "domain-tag-delete":
                self.tags[who].discard(kwargs["tag"])
            case _ if told.name in POWER:
                self.powers[who] = POWER[told.name]
            case _:
                pass
