"""Delegated administration: `mgmt` manages what it created, and reaches nothing else.

Each attempt is judged by what it would bring about, whichever method it goes through.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from admin_lab import SOON, Daemon, TextView, running_daemon, until

from caisson.admin import Services, wire
from caisson.admin.bounds import MOST_STREAMS
from caisson.admin.methods import METHODS, classes
from caisson.admin.registry import Door
from caisson.errors import PermissionDeniedError
from caisson.ext import Core, Extensions
from caisson.model.events import event_of
from caisson.names import QubeName
from caisson.policy import Decision, PolicySet, Request, SystemInfo

LOCAL = "@tag:created-by-mgmt allow target=dom0"
POLICY = f"""
admin.vm.Create.AppVM       +tpl     mgmt @adminvm allow
admin.vm.Create.AppVM       +        mgmt @adminvm allow
admin.vm.CreateInPool.AppVM *        mgmt @adminvm allow
admin.vm.List               *        mgmt @adminvm allow
admin.Events                +        mgmt @adminvm allow
admin.vm.Stats              *        mgmt @adminvm allow
admin.label.Create          *        mgmt @adminvm deny
admin.vm.property.Set       +maxmem  mgmt @anyvm   deny
admin.vm.property.Set       +netvm   mgmt @anyvm   deny
admin.vm.property.Set       +guivm   mgmt @anyvm   deny
admin.vm.property.Set       +devices_denied mgmt @anyvm deny
admin.vm.tag.Set            +vault   mgmt @anyvm   deny
* * mgmt {LOCAL}
"""


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon with `mgmt`, which created `mine`; `work` is somebody else's."""
    async with running_daemon(tmp_path, policy=POLICY) as running:
        await running.populate()
        await running.ok("admin.vm.Create.AppVM", payload=b"name=mgmt label=black")
        await running.ok("admin.vm.Create.AppVM", payload=b"name=net label=red")
        await running.ok("admin.vm.property.Set+provides_network", "net", b"True")
        assert await _by_mgmt(running, "admin.vm.Create.AppVM", "dom0", b"name=mine label=red")
        yield running


async def _by_mgmt(daemon: Daemon, method: str, dest: str, payload: bytes = b"") -> bool:
    """Whether the call succeeded; a refusal must be one by right."""
    reply = await daemon.ask(method, dest, payload, source="mgmt")
    if reply.startswith(b"0\0"):
        return True
    assert reply.startswith(b"2\0PermissionDenied\0"), reply
    return False


async def _listed(daemon: Daemon) -> list[str]:
    reply = await daemon.ask("admin.vm.List", source="mgmt")
    assert reply.startswith(b"0\0")
    return [line.split()[0].decode() for line in reply[2:].splitlines()]


async def test_an_administrator_sees_only_what_it_may_list(daemon: Daemon) -> None:
    """Of the whole system, the admin qube that it asks, and the qubes that it created."""
    assert await _listed(daemon) == ["dom0", "mine"]
    assert not await _by_mgmt(daemon, "admin.vm.List", "work")


@pytest.mark.parametrize(
    ("method", "payload"),
    [
        ("admin.vm.Start", b""),
        ("admin.vm.property.Get+netvm", b""),
        ("admin.vm.property.Set+label", b"green"),
        ("admin.vm.feature.Set+x", b"1"),
        ("admin.vm.tag.Set+free", b""),
        ("admin.vm.tag.List", b""),
    ],
)
async def test_an_administrator_manages_its_own_qubes_and_no_others(
    daemon: Daemon, method: str, payload: bytes
) -> None:
    """The same call is fine on `mine` and refused on `work`, `tpl` and the admin qube."""
    assert await _by_mgmt(daemon, method, "mine", payload)
    for other in ("work", "tpl"):
        assert not await _by_mgmt(daemon, method, other, payload)
    reply = await daemon.ask(method, "dom0", payload, source="mgmt")
    assert reply.startswith(b"2\0PermissionDenied\0")


async def test_the_creator_is_written_on_every_qube_and_stays(daemon: Daemon) -> None:
    """`created-by-*` is what the policy builds on: no administrator gives or takes it."""
    assert "created-by-mgmt" in await daemon.ok("admin.vm.tag.List", "mine")
    assert not await _by_mgmt(daemon, "admin.vm.tag.Remove+created-by-mgmt", "mine")
    assert not await _by_mgmt(daemon, "admin.vm.tag.Set+created-by-dom0", "mine")
    assert not await _by_mgmt(daemon, "admin.vm.tag.Set+created-by-mgmt", "work")


@pytest.mark.parametrize(
    ("method", "payload"),
    [
        ("admin.vm.property.Set+maxmem", b"0"),
        ("admin.vm.feature.Set+service.meminfo-writer", b""),
        ("admin.vm.property.Set+netvm", b"net"),
        ("admin.vm.property.Reset+netvm", b""),
        ("admin.vm.property.Set+guivm", b""),
        ("admin.vm.property.Reset+guivm", b""),
        ("admin.vm.tag.Set+guivm-net", b""),
        ("admin.vm.tag.Set+vault", b""),
        ("admin.vm.property.Set+provides_network", b"True"),
        ("admin.vm.feature.Set+net.uplink", b"nat"),
    ],
)
async def test_a_restriction_holds_on_every_way_to_the_same_state(
    daemon: Daemon, method: str, payload: bytes
) -> None:
    """A property may not be reached through a feature, a tag, or by leaving it out.

    Class: restriction checked on one verb only (incus commits f1c75c6c48, 7cec16a23c).
    """
    await daemon.ok("admin.vm.property.Set+netvm", "mine", b"")
    await daemon.ok("admin.vm.property.Set+guivm", "mine", b"work")
    before = await daemon.ok("admin.vm.property.GetAll", "mine")
    tags = await daemon.ok("admin.vm.tag.List", "mine")
    assert not await _by_mgmt(daemon, method, "mine", payload)
    assert await daemon.ok("admin.vm.property.GetAll", "mine") == before
    assert await daemon.ok("admin.vm.tag.List", "mine") == tags


async def test_a_template_that_may_not_be_named_may_not_be_had_otherwise(daemon: Daemon) -> None:
    """Not by another method, not by default, and not by changing the template later."""
    await daemon.ok(
        "admin.vm.CreateInPool.TemplateVM", payload=b"name=other label=black pool:root=host"
    )
    name = b"name=more label=red"
    assert not await _by_mgmt(daemon, "admin.vm.Create.AppVM+other", "dom0", name)
    pools = name + b" pool:private=varlibqubes"
    assert not await _by_mgmt(daemon, "admin.vm.CreateInPool.AppVM+other", "dom0", pools)
    assert not await _by_mgmt(daemon, "admin.vm.property.Set+template", "mine", b"other")
    await daemon.ok("admin.property.Set+default_template", payload=b"other")
    assert not await _by_mgmt(daemon, "admin.vm.Create.AppVM", "dom0", name)
    assert not await _by_mgmt(daemon, "admin.vm.CreateInPool.AppVM", "dom0", pools)
    assert await _by_mgmt(daemon, "admin.vm.Create.AppVM+tpl", "dom0", name)
    assert await _by_mgmt(daemon, "admin.vm.property.Set+template", "mine", b"tpl")


async def test_a_disposable_needs_the_right_to_its_base_however_that_is_named(
    daemon: Daemon,
) -> None:
    """Also where the base is the caller's own default."""
    await daemon.ok("admin.vm.property.Set+default_dispvm", "mgmt", b"base")
    daemon.policy.text = "admin.vm.CreateDisposable * mgmt @adminvm allow\n"
    assert not await _by_mgmt(daemon, "admin.vm.CreateDisposable", "dom0")
    daemon.policy.text += "admin.vm.CreateDisposable * mgmt base allow target=dom0\n"
    assert await _by_mgmt(daemon, "admin.vm.CreateDisposable", "dom0")
    assert await _by_mgmt(daemon, "admin.vm.CreateDisposable", "base")


@pytest.mark.parametrize("feature", ["tag-created-vm-with", "set-created-guivm"])
async def test_what_a_creator_gives_is_decided_by_the_admin_qube(
    daemon: Daemon, feature: str
) -> None:
    """Else an administrator could give tags that it may not give, by way of a new qube."""
    assert not await _by_mgmt(daemon, f"admin.vm.feature.Set+{feature}", "mine", b"vault")
    await daemon.ok(f"admin.vm.feature.Set+{feature}", "mine", b"x")
    assert not await _by_mgmt(daemon, f"admin.vm.feature.Remove+{feature}", "mine")


async def test_a_right_that_is_a_question_counts_for_the_call_that_was_asked_about(
    daemon: Daemon,
) -> None:
    """A person who agreed to one call has not agreed to its like through another method."""
    daemon.policy.text = f"""
admin.vm.property.Set +maxmem mgmt @tag:created-by-mgmt ask target=dom0
admin.vm.feature.Set  *       mgmt {LOCAL}
"""
    assert await _by_mgmt(daemon, "admin.vm.property.Set+maxmem", "mine", b"100")
    assert not await _by_mgmt(daemon, "admin.vm.feature.Set+service.meminfo-writer", "mine", b"")


async def test_lists_show_nothing_that_would_be_a_question(daemon: Daemon) -> None:
    """Only an unconditional allow counts (sheet, section 3.1)."""
    daemon.policy.text = """
admin.vm.List * mgmt @adminvm allow
admin.vm.List * mgmt work ask target=dom0
"""
    assert await _listed(daemon) == ["dom0"]


async def test_an_administrator_hears_of_its_own_qubes_only(daemon: Daemon) -> None:
    """Events of others are left out; `connection-established` always comes first."""
    reader, writer = await daemon.connect()
    writer.write(b"admin.Events+ mgmt name dom0\0")
    writer.write_eof()
    async with asyncio.timeout(SOON):
        assert await reader.readuntil(b"established\0\0") == b"1\0\0connection-established\0\0"
        await daemon.ok("admin.vm.tag.Set+x", "work")
        await daemon.ok("admin.property.Set+stats_interval", payload=b"2")
        await daemon.ok("admin.vm.tag.Set+y", "mine")
        frame = await reader.readuntil(b"tag\0y\0\0")
    assert frame == b"1\0mine\0domain-tag-add:y\0tag\0y\0\0"
    writer.close()


async def test_an_administrator_hears_of_the_end_of_its_own_qubes(daemon: Daemon) -> None:
    """Though nothing can be judged any more about a qube that is gone; and of no other end."""
    reader, writer = await daemon.connect()
    writer.write(b"admin.Events+ mgmt name dom0\0")
    writer.write_eof()
    async with asyncio.timeout(SOON):
        await reader.readuntil(b"established\0\0")
    await daemon.ok("admin.vm.Remove", "net")
    await daemon.ok("admin.vm.Start", "mine")
    await daemon.ok("admin.vm.Kill", "mine")
    await daemon.ok("admin.vm.Remove", "mine")
    async with asyncio.timeout(SOON):
        told = await reader.readuntil(b"domain-delete\0vm\0mine\0\0")
    assert told.startswith(b"1\0mine\0domain-pre-start\0")
    assert told.endswith(
        b"1\0mine\0domain-shutdown\0\0"
        b"1\0\0domain-pre-delete\0vm\0mine\0\0"
        b"1\0\0domain-delete\0vm\0mine\0\0"
    )
    writer.close()


async def test_a_right_that_is_withdrawn_ends_what_a_listener_hears(daemon: Daemon) -> None:
    """Each event is judged when it happens."""
    reader, writer = await daemon.connect()
    writer.write(b"admin.Events+ mgmt name dom0\0")
    writer.write_eof()
    async with asyncio.timeout(SOON):
        await reader.readuntil(b"established\0\0")
        daemon.policy.text = "admin.Events +domain-tag-add_z mgmt mine allow target=dom0\n"
        await daemon.ok("admin.vm.tag.Set+y", "mine")
        await daemon.ok("admin.vm.tag.Set+z", "mine")
        assert (await reader.readuntil(b"\0z\0\0")).startswith(b"1\0mine\0domain-tag-add:z\0")
    writer.close()


async def _listening(
    daemon: Daemon, source: str = "mgmt"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a stream of events and wait for its beginning."""
    reader, writer = await daemon.connect()
    writer.write(f"admin.Events+ {source} name dom0".encode() + b"\0")
    writer.write_eof()
    async with asyncio.timeout(SOON):
        await reader.readuntil(b"established\0\0")
    return reader, writer


async def test_nobody_hears_what_happened_to_a_former_qube_of_that_name(daemon: Daemon) -> None:
    """However late it reads: an event is about a qube, not about a name."""
    reader, writer = await _listening(daemon)
    bus, mine = daemon.qubes.events, daemon.qubes.system.qube("mine")
    for _ in range(4):  # more than the socket holds: from here on, events are queued
        bus.publish(event_of(mine, "filled", {"with": "A" * 500_000}))
    await daemon.ok("admin.vm.Create.AppVM", payload=b"name=secret label=black")
    former = daemon.qubes.system.qube("secret")
    await daemon.ok("admin.vm.feature.Set+launch-code", "secret", b"0000-1234")
    await daemon.ok("admin.vm.Remove", "secret")
    name = b"name=secret label=red"
    assert await _by_mgmt(daemon, "admin.vm.Create.AppVM+tpl", "dom0", name)
    bus.publish(event_of(former, "late-news", {"code": "0000-1234"}))
    await daemon.ok("admin.vm.tag.Set+end", "secret")
    heard = b""
    async with asyncio.timeout(SOON):
        while not heard.endswith(b"\0end\0\0"):
            heard += await reader.read(1 << 20)
    for ended in (b"0000-1234", b"domain-delete", b"late-news"):
        assert ended not in heard
    assert heard.count(b"domain-add\0vm\0secret\0\0") == 1
    writer.close()


async def test_an_administrator_hears_of_the_end_of_its_own_qubes_only(daemon: Daemon) -> None:
    """Though the policy cannot judge a qube that is gone: what was before its end counts."""
    reader, writer = await _listening(daemon)
    await daemon.ok("admin.vm.Remove", "work")
    await daemon.ok("admin.vm.Remove", "mine")
    async with asyncio.timeout(SOON):
        heard = await reader.readuntil(b"domain-remove-from-disk\0\0")
    assert heard == (
        b"1\0\0domain-pre-delete\0vm\0mine\0\0"
        b"1\0\0domain-delete\0vm\0mine\0\0"
        b"1\0mine\0domain-remove-from-disk\0\0"
    )
    writer.close()


async def test_events_of_others_cost_one_judgement_for_all_streams_of_a_qube(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are never queued: one qube's streams leave the daemon to the others."""
    judged: list[Request] = []
    decide = PolicySet.decide

    def noted(policy: PolicySet, request: Request, domains: SystemInfo) -> Decision:
        judged.append(request)
        return decide(policy, request, domains)

    streams = [await _listening(daemon) for _ in range(MOST_STREAMS)]
    monkeypatch.setattr(PolicySet, "decide", noted)
    work, mine = map(daemon.qubes.system.qube, ("work", "mine"))
    daemon.qubes.events.publish(*(event_of(work, f"happened:{n}") for n in range(300)))
    daemon.qubes.events.publish(event_of(mine, "end"))
    for reader, writer in streams:
        async with asyncio.timeout(SOON):
            assert await reader.readuntil(b"\0end\0\0") == b"1\0mine\0end\0\0"
        writer.close()
    assert len(judged) == 301


async def test_a_qube_may_have_so_many_streams_and_the_admin_qube_any_number(
    daemon: Daemon,
) -> None:
    """Whichever methods they go through; when one ends there is room again."""
    streams = [await _listening(daemon, "dom0") for _ in range(MOST_STREAMS + 1)]
    streams += [await _listening(daemon) for _ in range(MOST_STREAMS)]
    for method in ("admin.Events", "admin.vm.Stats"):
        reply = await daemon.ask(method, source="mgmt")
        assert reply.startswith(b"2\0QubesException\0")
        assert b"has too many streams" in reply
    _, last = streams.pop()
    last.close()
    expected = daemon.qubes.events.listeners - 1
    await until(lambda: daemon.qubes.events.listeners == expected)
    streams.append(await _listening(daemon))
    for _, writer in streams:
        writer.close()


@pytest.mark.parametrize(("source", "looks"), [("dom0", 0), ("mgmt", 3)])
async def test_a_long_list_is_judged_batch_by_batch_and_lets_others_run_in_between(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, source: str, looks: int
) -> None:
    """One look at the policy a batch; a list that nobody judges takes none."""
    qubes = daemon.qubes.system.qubes
    monkeypatch.setattr(classes, "_UNBROKEN", -(-len(qubes) // 3))
    extensions = Extensions.load(Core(daemon.qubes, daemon.policy))
    request = wire.Request("admin.vm.List", "", source, "dom0", b"")
    call = METHODS.call(Services(), extensions, request, Door.ADMIN)
    taken: list[TextView] = []
    now = daemon.policy.now

    def look() -> TextView:
        taken.append(now())
        return taken[-1]

    monkeypatch.setattr(daemon.policy, "now", look)
    listing = asyncio.create_task(classes.list_qubes(call))
    turns = 0
    while not listing.done():
        await asyncio.sleep(0)
        turns += 1
    assert len(taken) == looks
    assert turns >= looks
    assert len(listing.result().splitlines()) == (len(qubes) if source == "dom0" else 2)


async def test_a_new_qube_of_an_old_name_is_a_stranger(daemon: Daemon) -> None:
    """A later `mgmt` has no say over what the former one created (name reuse)."""
    await daemon.ok("admin.vm.Remove", "mgmt")
    await daemon.ok("admin.vm.Create.AppVM", payload=b"name=mgmt label=black")
    assert await _listed(daemon) == ["dom0"]
    assert not await _by_mgmt(daemon, "admin.vm.Start", "mine")


async def test_without_rules_a_qube_may_nothing(daemon: Daemon) -> None:
    """Default is deny, for every method of the registry that takes no payload."""
    daemon.policy.text = ""
    for method in ("admin.vm.List", "admin.vm.Kill", "admin.Events", "admin.pool.List"):
        assert not await _by_mgmt(daemon, method, "dom0")


async def test_what_is_for_the_admin_qube_alone_no_policy_gives_away(daemon: Daemon) -> None:
    """Methods of our own show everything, so that they exist for nobody else."""
    daemon.policy.text = "* * mgmt * allow target=dom0\n"
    reply = await daemon.ask("caisson.vm.List", source="mgmt")
    assert reply.startswith(b"2\0ProtocolError\0")


async def test_a_flag_that_may_not_be_given_may_not_be_given_beside_another(
    daemon: Daemon,
) -> None:
    """`force` is judged by itself, and no flag is given twice."""
    daemon.policy.text = "admin.vm.Shutdown +force mgmt @anyvm deny\n" + POLICY
    for flags in ("force", "force+wait", "wait+force"):
        assert not await _by_mgmt(daemon, f"admin.vm.Shutdown+{flags}", "mine")
    reply = await daemon.ask("admin.vm.Shutdown+wait+wait", "mine", source="mgmt")
    assert reply.startswith(b"2\0ProtocolError\0")


async def test_a_disposable_of_a_call_is_not_kept(daemon: Daemon) -> None:
    """It would be a qube that the administrator may not create, with its template's data."""
    name = await daemon.qubes.create_disposable_for_call(QubeName("base"), QubeName("mgmt"))
    for method, payload in (("Set", b"False"), ("Reset", b"")):
        call = f"admin.vm.property.{method}+auto_cleanup"
        assert not await _by_mgmt(daemon, call, name, payload)
    await daemon.qubes.discard(name)
    assert name not in daemon.qubes.system.qubes


async def test_a_disposable_is_kept_by_those_who_may_create_it(daemon: Daemon) -> None:
    """To let it stay is to create a qube from its template."""
    daemon.policy.text += "admin.vm.CreateDisposable * mgmt base allow target=dom0\n"
    reply = await daemon.ask("admin.vm.CreateDisposable", "base", source="mgmt")
    name = reply[2:].decode()
    keep = ("admin.vm.property.Set+auto_cleanup", name, b"False")
    assert not await _by_mgmt(daemon, *keep)
    daemon.policy.text += "admin.vm.Create.DispVM +base mgmt @adminvm allow\n"
    assert await _by_mgmt(daemon, *keep)


async def test_only_disposables_of_calls_are_discarded_on_request(daemon: Daemon) -> None:
    """The broker, were it taken over, could else end those that people use."""
    name = QubeName(await daemon.ok("admin.vm.CreateDisposable", "base"))
    with pytest.raises(PermissionDeniedError):
        await daemon.qubes.discard(name)
