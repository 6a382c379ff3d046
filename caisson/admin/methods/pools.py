"""Pools (specification sheet, sections 2.6 and 7.1)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from caisson.admin.methods.payloads import boolean, integer
from caisson.admin.methods.text import listing
from caisson.admin.registry import Access, Call, Scope, Text, To, method
from caisson.errors import (
    CaissonError,
    NotImplementedHereError,
    PermissionDeniedError,
    PoolInUseError,
    ProtocolError,
    ValueRefusedError,
)
from caisson.model import parsing, render
from caisson.model.storage_plans import no_encryption
from caisson.names import PoolName, shown

_REVISIONS = re.compile(r"-1|0|[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class _Driver:
    """A kind of pool, with its options; the required ones first."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ("ephemeral_volatile", "revisions_to_keep")

    @property
    def options(self) -> tuple[str, ...]:
        return self.required + self.optional


_DRIVERS: Final[Mapping[str, _Driver]] = {
    "layers": _Driver(required=("dir_path",)),
    "host": _Driver(),
    "linux-kernel": _Driver(required=("dir_path",)),
}


@method("admin.pool.List", to=To.ADMIN, scope=Scope.GLOBAL, help="List the pools.")
async def list_pools(call: Call) -> str:
    """List the pools."""
    return listing(call.qubes.system.pools)


@method(
    "admin.pool.ListDrivers",
    to=To.ADMIN,
    scope=Scope.GLOBAL,
    help="List the kinds of pools, each with its options.",
)
async def list_drivers(_call: Call) -> str:
    """List the drivers: `NAME OPTION…` a line."""
    return listing(" ".join((name, *driver.options)) for name, driver in _DRIVERS.items())


@method(
    "admin.pool.Info",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    scope=Scope.GLOBAL,
    help="Tell how a pool is set up.",
)
async def pool_info(call: Call) -> str:
    """Tell how a pool is set up, one `key=value` a line, sorted."""
    pool = call.qubes.system.pool(call.untrusted_argument)
    facts = {
        "driver": pool.driver,
        "ephemeral_volatile": False,
        "name": pool.name,
        "revisions_to_keep": pool.revisions_to_keep,
    }
    return listing(f"{key}={value}" for key, value in facts.items())


@method(
    "admin.pool.UsageDetails",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    scope=Scope.GLOBAL,
    help="Tell the bytes of the disk below a pool, and how many of them are used.",
)
async def pool_usage(call: Call) -> str:
    """Tell the size and the usage, `key=bytes` a line, sorted; nothing where nobody knows."""
    pool = call.qubes.system.pool(call.untrusted_argument)
    space = await asyncio.to_thread(call.services.pool_space, pool.name)
    if space is None:
        return ""
    size, usage = space
    return listing((f"data_size={size}", f"data_usage={usage}"))


@method(
    "admin.pool.Add",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    scope=Scope.GLOBAL,
    access=Access.WRITE,
    help="Add a pool of a driver with the options in the payload; not available yet.",
)
async def add_pool(call: Call) -> None:
    """Refuse another pool, after what would refuse it anyway."""
    name = call.untrusted_argument
    driver = _DRIVERS.get(name)
    if driver is None:
        raise PermissionDeniedError(
            f"no storage driver `{shown(name)}`", hint="use one of: " + ", ".join(_DRIVERS)
        )
    untrusted_options = _options(call.untrusted_text)
    if "name" not in untrusted_options:
        raise ProtocolError("option `name` is missing", hint="give `name=…`")
    pool = PoolName.parse(untrusted_options.pop("name"))
    unknown = untrusted_options.keys() - set(driver.options)
    if unknown:
        raise ProtocolError(
            f"driver `{name}` has no option `{shown(min(unknown))}`",
            hint="use some of: " + ", ".join(driver.options),
        )
    missing = set(driver.required) - untrusted_options.keys()
    if missing:
        raise CaissonError(f"driver `{name}` needs the option `{min(missing)}`")
    _check_values(untrusted_options)
    if pool in call.qubes.system.pools:
        raise PoolInUseError(f"pool `{pool}` exists", hint="choose another name")
    raise NotImplementedHereError(
        "pools cannot be added yet: each driver serves the one pool of its own",
        hint="use one of: " + ", ".join(call.qubes.system.pools),
    )


@method(
    "admin.pool.Remove",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    scope=Scope.GLOBAL,
    access=Access.WRITE,
    help="Remove a pool that nothing lives in; those of the system stay.",
)
async def remove_pool(call: Call) -> None:
    """Refuse to remove a pool: all there are belong to the system."""
    system = call.qubes.system
    pool = system.pool(call.untrusted_argument)
    for qube, volume in system.volumes_in(pool.name):
        raise PoolInUseError(
            f"volume `{volume.name}` of qube `{qube.name}` lives in pool `{pool.name}`",
            hint="remove that qube first",
        )
    for name in system.properties(None):
        if name.startswith("default_pool") and render(system.value(None, name)) == pool.name:
            raise PoolInUseError(
                f"pool `{pool.name}` is the global `{name}`", hint="change that property first"
            )
    raise PoolInUseError(f"pool `{pool.name}` belongs to the system, it cannot be removed")


@method(
    "admin.pool.Set.revisions_to_keep",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    scope=Scope.GLOBAL,
    access=Access.WRITE,
    help="Set how many revisions a new volume of a pool keeps.",
)
async def set_revisions(call: Call) -> None:
    """Set how many revisions new volumes keep."""
    system = call.qubes.system
    pool = system.pool(call.untrusted_argument)
    await call.commit(system.plan_pool_revisions(pool, integer(call)))


@method(
    "admin.pool.Set.ephemeral_volatile",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    payload=Text.REQUIRED,
    scope=Scope.GLOBAL,
    access=Access.WRITE,
    help="Set whether volatile volumes of a pool are encrypted with a key that is thrown away; "
    "not available here.",
)
async def set_ephemeral(call: Call) -> None:
    """Accept that volatile volumes are not ephemeral."""
    call.qubes.system.pool(call.untrusted_argument)
    if boolean(call):
        raise no_encryption()


@method(
    "admin.pool.volume.List",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    scope=Scope.GLOBAL,
    help="List the volumes that live in a pool, of the qubes that the caller may list.",
)
async def list_volumes(call: Call) -> str:
    """List the volumes of a pool by their names in it, sorted, of qubes that the caller sees."""
    system = call.qubes.system
    pool = system.pool(call.untrusted_argument)
    sees = call.look()
    ids = {
        system.volume_id(qube, volume)
        for qube, volume in system.volumes_in(pool.name)
        if sees(qube)
    }
    return listing(sorted(ids - {""}))


def _options(untrusted_text: str) -> dict[str, str]:
    """The `key=value` lines of a payload, each key once."""
    untrusted_options: dict[str, str] = {}
    for line in untrusted_text.removesuffix("\n").split("\n"):
        key, equals, value = line.partition("=")
        if not equals:
            raise ProtocolError(f"`{shown(line)}` is not of the form `key=value`")
        if key in untrusted_options:
            raise ProtocolError(f"option `{shown(key)}` is given twice")
        untrusted_options[key] = value
    return untrusted_options


def _check_values(untrusted_options: Mapping[str, str]) -> None:
    revisions = untrusted_options.get("revisions_to_keep", "0")
    if not _REVISIONS.fullmatch(revisions):
        raise ProtocolError(f"`{shown(revisions)}` is no number of revisions")
    directory = untrusted_options.get("dir_path", "/")
    if not directory.startswith("/"):
        raise ValueRefusedError(f"`{shown(directory)}` is no absolute path")
    if parsing.boolean(untrusted_options.get("ephemeral_volatile", "False")):
        raise no_encryption()
