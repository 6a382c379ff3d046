"""The host of extensions: what is called when, and what a bad one does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from admin_lab import Daemon, running_daemon, until
from structlog.testing import capture_logs

from caisson.errors import DaemonError, PermissionDeniedError, ValueRefusedError
from caisson.ext import Core, Extension, Extensions, NoPolicy, Question, on, permission, rule
from caisson.ext import host as host_module
from caisson.model import Change, Event, SetFeature, System
from caisson.names import QubeName


class Diary(Extension):
    """Notes what it is told."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self.heard: list[str] = []

    @on("domain-tag-add:*", "test-*")
    async def note(self, event: Event) -> None:
        """Note it, some turns of the loop later."""
        for _ in range(3):
            await asyncio.sleep(0)
        self.heard.append(event.name)

    @on("test-bad")
    async def fail(self, event: Event) -> None:
        """Fail."""
        raise ZeroDivisionError

    @permission("admin.vm.Kill")
    def refuse(self, question: Question) -> None:
        """Nobody kills."""
        raise PermissionDeniedError(f"{question.origin.name} may not kill")

    @rule
    def no_secrets(self, system: System, change: Change) -> Change:
        """No feature may be called `secret`."""
        if any(isinstance(op, SetFeature) and op.name == "secret" for op in change.ops):
            raise ValueRefusedError("no secrets")
        return change


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon with a few qubes."""
    async with running_daemon(tmp_path) as running:
        await running.populate()
        yield running


@pytest.fixture
async def extended(daemon: Daemon) -> AsyncIterator[tuple[Daemon, Extensions, list[Diary]]]:
    """The daemon with one more extension, and what it heard."""
    made: list[Diary] = []

    def diary(core: Core) -> Diary:
        made.append(Diary(core))
        return made[0]

    extensions = Extensions(Core(daemon.qubes, NoPolicy()), [diary])
    running = asyncio.create_task(extensions.run())
    yield daemon, extensions, made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_handlers_hear_events_in_order(
    extended: tuple[Daemon, Extensions, list[Diary]],
) -> None:
    """One after the other, although each takes a while."""
    daemon, _, (diary,) = extended
    for tag in "abc":
        await daemon.ok(f"admin.vm.tag.Set+{tag}", "work")
    await until(lambda: len(diary.heard) == 3)
    assert diary.heard == ["domain-tag-add:a", "domain-tag-add:b", "domain-tag-add:c"]


async def test_tell_returns_when_the_handlers_are_done(
    extended: tuple[Daemon, Extensions, list[Diary]],
) -> None:
    """A handler that fails is written down, and keeps nobody from going on."""
    _, extensions, (diary,) = extended
    with capture_logs() as logs:
        await extensions.tell(Event(None, "test-bad"))
    assert diary.heard == ["test-bad"]
    assert [log["event"] for log in logs] == ["an extension failed"]
    await extensions.tell(Event(None, "unheard"))


async def test_rules_refuse_a_change_as_a_whole(
    extended: tuple[Daemon, Extensions, list[Diary]],
) -> None:
    """The refusal reaches the client, and nothing is stored."""
    daemon, *_ = extended
    assert await daemon.refused("admin.vm.feature.Set+secret", "work", b"x") == "QubesValueError"
    assert await daemon.ok("admin.vm.feature.List", "work") == ""


async def test_permissions_are_asked_for_their_methods_only(
    extended: tuple[Daemon, Extensions, list[Diary]],
) -> None:
    """Even the admin qube, if the extension says so."""
    daemon, extensions, _ = extended
    dom0, work = daemon.qubes.system.dom0, daemon.qubes.system.qube("work")
    with pytest.raises(PermissionDeniedError):
        extensions.ask(Question(dom0, "admin.vm.Kill", work, ""))
    assert extensions.ask(Question(dom0, "admin.vm.Start", work, "")) is None


@pytest.mark.parametrize("target", ["caisson.no_such_room:Missing", "caisson.ext.admin:Missing"])
async def test_an_extension_that_cannot_be_loaded_stops_the_daemon(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """It may be a barrier; the error names it."""
    entry = EntryPoint("broken", target, host_module.GROUP)
    monkeypatch.setattr(host_module, "entry_points", lambda group: [entry])
    with pytest.raises(DaemonError, match="`broken`"):
        Extensions.load(Core(daemon.qubes, NoPolicy()))


async def test_without_any_extension_the_daemon_does_not_start(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken installation must not mean that nobody is judged."""
    monkeypatch.setattr(host_module, "entry_points", lambda group: [])
    with pytest.raises(DaemonError, match="no extension"):
        Extensions.load(Core(daemon.qubes, NoPolicy()))


async def test_without_an_extension_that_judges_other_qubes_may_do_nothing(daemon: Daemon) -> None:
    """Default is deny: no hook, no right."""
    extensions = Extensions(Core(daemon.qubes, NoPolicy()), [])
    work = daemon.qubes.system.qube("work")
    with pytest.raises(PermissionDeniedError):
        extensions.ask(Question(work, "admin.vm.List", work, ""))
    with pytest.raises(PermissionDeniedError):
        await daemon.qubes.commit(Change(), QubeName("work"))
    await daemon.qubes.commit(Change())
