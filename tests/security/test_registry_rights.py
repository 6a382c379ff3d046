"""Rights, for every method of the registry: without its right nothing works, by any way.

`mgmt` is a qube like any other. Class: restriction checked on one verb only (incus commits
f1c75c6c48, 7cec16a23c): whatever way leads to a state, the one right that stands for it decides.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from admin_calls import Good, Step, fits, ok, perform, prepare, refusal, suited
from admin_good_calls import GOOD
from admin_lab import Daemon
from admin_world import BLANKET, dump, exchange, world_daemon

from caisson.admin.methods import METHODS
from caisson.admin.registry import Access, Door, Method, Scope
from caisson.ext.rights import Right, needed
from caisson.model import (
    AddLabel,
    AddQube,
    AddTag,
    Change,
    Op,
    Property,
    PropertyType,
    Qube,
    RemoveFeature,
    RemoveLabel,
    RemoveQube,
    RemoveTag,
    ResetProperty,
    SetFeature,
    SetProperty,
)
from caisson.names import DOM0, FeatureName, LabelName, PropertyName, Tag

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVERYTHING = BLANKET.format("mgmt", "mgmt")
_REMEDY = re.compile(r"the policy would have to allow it `([^`]+)` `\+([^`]*)` on `([^`]+)`")


def _rule(right: Right, action: str) -> str:
    target = "@adminvm" if right.target == DOM0 else right.target
    return f"{right.service} +{right.argument} mgmt {target} {action}\n"


def _allowed(right: Right) -> str:
    return _rule(right, "allow target=dom0")


def _of_scopes(*scopes: Scope) -> pytest.MarkDecorator:
    found = [each for each in METHODS.methods.values() if each.scope in scopes]
    return pytest.mark.parametrize("method", found, ids=lambda m: m.name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def quiet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """A daemon for calls that leave everything as it is."""
    async with world_daemon(tmp_path_factory.mktemp("quiet")) as running:
        yield running


async def _refused(daemon: Daemon, method: str, good: Good, **changed: str) -> str:
    """Make a call as `mgmt` that is refused for lack of a right; returns the text."""
    before = dump(daemon)
    reply = await perform(daemon, method, good, source="mgmt", **changed)
    name, text = refusal(reply)
    assert name == "PermissionDenied", (method, text)
    assert dump(daemon) == before
    return text


def _further(method: str, good: Good, daemon: Daemon) -> list[Right]:
    """The rights that are not named: to each flag, and to what is shown or copied of others."""
    system = daemon.qubes.system
    match method:
        case "admin.vm.Shutdown":
            return [Right(method, flag, good.dest) for flag in good.argument.split("+")]
        case "admin.pool.volume.List":
            return [Right("admin.vm.List", "", name) for name in system.qubes]
        case "admin.vm.feature.CheckWithAdminVM" | "admin.vm.feature.CheckWithTemplateAndAdminVM":
            return [Right("admin.vm.feature.Get", good.argument, DOM0)]
        case "admin.vm.volume.CloneTo":
            return [Right("admin.vm.volume.CloneFrom", "private", "base")]
        case "admin.property.GetAll" | "admin.vm.property.GetAll":
            owner = None if method.startswith("admin.property") else system.qube(good.dest)
            reader = method.removesuffix("All")
            return [Right(reader, name, good.dest) for name in system.properties(owner)]
    return []


@_of_scopes(Scope.GLOBAL, Scope.LOCAL, Scope.POLICY)
async def test_nothing_works_without_its_rights_and_those_that_are_named_suffice(
    method: Method, quiet: Daemon, tmp_path: Path
) -> None:
    """No rule: refused. One rule for this call: it works, or names the right that is missing."""
    good = GOOD[method.name]
    async with suited(good, quiet, tmp_path) as daemon:
        by_uuid = f"uuid:{daemon.qubes.system.qubes[good.dest].uuid}"
        daemon.policy.text = ""
        await _refused(daemon, method.name, good)
        await _refused(daemon, method.name, good, dest=by_uuid)
        own = Right(method.name, good.argument, good.dest)
        daemon.policy.text = _rule(own, "deny") + EVERYTHING
        await _refused(daemon, method.name, good)
        rights = [own, *_further(method.name, good, daemon)]
        for _ in range(4):
            daemon.policy.text = "".join(map(_allowed, rights))
            before = dump(daemon)
            reply = await perform(daemon, method.name, good, source="mgmt", dest=by_uuid)
            if fits(reply, good.reply):
                break
            name, text = refusal(reply)
            assert name == "PermissionDenied"
            assert dump(daemon) == before
            further = _REMEDY.search(text)
            assert further, text
            rights.append(Right(*further.groups()))
            assert rights[-1] not in rights[:-1]
        assert fits(reply, good.reply), rights
        for seen in good.seen:
            assert fits(await exchange(daemon, seen.service, seen.dest), seen.reply)


@_of_scopes(Scope.TRUSTED, Scope.INTERNAL)
async def test_what_is_for_the_admin_qube_alone_no_policy_gives_away(
    method: Method, quiet: Daemon, tmp_path: Path
) -> None:
    """For other qubes these methods do not exist, at no socket."""
    good = GOOD[method.name]
    async with suited(good, quiet, tmp_path) as daemon:
        daemon.policy.text = EVERYTHING
        before = dump(daemon)
        service = f"{method.name}+{good.argument}"
        for door in Door:
            reply = await exchange(daemon, service, good.dest, good.payload, "mgmt", door=door)
            assert refusal(reply)[0] == "ProtocolError"
        assert dump(daemon) == before


# --- every way to a state ------------------------------------------------------------------


def _differences(before: dict[str, Any], after: dict[str, Any], daemon: Daemon) -> Iterator[Op]:
    """What has happened, told from the states alone and not from what a method planned."""
    qubes = daemon.qubes.system.qubes
    yield from _properties(None, before["globals"], after["globals"])
    for label in after["labels"].keys() - before["labels"].keys():
        yield AddLabel(LabelName(label), 99, "0x000000")
    for label in before["labels"].keys() - after["labels"].keys():
        yield RemoveLabel(LabelName(label))
    for name in before["qubes"].keys() - after["qubes"].keys():
        yield RemoveQube(qubes[name].uuid)
    for name in after["qubes"].keys() - before["qubes"].keys():
        made, uuid = after["qubes"][name], uuid4()
        yield AddQube(uuid, name, made["facts"][1], 99)
        yield from _properties(uuid, {}, made["properties"])
    for name in before["qubes"].keys() & after["qubes"].keys():
        old, new, uuid = before["qubes"][name], after["qubes"][name], qubes[name].uuid
        yield from _properties(uuid, old["properties"], new["properties"])
        for feature, value in new["features"].items() - old["features"].items():
            yield SetFeature(uuid, FeatureName(feature), value)
        for feature in old["features"].keys() - new["features"].keys():
            yield RemoveFeature(uuid, FeatureName(feature))
        yield from (AddTag(uuid, Tag(tag)) for tag in new["tags"] - old["tags"])
        yield from (RemoveTag(uuid, Tag(tag)) for tag in old["tags"] - new["tags"])


def _properties(uuid: Any, old: dict[str, str], new: dict[str, str]) -> Iterator[Op]:
    for name, text in new.items() - old.items():
        yield SetProperty(uuid, PropertyName(name), text)
    for name in old.keys() - new.keys():
        yield ResetProperty(uuid, PropertyName(name))


def _standing_for(  # noqa: C901, PLR0911 - one case an operation
    op: Op, change: Change, daemon: Daemon
) -> Right | None:
    """The right that stands for a state; None where it follows from that to make or remove."""
    names: dict[Any, str] = {None: DOM0}
    names |= {each.uuid: each.name for each in daemon.qubes.system.qubes.values()}
    born = {each.uuid for each in change.ops if isinstance(each, AddQube)}
    match op:
        case AddQube(uuid=uuid, klass=klass):
            base = [
                each.text
                for each in change.ops
                if isinstance(each, SetProperty) and (each.uuid, each.name) == (uuid, "template")
            ]
            if klass == "DispVM":
                return Right("admin.vm.CreateDisposable", "", *base)
            return Right(f"admin.vm.Create.{klass}", base[0] if base else "", DOM0)
        case SetProperty(uuid=uuid) | SetFeature(uuid=uuid) | AddTag(uuid=uuid) if uuid in born:
            return None
        case SetProperty(uuid=uuid, name=name) | ResetProperty(uuid=uuid, name=name):
            prefix = "admin.property" if uuid is None else "admin.vm.property"
            return Right(f"{prefix}.Set", name, names[uuid])
        case SetFeature(uuid=uuid, name=name):
            return Right("admin.vm.feature.Set", name, names[uuid])
        case RemoveFeature(uuid=uuid, name=name):
            return Right("admin.vm.feature.Remove", name, names[uuid])
        case AddTag(uuid=uuid, tag=tag) | RemoveTag(uuid=uuid, tag=tag):
            prefix, _, _ = tag.partition("-")
            if prefix in {"guivm", "audiovm", "relayvm"}:
                return Right("admin.vm.property.Set", prefix, names[uuid])
            verb = "Set" if isinstance(op, AddTag) else "Remove"
            return Right(f"admin.vm.tag.{verb}", tag, names[uuid])
        case RemoveQube(uuid=uuid):
            return Right("admin.vm.Remove", "", names[uuid])
        case AddLabel(name=name):
            return Right("admin.label.Create", name, DOM0)
        case RemoveLabel(name=name):
            return Right("admin.label.Remove", name, DOM0)
    raise AssertionError(op)


def _set(name: str, value: str, dest: str = "work", *before: Step) -> tuple[str, Good]:
    method = "admin.property.Set" if dest == DOM0 else "admin.vm.property.Set"
    return method, Good(ok(), name, value.encode(), dest, before=before)


def _reset(name: str, value: str, dest: str = "work") -> tuple[str, Good]:
    method = "admin.property" if dest == DOM0 else "admin.vm.property"
    step = Step(f"{method}.Set+{name}", dest, value.encode())
    return f"{method}.Reset", Good(ok(), name, dest=dest, before=(step,))


def _mark(method: str, argument: str, value: str = "", *before: Step) -> tuple[str, Good]:
    return f"admin.vm.{method}", Good(ok(), argument, value.encode(), before=before)


_NEW = b"name=new label=red"
_ASKED = re.compile(rb"0\x00(disp[0-9]+|uuid:.*)")
_CLOCK = Step("admin.property.Set+clockvm", DOM0, b"work")
WAYS = [
    *((name, good) for name, good in GOOD.items() if good.changes),
    # The template is left out, or is the caller's own default.
    ("admin.vm.Create.AppVM", Good(ok(), payload=_NEW, dest=DOM0)),
    ("admin.vm.Create.DispVM", Good(ok(), payload=_NEW, dest=DOM0)),
    (
        "admin.vm.CreateInPool.AppVM",
        Good(ok(), payload=_NEW + b" pool:private=varlibqubes", dest=DOM0),
    ),
    ("admin.vm.CreateInPool.DispVM", Good(ok(), payload=_NEW + b" pool=varlibqubes", dest=DOM0)),
    ("admin.vm.CreateDisposable", Good(_ASKED, dest=DOM0)),
    ("admin.vm.CreateDisposable", Good(_ASKED, payload=b"uuid", dest=DOM0)),
    # The template changes later.
    _set("template", "other"),
    _set(
        "template", "work", "dvm", Step("admin.vm.property.Set+template_for_dispvms", "work", b"1")
    ),
    # Tags that repeat a property.
    _set("guivm", "net"),
    _set("guivm", ""),
    _reset("guivm", "net"),
    _set("audiovm", "net"),
    _reset("audiovm", ""),
    _set("relayvm", "work", "far"),
    _set("default_guivm", "net", DOM0),
    _reset("default_audiovm", "net", DOM0),
    _mark("tag.Set", "guivm-net"),
    _mark("tag.Set", "audiovm-x"),
    _mark("tag.Set", "relayvm-x"),
    _mark("tag.Remove", "guivm-dom0"),
    # A feature that is a property, and a property that is a feature.
    _mark("feature.Set", "service.meminfo-writer"),
    _mark(
        "feature.Set",
        "service.meminfo-writer",
        "1",
        Step("admin.vm.property.Set+maxmem", payload=b"0"),
    ),
    _set("clockvm", "work", DOM0),
    _set("clockvm", "net", DOM0, _CLOCK),
    _set("clockvm", "", DOM0, _CLOCK),
    ("admin.property.Reset", Good(ok(), "clockvm", dest=DOM0, before=(_CLOCK,))),
    _mark("feature.Remove", "service.clocksync", "", _CLOCK),
    # Others that stand for more than themselves.
    _set("label", "9"),
    _set("label", "label-4"),
    _set("auto_cleanup", "True", "dvm"),
    _set("netvm", "", "base"),
    ("admin.vm.Remove", Good(ok(), dest="dvm")),
    ("admin.vm.Remove", Good(ok(), dest="far")),
]


@pytest.mark.parametrize(
    ("method", "good"),
    [each for each in WAYS if METHODS.methods[each[0]].scope in {Scope.GLOBAL, Scope.LOCAL}],
    ids=lambda each: each if isinstance(each, str) else f"{each.argument}@{each.dest}",
)
async def test_no_way_to_a_state_leads_around_its_right(
    method: str, good: Good, tmp_path: Path
) -> None:
    """With everything allowed but the right that stands for what changes, nothing changes."""
    assert METHODS.methods[method].access is not Access.READ
    async with world_daemon(tmp_path) as daemon:
        await prepare(daemon, good)
        daemon.policy.text = EVERYTHING
        before = dump(daemon)
        reply = await perform(daemon, method, good, source="mgmt")
        assert fits(reply, good.reply), reply
        after = dump(daemon)
        assert after != before
    async with world_daemon(tmp_path.with_name(f"{tmp_path.name}-kept")) as daemon:
        await prepare(daemon, good)
        change = Change(tuple(_differences(before, after, daemon)))
        asked = [rights for _, rights in needed(daemon.qubes.system, change)]
        for op in change.ops:
            right = _standing_for(op, change, daemon)
            assert right is None or any(right in rights for rights in asked), op
        for rights in asked:
            denied = "".join(_rule(right, "deny") for right in rights)
            daemon.policy.text = denied + EVERYTHING
            await _refused(daemon, method, good)


async def test_a_qube_that_may_not_be_removed_is_not_made_to_go_when_it_stops(
    tmp_path: Path,
) -> None:
    """Else a property and a kill would do what the right to remove it is for."""
    right = Right("admin.vm.Remove", "", "dvm")
    async with world_daemon(tmp_path, policy=_rule(right, "deny") + EVERYTHING) as daemon:
        set_it = ("admin.vm.property.Set", Good(ok(), "auto_cleanup", b"1", "dvm"))
        assert "let `dvm` go when it stops" in await _refused(daemon, *set_it)
        daemon.policy.text = EVERYTHING
        assert await perform(daemon, *set_it, source="mgmt") == b"0\0"
        daemon.policy.text = _rule(right, "deny") + EVERYTHING
        assert await exchange(
            daemon, "admin.vm.property.Set+auto_cleanup", "dvm", b"0", "mgmt"
        ) == (b"0\0")


@pytest.mark.parametrize("feature", ["disposable-of-call", "preload-dispvm-in-progress"])
async def test_marks_of_the_system_are_nobodys_to_give(feature: str, quiet: Daemon) -> None:
    """A base with such a mark would hand it down: its disposables would be taken for others."""
    quiet.policy.text = EVERYTHING
    await _refused(quiet, "admin.vm.feature.Set", Good(ok(), feature, b"1", "base"))
    assert await quiet.refused(f"admin.vm.feature.Set+{feature}", "base", b"1") == (
        "PermissionDenied"
    )


# --- every property ------------------------------------------------------------------------

SAMPLES = {
    "bootmode": "safe",
    "appvm_default_bootmode": "safe",
    "default_user": "guest",
    "devices_denied": "p******",
    "ip": "10.9.8.7",
    "ip6": "fd00::7",
    "kernel": "",
    "default_kernel": "",
    "kernelopts": "quiet",
    "keyboard_layout": "de++",
    "label": "green",
    "mac": "00:16:3e:00:00:01",
    "template": "other",
    "default_template": "other",
    "virt_mode": "pvh",
    "netvm": "net",
    "default_netvm": "net",
    "default_pool_root": "host",
    "default_pool": "varlibqubes",
    "default_pool_kernel": "linux-kernel",
    "default_pool_private": "varlibqubes",
    "default_pool_volatile": "varlibqubes",
    "default_dispvm": "",
    "management_dispvm": "base",
    "remote_name": "it",
    "transport_rpc": "qubes.Relay",
}


def _sample(system: Any, owner: Qube | None, declared: Property) -> str:
    """A value that the property does not have."""
    if owner is not None and (owner.name, declared.name) == ("dvm", "template"):
        return "work"
    if declared.name in SAMPLES:
        return SAMPLES[declared.name]
    match declared.type:
        case PropertyType.BOOL:
            return str(not system.value(owner, declared.name))
        case PropertyType.INT:
            return "123"
        case _:
            return "net"


@pytest.mark.parametrize("owner", ["", DOM0, "tpl", "work", "dvm", "far"])
async def test_no_property_is_set_or_reset_without_its_right(owner: str, tmp_path: Path) -> None:
    """The one right stands for both; all others are there."""
    prefix, dest = ("admin.vm.property", owner) if owner else ("admin.property", DOM0)
    async with world_daemon(tmp_path, policy=EVERYTHING) as daemon:
        await daemon.ok("admin.vm.property.Set+template_for_dispvms", "work", b"True")
        await daemon.ok("admin.vm.property.Set+netvm", "net", b"")
        system = daemon.qubes.system
        about = system.qubes[owner] if owner else None
        for name, declared in system.properties(about).items():
            if declared.read_only or declared.write_once:
                continue
            sample = _sample(system, about, declared).encode()
            denied = _rule(Right(f"{prefix}.Set", name, dest), "deny") + EVERYTHING
            set_it = (f"{prefix}.Set", Good(ok(), name, sample, dest))
            reset_it = (f"{prefix}.Reset", Good(ok(), name, dest=dest))
            before = dump(daemon)
            daemon.policy.text = denied
            await _refused(daemon, *set_it)
            daemon.policy.text = EVERYTHING
            assert await perform(daemon, *set_it, source="mgmt") == b"0\0", name
            assert dump(daemon) != before, name
            if declared.required:
                continue
            daemon.policy.text = denied
            await _refused(daemon, *reset_it)
            daemon.policy.text = EVERYTHING
            assert await perform(daemon, *reset_it, source="mgmt") == b"0\0", name
