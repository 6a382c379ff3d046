"""Methods of Caisson's own, all under `caisson.`; unmodified clients never call them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from caisson.admin.methods.classes import shown_qubes
from caisson.admin.methods.events import CONNECTED
from caisson.admin.methods.text import listing
from caisson.admin.registry import Access, Call, Scope, Text, To, method, stream_method
from caisson.errors import CaissonError, ProtocolError
from caisson.model import Event, Qube, Value, render
from caisson.names import PropertyName, shown

_encode = msgspec.json.Encoder(enc_hook=str).encode  # names are `str`s of their own types
SET_UP_SECONDS = 1.0
_EXTRAS = frozenset({".tags", ".features"})


@method(
    "caisson.vm.List",
    argument=Text.OPTIONAL,
    scope=Scope.TRUSTED,
    help="List qubes with the named properties (joined by `+`; `.tags`, `.features` too) as JSON.",
)
async def list_with_properties(call: Call) -> bytes:
    """Answer in one call what would take one call a qube: `[{"name", "class", …, "properties"}]`.

    A property that a qube does not have is left out; one without a value is null. Numbers and
    booleans are what JSON has for them, everything else is text.
    """
    words = call.untrusted_argument.split("+") if call.untrusted_argument else []
    for word in words:
        if word not in _EXTRAS:
            PropertyName.parse(word)
    names = tuple(PropertyName(word) for word in words if word not in _EXTRAS)
    return _encode([_facts(call, qube, names, words) for qube in shown_qubes(call)])


def _facts(
    call: Call, qube: Qube, names: tuple[PropertyName, ...], words: list[str]
) -> dict[str, Any]:
    system = call.qubes.system
    declared = system.properties(qube)
    facts: dict[str, Any] = {
        "name": qube.name,
        "class": qube.klass,
        "state": call.qubes.state_of(qube),
        "uuid": str(qube.uuid),
        "properties": {
            name: _plain(system.value(qube, name)) for name in names if name in declared
        },
    }
    if ".tags" in words:
        facts["tags"] = sorted(qube.tags)
    if ".features" in words:
        facts["features"] = dict(qube.features)
    return facts


def _plain(value: Value) -> str | int | None:
    """A value as JSON has it; a boolean is a number to Python."""
    return value if value is None or isinstance(value, int) else render(value)


@method(
    "caisson.vm.SetUp",
    to=To.NOT_ADMIN,
    scope=Scope.TRUSTED,
    access=Access.EXECUTE,
    help="Tell how many things failed in the set-up of a running qube, by its own word.",
)
async def set_up(call: Call) -> str:
    """Tell `failures=NUMBER`; nothing where the set-up goes on after a second, or is not known."""
    failures = await call.qubes.set_up_of(call.destination, SET_UP_SECONDS)
    return "" if failures is None else f"failures={failures}"


@method("caisson.doctor", to=To.ADMIN, scope=Scope.TRUSTED, help="Check the machine; JSON.")
async def doctor(call: Call) -> bytes:
    """Check the machine: `[{"name", "ok", "detail", "remedy"}]`."""
    findings = await call.services.doctor()
    return _encode(
        [{"name": f.name, "ok": f.ok, "detail": f.detail, "remedy": f.remedy} for f in findings]
    )


@method(
    "caisson.template.List",
    to=To.ADMIN,
    scope=Scope.TRUSTED,
    help="List the recipes that templates can be built from.",
)
async def list_recipes(call: Call) -> str:
    """List the recipes."""
    return listing(call.services.recipes)


@stream_method(
    "caisson.template.Build",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    scope=Scope.TRUSTED,
    access=Access.WRITE,
    help="Build a template from a recipe, telling the progress as events.",
)
async def build_template(call: Call) -> AsyncGenerator[Event, None]:
    """Build a template.

    Only event frames, as on every stream, so that no client misreads it: `template-progress`
    with `text`, at last either `template-built` or `template-failed` with `type` and `message`.
    """
    if call.untrusted_argument not in call.services.recipes:
        known = ", ".join(f"`{recipe}`" for recipe in call.services.recipes)
        raise ProtocolError(
            f"template recipe `{shown(call.untrusted_argument)}` does not exist",
            hint=f"use one of {known}" if known else None,
        )
    recipe = {"recipe": call.untrusted_argument}
    yield CONNECTED
    try:
        async for text in call.services.build_template(call.untrusted_argument):
            yield Event(None, "template-progress", {**recipe, "text": text})
    except CaissonError as error:
        failure = {**recipe, "type": error.wire_name, "message": str(error)}
        yield Event(None, "template-failed", failure)
        return
    yield Event(None, "template-built", recipe)
