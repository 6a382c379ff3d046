"""Permissions for a while: made, listed and revoked by the admin qube alone.

What is written here, `caisson.qrexec.granted` puts before the policy from the next call on.
"""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any

import msgspec
import structlog

from caisson.admin.methods.text import listing
from caisson.admin.registry import Access, Call, Scope, Text, To, method
from caisson.errors import (
    CaissonError,
    NotImplementedHereError,
    ProtocolError,
    QubeNotFoundError,
    StorageError,
    ValueRefusedError,
)
from caisson.model import System
from caisson.names import DOM0, PropertyName, shown
from caisson.policy.grants import LONGEST_SECONDS, MOST_GRANTS, Grant, rule_of
from caisson.store.grants import GrantFile

_ALL = "all"
_DISPOSABLE = "@dispvm:"
_UNBOUND = frozenset({"@default", "@dispvm", "@adminvm"})
_IS_BASE = PropertyName("template_for_dispvms")
_HINT = "`caisson policy grants` lists what is granted; what is over needs no revoking"
_log = structlog.get_logger("policy")


class _Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of `caisson.policy.Grant`; qubes are named as in every call."""

    source: str
    target: str
    service: str
    seconds: Annotated[int, msgspec.Meta(ge=1, le=LONGEST_SECONDS)]
    argument: str = "+"
    redirect: str | None = None
    user: str | None = None


@method(
    "caisson.policy.Grant",
    to=To.ADMIN,
    payload=Text.REQUIRED,
    scope=Scope.TRUSTED,
    access=Access.WRITE,
    help="Let a qube call a service of another for `seconds`; JSON, answers with the grant's id.",
)
async def grant(call: Call) -> str:
    """Grant what `{"source", "target", "service", "argument", "redirect", "user", "seconds"}` says.

    It counts for the very next call, and comes before every rule of the policy.
    """
    file = _file(call)
    made = _bound(call, _wanted(call.untrusted_payload), file.clock.now())
    rule_of(made)
    held = _held(call, file)
    if len(held) >= MOST_GRANTS:
        raise CaissonError(
            f"there are {MOST_GRANTS} grants already", "revoke some: `caisson policy revoke ID`"
        )
    file.write((*held, made))
    _log.info("granted", id=made.id, by=made.by, rule=" ".join(made.fields), names=dict(made.names))
    return made.id


@method(
    "caisson.policy.Grants",
    to=To.ADMIN,
    scope=Scope.TRUSTED,
    help="List the grants that hold, the latest first; JSON.",
)
async def list_grants(call: Call) -> bytes:
    """List what is granted: `[{"id", "service", …, "seconds_left", "missing", "rule"}]`.

    `missing` names the qubes that were removed since: with one of them a grant is void.
    """
    file = _file(call)
    now = file.clock.now()
    return msgspec.json.encode([_told(call.qubes.system, each, now) for each in file.read()[::-1]])


@method(
    "caisson.policy.Revoke",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    scope=Scope.TRUSTED,
    access=Access.WRITE,
    help="Revoke the grant of that id, or `all`; answers with the ids.",
)
async def revoke(call: Call) -> str:
    """End grants before their time; calls that run already go on."""
    file = _file(call)
    wanted = call.untrusted_argument
    if wanted == _ALL:
        gone = _readable(file)
        file.write(())
    else:
        gone = tuple(each for each in file.read() if each.id == wanted)
        if not gone:
            raise CaissonError(f"there is no grant `{shown(wanted)}`", _HINT)
        file.write(each for each in _held(call, file) if each.id != wanted)
    for each in gone:
        _log.info("revoked", id=each.id, by=call.uid)
    return listing(each.id for each in gone)


def _file(call: Call) -> GrantFile:
    if call.services.grants is None:
        raise NotImplementedHereError("nothing can be granted here")
    return call.services.grants


def _held(call: Call, file: GrantFile) -> tuple[Grant, ...]:
    """The grants that mean something: their time is not over, and their qubes exist."""
    system = call.qubes.system
    return tuple(each for each in file.read() if not _missing(system, each))


def _readable(file: GrantFile) -> tuple[Grant, ...]:
    try:
        return file.read()
    except StorageError as error:
        _log.error("grants are replaced unread", error=error.message)
        return ()


def _missing(system: System, held: Grant) -> list[str]:
    return [each for each in held.qubes if _name_of(system, each) is None]


def _name_of(system: System, reference: str) -> str | None:
    try:
        return str(system.qube(reference).name)
    except QubeNotFoundError:
        return None


def _wanted(untrusted_payload: bytes) -> _Wanted:
    try:
        return msgspec.json.decode(untrusted_payload, type=_Wanted)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolError(
            f"the payload is no grant: {shown(str(error))}",
            'send `{"source": …, "target": …, "service": …, "seconds": …}`',
        ) from None


def _bound(call: Call, untrusted: _Wanted, now: int) -> Grant:
    """What is wanted, bound to the qubes that have these names at this moment."""
    names: dict[str, str] = {}
    system = call.qubes.system
    source = _bind(system, untrusted.source, names)
    if source.startswith("@"):
        raise ValueRefusedError(
            f"`{shown(untrusted.source)}` is not a calling qube",
            f"name one; calls of `{DOM0}` are not policed",
        )
    redirect = untrusted.redirect
    return Grant(
        id=f"grant-{secrets.token_hex(4)}",
        service=untrusted.service,
        argument=untrusted.argument,
        source=source,
        target=_bind(system, untrusted.target, names),
        expires=now + untrusted.seconds * 1_000_000_000,
        redirect=None if redirect is None else _bind(system, redirect, names),
        user=untrusted.user,
        names=names,
        by=call.uid,
        made=int(time.time()),
    )


def _bind(system: System, untrusted: str, names: dict[str, str]) -> str:
    """A token with the uuid in the place of the name, which is noted in `names`."""
    if untrusted in _UNBOUND:
        return untrusted
    prefix = _DISPOSABLE if untrusted.startswith(_DISPOSABLE) else ""
    qube = system.qube(untrusted.removeprefix(prefix))
    if prefix and not (_IS_BASE in system.properties(qube) and system.value(qube, _IS_BASE)):
        raise ValueRefusedError(
            f"disposables cannot be made from `{qube.name}`",
            f"make it a template for them: `qvm-prefs {qube.name} template_for_dispvms true`",
        )
    if qube.name == DOM0:
        return "@adminvm"
    names[f"uuid:{qube.uuid}"] = str(qube.name)
    return f"{prefix}uuid:{qube.uuid}"


def _told(system: System, held: Grant, now: int) -> dict[str, Any]:
    """A grant as it is listed: qubes by name, those that are gone by the name they had."""

    def named(token: str) -> str:
        for reference, former in held.names.items():
            token = token.replace(reference, _name_of(system, reference) or former)
        return token

    return {
        "id": held.id,
        "service": held.service,
        "argument": held.argument,
        "source": named(held.source),
        "target": named(held.target),
        "redirect": None if held.redirect is None else named(held.redirect),
        "user": held.user,
        "by": held.by,
        "made": held.made,
        "seconds_left": held.seconds_left(now),
        "missing": [held.names.get(each, each) for each in _missing(system, held)],
        "rule": " ".join(held.fields),
    }
