"""The life of qubes: create, start, stop, remove."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from caisson.admin.registry import Access, Call, Scope, Text, To, method
from caisson.errors import (
    CaissonError,
    InvalidLabelError,
    NotHaltedError,
    NotImplementedHereError,
    NotRunningError,
    PermissionDeniedError,
    ProtocolError,
    QubeError,
)
from caisson.lifecycle import memory_limit
from caisson.model import Klass, PowerState
from caisson.model.volumes import INITIAL_VOLUMES
from caisson.names import DOM0, LabelName, PoolName, QubeName, VolumeName, shown

_KIB = 1024
_NANOSECONDS = 1_000_000
_CREATED_CLASSES = (
    Klass.TEMPLATE,
    Klass.APP,
    Klass.STANDALONE,
    Klass.DISPOSABLE,
    Klass.REMOTE,
)
_TEMPLATED_CLASSES = frozenset({Klass.APP, Klass.DISPOSABLE})
_DEFAULT_POOLS: Mapping[VolumeName, PoolName] = MappingProxyType({})
_POOL_KEYS = frozenset({"pool", "pool:root", "pool:private", "pool:volatile", "pool:kernel"})


def _creation_options(call: Call, *, in_pool: bool) -> dict[str, str]:
    """The `key=value` words of the payload, each key once."""
    untrusted_options: dict[str, str] = {}
    for word in call.untrusted_text.split(" "):
        key, equals, value = word.partition("=")
        if not equals:
            raise ProtocolError(f"`{shown(word)}` is not of the form `key=value`")
        if key in untrusted_options:
            raise ProtocolError(f"key `{shown(key)}` is given twice")
        untrusted_options[key] = value
    keys = set(untrusted_options)
    missing = {"name", "label"} - keys
    unknown = keys - {"name", "label"} - (_POOL_KEYS if in_pool else frozenset())
    if missing:
        raise ProtocolError(f"key `{min(missing)}` is missing", hint="give `name=… label=…`")
    if unknown:
        raise ProtocolError(f"key `{shown(min(unknown))}` is not known here")
    pools = keys & _POOL_KEYS
    if in_pool and (not pools or ("pool" in pools and len(pools) > 1)):
        raise ProtocolError("give either `pool=…` or `pool:VOLUME=…` words")
    return untrusted_options


def _declare_creation(klass: Klass) -> None:
    async def create(call: Call) -> None:
        await _create(call, klass, _creation_options(call, in_pool=False))

    async def create_in_pool(call: Call) -> None:
        untrusted_options = _creation_options(call, in_pool=True)
        await _create(call, klass, untrusted_options, _pools(klass, untrusted_options))

    for name, run in (("Create", create), ("CreateInPool", create_in_pool)):
        method(
            f"admin.vm.{name}.{klass}",
            to=To.ADMIN,
            argument=Text.OPTIONAL,
            payload=Text.REQUIRED,
            scope=Scope.TRUSTED if klass is Klass.REMOTE else Scope.GLOBAL,
            access=Access.WRITE,
            help=f"Create a qube of the class {klass}; the argument names its template.",
        )(run)


def _pools(klass: Klass, untrusted_options: dict[str, str]) -> dict[VolumeName, PoolName]:
    """Where volumes are to live; one pool for all means those that are kept or thrown away here."""
    if (untrusted_pool := untrusted_options.get("pool")) is not None:
        pool = PoolName.parse(untrusted_pool)
        return {
            volume.name: pool
            for volume in INITIAL_VOLUMES[klass]
            if volume.rw and not volume.snap_on_start
        }
    return {
        VolumeName.parse(key.removeprefix("pool:")): PoolName.parse(untrusted_options[key])
        for key in sorted(_POOL_KEYS & set(untrusted_options))
    }


async def _create(
    call: Call,
    klass: Klass,
    untrusted_options: dict[str, str],
    pools: Mapping[VolumeName, PoolName] = _DEFAULT_POOLS,
) -> None:
    if call.untrusted_argument and klass not in _TEMPLATED_CLASSES:
        raise ProtocolError(f"a qube of the class {klass} has no template")
    untrusted_label = untrusted_options["label"]
    if untrusted_label.isdigit():
        raise InvalidLabelError(
            f"label `{shown(untrusted_label)}` is a number", hint="give its name, such as `red`"
        )
    await call.qubes.create(
        klass,
        QubeName.parse(untrusted_options["name"]),
        LabelName.parse(untrusted_label),
        call.untrusted_argument or None,
        call.origin.name,
        pools,
    )


for _klass in _CREATED_CLASSES:
    _declare_creation(_klass)


def _declare_refused_creation(name: str) -> None:
    @method(
        f"admin.vm.{name}.{Klass.ADMIN}",
        to=To.ADMIN,
        argument=Text.OPTIONAL,
        payload=Text.REQUIRED,
        scope=Scope.TRUSTED,
        access=Access.WRITE,
        help="Always refused: there is one admin qube.",
    )
    async def refuse(call: Call) -> None:
        _creation_options(call, in_pool=name == "CreateInPool")
        raise CaissonError(
            f"there is one admin qube, `{DOM0}`; another cannot be created",
            hint="use one of the classes: " + ", ".join(_CREATED_CLASSES),
        )


for _name in ("Create", "CreateInPool"):
    _declare_refused_creation(_name)


@method(
    "admin.vm.CreateDisposable",
    argument=Text.OPTIONAL,
    payload=Text.OPTIONAL,
    scope=Scope.GLOBAL,
    access=Access.WRITE,
    help="Create a disposable from a qube, or from the caller's own default; tell its name.",
)
async def create_disposable(call: Call) -> str:
    """Create a disposable, halted; it goes when it stops."""
    if call.untrusted_argument == "preload":
        raise NotImplementedHereError(
            "disposables cannot be preloaded yet: there is no pool of started ones",
            hint="leave out the argument: a disposable starts in well under a second",
        )
    if call.untrusted_argument:
        raise PermissionDeniedError(
            f"argument `{shown(call.untrusted_argument)}` of `{call.method.name}` is not available"
        )
    if call.untrusted_payload not in (b"", b"uuid"):
        raise ProtocolError("the payload is neither empty nor `uuid`")
    template = None if call.destination.name == DOM0 else call.destination.name
    name = await call.qubes.create_disposable(template, call.origin.name)
    if call.untrusted_payload == b"uuid":
        return f"uuid:{call.qubes.system.qube(name).uuid}"
    return name


@method(
    "admin.vm.Remove",
    scope=Scope.GLOBAL,
    access=Access.WRITE,
    help="Remove a halted qube with all its data.",
)
async def remove(call: Call) -> None:
    """Remove a qube."""
    await call.qubes.remove(call.destination.name, call.origin.name)


@method("admin.vm.Start", access=Access.EXECUTE, help="Start a qube and wait until it is ready.")
async def start(call: Call) -> None:
    """Start a qube; one that is not halted stays as it is."""
    if call.destination.name == DOM0:
        # Clients start the admin qube before every call to it, and expect this very error.
        raise NotHaltedError("the admin qube always runs")
    await call.qubes.start(call.destination.name)


@method(
    "admin.vm.Shutdown",
    argument=Text.OPTIONAL,
    access=Access.EXECUTE,
    help="Shut a qube down; `force` although others use it, `wait` until it is gone.",
)
async def shutdown(call: Call) -> None:
    """Shut a qube down."""
    flags = call.untrusted_argument.split("+") if call.untrusted_argument else []
    for flag in flags:
        if flag not in {"force", "wait"}:
            raise ProtocolError(f"flag `{shown(flag)}` is neither `force` nor `wait`")
    if len(flags) != len(set(flags)):
        raise ProtocolError(f"a flag is given twice in `{shown(call.untrusted_argument)}`")
    for flag in flags:
        # Who may not say `force` may not say it together with another flag either.
        call.require(flag)
    _refuse_admin(call, "shut down")
    await call.qubes.shutdown(call.destination.name, force="force" in flags, wait="wait" in flags)


@method("admin.vm.Kill", access=Access.EXECUTE, help="Stop a qube at once.")
async def kill(call: Call) -> None:
    """Stop a qube at once."""
    _refuse_admin(call, "killed")
    await call.qubes.kill(call.destination.name)


@method("admin.vm.Pause", access=Access.EXECUTE, help="Freeze a running qube.")
async def pause(call: Call) -> None:
    """Freeze a running qube."""
    _refuse_admin(call, "paused")
    await call.qubes.pause(call.destination.name)


@method("admin.vm.Unpause", access=Access.EXECUTE, help="Let a paused qube go on.")
async def unpause(call: Call) -> None:
    """Let a paused qube go on."""
    _refuse_admin(call, "unpaused")
    await call.qubes.unpause(call.destination.name)


@method(
    "admin.vm.Suspend",
    scope=Scope.TRUSTED,
    access=Access.EXECUTE,
    help="Send a running qube to sleep; one that has no state of sleep is paused.",
)
async def suspend(call: Call) -> None:
    """Freeze a running qube: a container has no state of sleep."""
    _refuse_admin(call, "suspended")
    await call.qubes.pause(call.destination.name)


@method(
    "admin.vm.Resume",
    scope=Scope.TRUSTED,
    access=Access.EXECUTE,
    help="Let a suspended or paused qube go on.",
)
async def resume(call: Call) -> None:
    """Let a qube go on."""
    _refuse_admin(call, "resumed")
    await call.qubes.resume(call.destination.name)


@method(
    "admin.vm.Console",
    access=Access.WRITE,
    help="Tell the path of the terminal of a running qube; not available yet.",
)
async def console(call: Call) -> None:
    """Refuse the terminal of a qube, with what would refuse it anyway first."""
    _refuse_admin(call, "reached by a console")
    if call.destination.klass is Klass.REMOTE:
        raise QubeError(f"qube `{call.destination.name}` is on another machine")
    if not call.qubes.is_up(call.destination):
        raise NotRunningError(
            f"qube `{call.destination.name}` is not running",
            hint=f"start it: `qvm-start {call.destination.name}`",
        )
    raise NotImplementedHereError(
        "consoles are not available yet: qubes have no terminal outside of services",
        hint=f"run a shell: `qvm-run --pass-io {call.destination.name} bash`",
    )


def _refuse_admin(call: Call, what: str) -> None:
    if call.destination.name == DOM0:
        raise QubeError(f"the admin qube cannot be {what}")


@method(
    "admin.vm.CurrentState",
    help="Tell the memory (KiB), the processor time (ns) and the state of a qube.",
)
async def current_state(call: Call) -> str:
    """Tell the state of a qube, what it uses and what it may use."""
    qube = call.destination
    power = call.qubes.state_of(qube)
    most = 0
    system = call.qubes.system
    if power is not PowerState.HALTED and system.has(qube, "memory"):
        most = memory_limit(system, qube) * _KIB
    usage = await call.qubes.usage(qube)
    return (
        f"mem={usage.memory} mem_static_max={most} "
        f"cputime={usage.cpu_time * _NANOSECONDS} power_state={power}"
    )
