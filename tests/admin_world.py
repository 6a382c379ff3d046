"""A small world of every class of qube, the same for every daemon, and what there is to see of it.

It is laid out once in a test run; each daemon gets a copy of the directory.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from admin_lab import SOON, Daemon, running_daemon

from caisson.admin import Services
from caisson.admin.methods import METHODS
from caisson.admin.registry import Door, Streams
from caisson.findings import Finding
from caisson.paths import Paths
from caisson.policy import SystemInfo, parse_policy
from caisson.qrexec.evaluating import Kind, answer
from caisson.qrexec.judging import View
from caisson.store.grants import GrantFile
from caisson.store.policy_store import PolicyStore

CONNECTED = b"1\0\0connection-established\0\0"
BLANKET = "* * {} * allow target=dom0\n* * {} @adminvm allow\n"
"""Everything, for one source: what remains are the barriers that no policy opens."""
ANNOUNCE = (
    "".join(
        f"qubes.{service} * tpl @adminvm allow\n"
        for service in ("FeaturesRequest", "NotifyTools", "NotifyUpdates")
    )
    + "policy.RegisterArgument * tpl work allow target=dom0\n"
)
POLICIES = {
    "30-user.policy": b"my.Service * work base allow\n!include-service my.Web * include/web\n",
    "50-more.policy": b"# Nothing yet.\n",
    "include/web": b"work base ask\n",
    "include/unused": b"# Nobody.\n",
}
"""The policy files of the instance; who may call what is another policy, the daemon's."""

_LAID_OUT = (
    ("admin.vm.Create.TemplateVM", "dom0", b"name=other label=gray"),
    ("admin.vm.Create.AppVM", "dom0", b"name=mgmt label=black"),
    ("admin.vm.Create.AppVM", "dom0", b"name=net label=red"),
    ("admin.vm.Create.DispVM+base", "dom0", b"name=dvm label=red"),
    ("admin.vm.Create.RemoteVM", "dom0", b"name=far label=gray"),
    ("admin.property.Set+default_dispvm", "dom0", b"base"),
    ("admin.property.Set+stats_interval", "dom0", b"7"),
    ("admin.label.Create+mint", "dom0", b"0xAABBCC"),
    ("admin.vm.feature.Set+site", "dom0", b"here"),
    ("admin.vm.feature.Set+kind", "tpl", b"of tpl"),
    ("admin.vm.property.Set+provides_network", "net", b"True"),
    ("admin.vm.feature.Set+wire", "net", b"of net"),
    ("admin.vm.property.Set+netvm", "base", b"net"),
    ("admin.vm.property.Set+memory", "work", b"500"),
    ("admin.vm.property.Set+kernelopts", "work", b"a\\b\nc"),
    ("admin.vm.property.Set+devices_denied", "work", b"b******"),
    ("admin.vm.feature.Set+color", "work", b"deep blue"),
    ("admin.vm.tag.Set+mine", "work", b""),
    ("admin.vm.notes.Set", "work", b"buy milk\n"),
)


async def _build(recipe: str) -> AsyncIterator[str]:
    yield f"fetching {recipe}"


async def _examined() -> tuple[Finding, ...]:
    return (Finding("moon", ok=False, detail="is new", remedy="wait"),)


def _services(paths: Paths) -> Services:
    return Services(
        layer_usage=lambda _layer: 7,
        pool_space=lambda pool: (1000, 10) if pool == "varlibqubes" else None,
        has_backup_profile=lambda name: name == "daily",
        doctor=_examined,
        build_template=_build,
        recipes=("trixie",),
        grants=GrantFile(paths),
        evaluate=_evaluate,
        policies=PolicyStore(paths),
    )


def _evaluate(kind: Kind, about: str, caller: str, payload: bytes) -> bytes:
    known = SystemInfo.from_dict({name: {"type": "AppVM"} for name in ("work", "base")})
    return answer(kind, about, caller, payload, View(parse_policy(POLICIES), known))


def _copy(laid_out: Path, root: Path) -> None:
    """Copy an instance; the one large layer, which nothing here removes, is shared."""
    source, target = Paths(laid_out), Paths(root)
    target.pool.mkdir(parents=True)
    shutil.copy(source.database, target.database)
    for layer in source.pool.iterdir():
        if (layer / "machine").exists():
            (target.pool / layer.name).symlink_to(layer)
        else:
            shutil.copytree(layer, target.pool / layer.name, symlinks=True)


@asynccontextmanager
async def world_daemon(root: Path, *, policy: str = ANNOUNCE) -> AsyncIterator[Daemon]:
    """A daemon of its own with the world.

    Args:
        root: the directory of its instance, within that of the test run.
        policy: rules for others than the admin qube.
    """
    laid_out = root.parent / "world"
    if not laid_out.exists():
        being_laid_out = root.parent / "unready"
        async with running_daemon(being_laid_out) as daemon:
            await daemon.populate()
            for method, dest, payload in _LAID_OUT:
                await daemon.ok(method, dest, payload)
        being_laid_out.rename(laid_out)
    _copy(laid_out, root)
    for name, content in POLICIES.items():
        path = Paths(root).etc / "policy.d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    announced = {"tpl": {"features-request/os": "Linux"}, "mgmt": {"features-request/os": "Linux"}}
    async with running_daemon(
        root, services=_services(Paths(root)), policy=policy, announced=announced
    ) as daemon:
        yield daemon


def door_of(service: str) -> Door:
    """The socket for a method, given with or without its argument."""
    method = METHODS.methods.get(service.partition("+")[0])
    return Door.ADMIN if method is None else method.scope.door


async def exchange(
    daemon: Daemon,
    service: str,
    dest: str = "dom0",
    payload: bytes = b"",
    source: str = "dom0",
    *,
    door: Door | None = None,
) -> bytes:
    """Call `METHOD+ARGUMENT`; returns the whole reply, of an endless stream its first frame."""
    untrusted = service.encode("utf-8", "surrogateescape")
    name = service.partition("+")[0]
    declared = METHODS.methods.get(name)
    endless = (
        declared is not None and isinstance(declared.kind, Streams) and name.startswith("admin.")
    )
    reader, writer = await daemon.connect(door=door or door_of(service))
    reply = b""
    try:
        writer.write(untrusted + f" {source} name {dest}".encode() + b"\0" + payload)
        writer.write_eof()
        async with asyncio.timeout(SOON):
            while chunk := await reader.read(1 << 20):
                reply += chunk
                if endless and reply == CONNECTED:
                    break
    except ConnectionError:
        pass
    finally:
        writer.close()
    return reply


def dump(daemon: Daemon) -> dict[str, Any]:
    """All that the model, the lifecycle, the policy files and the grants hold, as plain values."""
    system = daemon.qubes.system
    policies = daemon.paths.etc / "policy.d"
    return {
        "policies": {
            str(path.relative_to(policies)): path.read_bytes()
            for path in policies.rglob("*")
            if path.is_file()
        },
        "globals": dict(system.stored(None)),
        "labels": dict(system.labels),
        "pools": dict(system.pools),
        "grants": GrantFile(daemon.paths).read(),
        "qubes": {
            str(qube.name): {
                "facts": (str(qube.uuid), qube.klass.value, qube.qid),
                "properties": dict(qube.stored),
                "features": dict(qube.features),
                "tags": set(qube.tags),
                "volumes": dict(qube.volumes),
                "notes": qube.notes,
                "state": daemon.qubes.state_of(qube).value,
            }
            for qube in system.qubes.values()
        },
    }
