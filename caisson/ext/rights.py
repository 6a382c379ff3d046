"""Which rights a change needs, told from what it does and not from the method that asked for it.

A restriction that holds for one method only is none: a property can be set, reset, given at
creation, or follow from a feature. So each operation has one right that stands for the state it
brings about, as the call that the policy judges for it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from caisson.errors import PermissionDeniedError
from caisson.model import (
    AddLabel,
    AddQube,
    AddTag,
    Change,
    Klass,
    Op,
    Qube,
    RemoveFeature,
    RemoveLabel,
    RemoveQube,
    RemoveTag,
    ResetProperty,
    SetFeature,
    SetProperty,
    System,
)
from caisson.model.features import OF_CALL
from caisson.names import DOM0, PropertyName, QubeName

CREATED_BY = ("created-by-", "disp-created-by-")
_TEMPLATE = PropertyName("template")
_PROVIDES_NETWORK = PropertyName("provides_network")
_CLEANS_UP = PropertyName("auto_cleanup")
_MIRRORS = {"guivm-": "guivm", "audiovm-": "audiovm", "relayvm-": "relayvm"}
"""Tags that repeat a property: who may not set the property may not give the tag either."""
_CLOCK = "service.clocksync"
RESERVED_FEATURES = frozenset({"tag-created-vm-with", "set-created-guivm", "net.uplink"})
"""What a qube gives to those that it creates, and a way out of it that passes no network qube."""


@dataclass(frozen=True, slots=True)
class Right:
    """A call that the policy has to allow.

    Args:
        service: the method.
        argument: its argument, without the `+`.
        target: the qube that it is called on.
    """

    service: str
    argument: str
    target: str


AnyOf = tuple[Right, ...]
"""One of these is enough; none at all means that nobody but the admin qube may do it."""


def refusal(origin: QubeName, what: str, rights: AnyOf) -> PermissionDeniedError:
    """The error for something that needs one of these rights; it names the first one."""
    hint = "only the admin qube may"
    if rights:
        right = rights[0]
        hint = (
            f"the policy would have to allow it `{right.service}` `+{right.argument}` "
            f"on `{right.target}`"
        )
    return PermissionDeniedError(f"qube `{origin}` may not {what}", hint=hint)


def needed(system: System, change: Change) -> Iterator[tuple[str, AnyOf]]:
    """Yield what a change does, in words, with the rights of which it needs one.

    What a new qube gets at its birth follows from the right to create it; what follows from the
    removal of a qube, from the right to remove it.
    """
    born = {op.uuid: op for op in change.ops if isinstance(op, AddQube)}
    gone = {op.uuid for op in change.ops if isinstance(op, RemoveQube)}
    templates = {
        op.uuid: op.text
        for op in change.ops
        if isinstance(op, SetProperty) and op.name == _TEMPLATE and op.uuid in born
    }
    for op in change.ops:
        if isinstance(op, AddQube):
            yield f"create `{op.name}`", _creation(op, templates.get(op.uuid, ""))
        elif getattr(op, "uuid", None) in born or (gone and _disowns(op)):
            continue
        else:
            yield from _of(system, op)


def _creation(op: AddQube, template: str) -> AnyOf:
    create = Right(f"admin.vm.Create.{op.klass}", template, DOM0)
    if op.klass != Klass.DISPOSABLE:
        return (create,)
    return (Right("admin.vm.CreateDisposable", "", template), create)


def _disowns(op: Op) -> bool:
    return isinstance(op, RemoveTag) and op.tag.startswith(CREATED_BY)


def _of(system: System, op: Op) -> Iterator[tuple[str, AnyOf]]:
    match op:
        case SetProperty(uuid, name) | ResetProperty(uuid, name):
            yield from _property(system, uuid, name, getattr(op, "text", None))
        case SetFeature(uuid, name):
            yield f"set the feature `{name}`", _feature("Set", name, _name(system, uuid))
        case RemoveFeature(uuid, name):
            yield f"remove the feature `{name}`", _feature("Remove", name, _name(system, uuid))
        case AddTag(uuid, tag):
            yield f"give the tag `{tag}`", _tag("Set", tag, _name(system, uuid))
        case RemoveTag(uuid, tag):
            yield f"take the tag `{tag}`", _tag("Remove", tag, _name(system, uuid))
        case RemoveQube(uuid):
            qube = _name(system, uuid)
            yield f"remove `{qube}`", (Right("admin.vm.Remove", "", qube),)
        case AddLabel(name):
            yield f"create the label `{name}`", (Right("admin.label.Create", name, DOM0),)
        case RemoveLabel(name):
            yield f"remove the label `{name}`", (Right("admin.label.Remove", name, DOM0),)
        case _:
            # Volumes, notes and pools: each has its own methods, which reach nothing else.
            return


def _feature(verb: str, name: str, qube: str) -> AnyOf:
    if name in RESERVED_FEATURES:
        return ()
    right = Right(f"admin.vm.feature.{verb}", name, qube)
    return (Right("admin.property.Set", "clockvm", DOM0), right) if name == _CLOCK else (right,)


def _property(
    system: System, uuid: UUID | None, name: PropertyName, text: str | None
) -> Iterator[tuple[str, AnyOf]]:
    if uuid is None:
        yield f"change the global `{name}`", (Right("admin.property.Set", name, DOM0),)
        return
    qube = system.by_uuid[uuid]
    yield (
        f"change `{name}` of `{qube.name}`",
        (Right("admin.vm.property.Set", name, qube.name),),
    )
    if name == _TEMPLATE and text is not None:
        # The same state as if the qube had been created from that template.
        yield (
            f"base `{qube.name}` on `{text}`",
            (Right(f"admin.vm.Create.{qube.klass}", text, DOM0),),
        )
    if name == _PROVIDES_NETWORK and text == "True":
        # Without a network qube it has an uplink of its own from then on.
        yield f"give `{qube.name}` a network", (Right("admin.vm.property.Set", "netvm", qube.name),)
    if name == _CLEANS_UP:
        yield _lifetime(system, qube, stays=text != "True")


def _lifetime(system: System, qube: Qube, *, stays: bool) -> tuple[str, AnyOf]:
    """A qube that stays is as one that was created to; one that goes when it stops is removed."""
    if not stays:
        return f"let `{qube.name}` go when it stops", (Right("admin.vm.Remove", "", qube.name),)
    if OF_CALL in qube.features:
        return f"keep `{qube.name}`, which was made for a call", ()
    template = system.template_of(qube)
    base = "" if template is None else template.name
    return f"keep `{qube.name}`", (Right(f"admin.vm.Create.{qube.klass}", base, DOM0),)


def _tag(verb: str, tag: str, qube: str) -> AnyOf:
    if tag.startswith(CREATED_BY):
        return ()
    for prefix, mirrored in _MIRRORS.items():
        if tag.startswith(prefix):
            return (Right("admin.vm.property.Set", mirrored, qube),)
    return (Right(f"admin.vm.tag.{verb}", tag, qube),)


def _name(system: System, uuid: UUID) -> str:
    return system.by_uuid[uuid].name
