"""Devices: none can be handed out yet, but a qube can be kept from some (section 2.7)."""

from __future__ import annotations

from caisson.admin.methods.text import listing
from caisson.admin.registry import Access, Call, Scope, Text, To, method
from caisson.errors import (
    CaissonError,
    DeviceNotAssignedError,
    NotRunningError,
    ProtocolError,
    ValueRefusedError,
)
from caisson.model import Klass, limits, parsing, render
from caisson.model.devices import (
    ASSIGNED,
    Assignment,
    Device,
    DeviceClass,
    Mode,
    PortId,
    mode_of,
    qube_name,
)

_DENIED = "devices_denied"
_CODE = 7
_ALL = b"all"


@method(
    "admin.deviceclass.List",
    to=To.ADMIN,
    scope=Scope.GLOBAL,
    help="List the classes of devices.",
)
async def list_classes(_call: Call) -> str:
    """List the classes of devices."""
    return listing(DeviceClass)


def _declare(devclass: DeviceClass) -> None:  # noqa: C901 - eight twins, declared together
    prefix = f"admin.vm.device.{devclass}"

    @method(
        f"{prefix}.Available",
        argument=Text.OPTIONAL,
        help=f"List the {devclass} devices of a qube, or the one at a port.",
    )
    async def available(call: Call) -> str:
        if call.untrusted_argument:
            PortId.parse(call.untrusted_argument)
        return ""

    @method(
        f"{prefix}.Assigned",
        argument=Text.OPTIONAL,
        help=f"List the {devclass} devices that are assigned to a qube.",
    )
    async def assigned(call: Call) -> str:
        return _none_at(call)

    @method(
        f"{prefix}.Attached",
        argument=Text.OPTIONAL,
        help=f"List the {devclass} devices that a qube has now.",
    )
    async def attached(call: Call) -> str:
        return _none_at(call)

    @method(
        f"{prefix}.Assign",
        argument=Text.REQUIRED,
        payload=Text.REQUIRED,
        access=Access.WRITE,
        help=f"Assign a {devclass} device to a qube; no qube hands any out yet.",
    )
    async def assign(call: Call) -> None:
        wanted = _assignment(call, devclass)
        if wanted.mode is Mode.MANUAL:
            raise ValueRefusedError(
                "an assignment cannot be `manual`",
                hint="use one of: " + ", ".join(sorted(ASSIGNED)),
            )
        raise _unknown(wanted)

    @method(
        f"{prefix}.Unassign",
        argument=Text.REQUIRED,
        access=Access.WRITE,
        help=f"Take back the assignment of a {devclass} device.",
    )
    async def unassign(call: Call) -> None:
        raise _not_assigned(call, "assigned", Device.parse_argument(call.untrusted_argument))

    @method(
        f"{prefix}.Attach",
        argument=Text.REQUIRED,
        payload=Text.OPTIONAL,
        access=Access.EXECUTE,
        help=f"Give a {devclass} device to a running qube; no qube hands any out yet.",
    )
    async def attach(call: Call) -> None:
        wanted = _assignment(call, devclass)
        if not call.qubes.is_up(call.destination):
            raise NotRunningError(
                f"qube `{call.destination.name}` is not running",
                hint=f"start it: `qvm-start {call.destination.name}`",
            )
        raise _unknown(wanted)

    @method(
        f"{prefix}.Detach",
        argument=Text.REQUIRED,
        access=Access.EXECUTE,
        help=f"Take a {devclass} device from a running qube.",
    )
    async def detach(call: Call) -> None:
        raise _not_assigned(call, "attached", Device.parse_argument(call.untrusted_argument))

    @method(
        f"{prefix}.Set.assignment",
        argument=Text.REQUIRED,
        payload=Text.REQUIRED,
        access=Access.WRITE,
        help=f"Set the mode in which a {devclass} device is assigned.",
    )
    async def set_assignment(call: Call) -> None:
        device = Device.parse_argument(call.untrusted_argument)
        untrusted_mode = call.untrusted_text
        # A mode of attachments only is none here.
        mode_of("" if untrusted_mode == Mode.MANUAL else untrusted_mode)
        raise ValueRefusedError(
            f"device `{device}` is not assigned to qube `{call.destination.name}`"
        )


for _devclass in DeviceClass:
    _declare(_devclass)


@method("admin.vm.device.denied.List", help="List the device interfaces that a qube never gets.")
async def list_denied(call: Call) -> str:
    """List the codes, one a line, without an end of the last line."""
    return "\n".join(_denied(call))


@method(
    "admin.vm.device.denied.Add",
    payload=Text.OPTIONAL,
    access=Access.WRITE,
    help="Keep more device interfaces from a qube; the payload is their codes, "
    f"of which a qube has at most {limits.MOST_DENIED}.",
)
async def add_denied(call: Call) -> None:
    """Add codes to the list."""
    await _deny(call, [*_denied(call), *_codes(call)])


@method(
    "admin.vm.device.denied.Remove",
    payload=Text.OPTIONAL,
    access=Access.WRITE,
    help="Keep fewer device interfaces from a qube; the payload is their codes, or `all`.",
)
async def remove_denied(call: Call) -> None:
    """Take codes from the list."""
    denied = _denied(call)
    gone = set(denied if call.untrusted_payload == _ALL else _codes(call))
    await _deny(call, [code for code in denied if code not in gone])


def _none_at(call: Call) -> str:
    """Nothing, at a `BACKEND+PORT` that is well formed if it is given."""
    if call.untrusted_argument:
        backend, plus, port = call.untrusted_argument.partition("+")
        if not plus:
            raise ProtocolError("the argument is not of the form `BACKEND+PORT`")
        qube_name(backend)
        PortId.parse(port)
    return ""


def _assignment(call: Call, devclass: DeviceClass) -> Assignment:
    device = Device.parse_argument(call.untrusted_argument)
    wanted = Assignment.parse(device, devclass, call.untrusted_payload)
    if wanted.frontend not in {None, call.destination.name}:
        raise ProtocolError(f"the payload is about qube `{wanted.frontend}`")
    if call.destination.klass is Klass.REMOTE:
        raise CaissonError(f"RemoteVM `{call.destination.name}` cannot have devices")
    return wanted


def _unknown(wanted: Assignment) -> ProtocolError:
    return ProtocolError(
        f"{wanted.devclass} device `{wanted.device}` does not exist",
        hint="no qube of this version hands out devices yet",
    )


def _not_assigned(call: Call, what: str, device: Device) -> DeviceNotAssignedError:
    return DeviceNotAssignedError(
        f"device `{device}` is not {what} to qube `{call.destination.name}`"
    )


def _split(codes: str) -> list[str]:
    return [codes[at : at + _CODE] for at in range(0, len(codes), _CODE)]


def _denied(call: Call) -> list[str]:
    system = call.qubes.system
    if not system.has(call.destination, _DENIED):
        raise CaissonError(f"RemoteVM `{call.destination.name}` cannot have devices")
    return _split(render(system.value(call.destination, _DENIED)))


def _codes(call: Call) -> list[str]:
    """The codes of a payload, each once."""
    untrusted = call.untrusted_text
    limits.check_denied(len(untrusted) // _CODE)
    if len(untrusted) % _CODE:
        raise ValueRefusedError(
            f"the payload is {len(untrusted)} characters long",
            hint=f"join codes of {_CODE} characters each",
        )
    parsing.denied_interfaces(untrusted)
    codes = _split(untrusted)
    if len(set(codes)) < len(codes):
        raise ProtocolError("a code is given twice")
    return codes


async def _deny(call: Call, codes: list[str]) -> None:
    qube, system = call.destination, call.qubes.system
    text = parsing.denied_interfaces("".join(codes))
    if text != render(system.value(qube, _DENIED)):
        await call.commit(system.plan_set(qube, _DENIED, text, call.qubes.is_up))
