"""Properties of qubes, and of the system as a whole (specification sheet, section 2.2)."""

from __future__ import annotations

from caisson.admin.methods.text import escaped, listing
from caisson.admin.registry import Access, Call, Scope, Text, To, method
from caisson.errors import ValueRefusedError
from caisson.ext import Right
from caisson.model import NO_DEFAULT, Property, PropertyType, Qube, System, Value, render
from caisson.names import PropertyName, QubeName, shown


def typed(kind: PropertyType, value: Value) -> str:
    """A value with its type, as on the wire; None is empty."""
    return f"type={kind} {render(value)}"


def state(system: System, owner: Qube | None, declared: Property) -> str:
    """A property with its value, as on the wire."""
    value = system.value(owner, declared.name)
    return f"default={system.is_default(owner, declared.name)} {typed(declared.type, value)}"


def _declare(prefix: str, to: To, scope: Scope) -> None:  # noqa: C901 - seven twins, declared together
    whose = "of the system" if to is To.ADMIN else "of a qube"

    def owner(call: Call) -> Qube | None:
        return None if to is To.ADMIN else call.destination

    def owner_name(call: Call) -> QubeName | None:
        return None if to is To.ADMIN else call.destination.name

    def reading(call: Call, name: PropertyName) -> Right:
        return Right(f"{prefix}.Get", name, call.destination.name)

    @method(f"{prefix}.List", to=to, scope=scope, help=f"List the properties {whose}.")
    async def list_names(call: Call) -> str:
        return listing(sorted(call.qubes.system.properties(owner(call))))

    @method(
        f"{prefix}.Get",
        to=to,
        argument=Text.REQUIRED,
        scope=scope,
        help=f"Tell a property {whose}: whether it is the default, its type, its value.",
    )
    async def get(call: Call) -> str:
        system = call.qubes.system
        declared = system.property(owner(call), call.untrusted_argument)
        return state(system, owner(call), declared)

    @method(
        f"{prefix}.GetAll",
        to=to,
        scope=scope,
        help=f"Tell all properties {whose} that the caller may read one by one.",
    )
    async def get_all(call: Call) -> str:
        system = call.qubes.system
        properties = system.properties(owner(call))
        sees = call.look()
        return listing(
            f"{name} {escaped(state(system, owner(call), properties[name]))}"
            for name in sorted(properties)
            if sees(reading(call, name))
        )

    @method(
        f"{prefix}.GetDefault",
        to=to,
        argument=Text.REQUIRED,
        scope=scope,
        help=f"Tell the default of a property {whose}.",
    )
    async def get_default(call: Call) -> str:
        declared = call.qubes.system.property(owner(call), call.untrusted_argument)
        call.require_right(reading(call, declared.name), f"read the property `{declared.name}`")
        default = call.qubes.system.default(owner(call), declared.name)
        return "" if default is NO_DEFAULT else typed(declared.type, default)

    @method(
        f"{prefix}.Set",
        to=to,
        argument=Text.REQUIRED,
        payload=Text.OPTIONAL,
        scope=scope,
        access=Access.WRITE,
        help=f"Set a property {whose}.",
    )
    async def set_value(call: Call) -> None:
        try:
            untrusted_value = call.untrusted_payload.decode("ascii")
        except UnicodeDecodeError:
            raise ValueRefusedError(
                f"value of property `{shown(call.untrusted_argument)}` is not ASCII"
            ) from None
        # Not yet known to be a property; the plan looks it up first of all.
        name = PropertyName(call.untrusted_argument)
        await call.qubes.set_property(owner_name(call), name, untrusted_value, call.origin.name)

    @method(
        f"{prefix}.Reset",
        to=to,
        argument=Text.REQUIRED,
        scope=scope,
        access=Access.WRITE,
        help=f"Let a property {whose} have its default again.",
    )
    async def reset(call: Call) -> None:
        name = PropertyName(call.untrusted_argument)
        await call.qubes.reset_property(owner_name(call), name, call.origin.name)

    @method(
        f"{prefix}.Help",
        to=to,
        argument=Text.REQUIRED,
        scope=scope,
        help=f"Explain a property {whose}.",
    )
    async def explain(call: Call) -> str:
        return call.qubes.system.property(owner(call), call.untrusted_argument).help


_declare("admin.property", To.ADMIN, Scope.GLOBAL)
_declare("admin.vm.property", To.ANY, Scope.LOCAL)
