"""Which values the rest of the system refuses, one small function each.

The same check runs for setting, for resetting (with the default as the value) and at creation:
a restriction that holds on one route only is none.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from caisson.errors import (
    NotHaltedError,
    NotStartedError,
    PropertyValueError,
    QubeInUseError,
    ValueRefusedError,
)
from caisson.model import addresses
from caisson.model.klass import Klass
from caisson.model.property import Owner, Running, Value, View
from caisson.model.qube import Qube


def base_of_disposables(view: View, _owner: Owner, value: Value, _running: Running) -> None:
    """A disposable can only be made from a qube that allows it."""
    if isinstance(value, Qube) and not is_base_of_disposables(view, value):
        raise PropertyValueError(
            f"qube `{value.name}` is no template for disposables",
            hint=f"set its property `template_for_dispvms`: "
            f"`qvm-prefs {value.name} template_for_dispvms True`",
        )


def is_base_of_disposables(view: View, qube: Qube) -> bool:
    """Whether disposables may be made from this qube."""
    return view.has(qube, "template_for_dispvms") and bool(view.value(qube, "template_for_dispvms"))


def template(_view: View, owner: Owner, value: Value, running: Running) -> None:
    """Templates change under halted qubes only."""
    is_template(value)
    _halted(owner, running)


def disposable_template(view: View, owner: Owner, value: Value, running: Running) -> None:
    """The template of a disposable changes while it is halted only."""
    base_of_disposables(view, owner, value, running)
    _halted(owner, running)


def template_or_none(_view: View, _owner: Owner, value: Value, _running: Running) -> None:
    """A template, or nothing."""
    if value is not None:
        is_template(value)


def is_template(value: Value) -> None:
    """Refuse what is no TemplateVM."""
    if not isinstance(value, Qube) or value.klass is not Klass.TEMPLATE:
        raise PropertyValueError(
            f"qube `{value.name if isinstance(value, Qube) else value}` is no template",
            hint="use a qube of class TemplateVM",
        )


def _halted(owner: Owner, running: Running) -> None:
    if owner is not None and running(owner):
        raise NotHaltedError(
            f"qube `{owner.name}` is running, its template cannot change",
            hint=f"shut it down first: `qvm-shutdown --wait {owner.name}`",
        )


def still_a_base(view: View, owner: Owner, value: Value, _running: Running) -> None:
    """A qube stays a template for disposables while something makes disposables from it."""
    if value or owner is None:
        return
    for user, name in view.users_of(owner):
        if name in {"default_dispvm", "management_dispvm"} or (
            name == "template" and user is not None and user.klass is Klass.DISPOSABLE
        ):
            raise QubeInUseError(
                f"qube `{owner.name}` is {_place(user, name)}, it stays a template for disposables",
                hint="change that property first",
            )


def kernel(view: View, _owner: Owner, value: Value, _running: Running) -> None:
    """A kernel that the machine has, or none."""
    if isinstance(value, str) and value and not view.host.has_kernel(value):
        raise PropertyValueError(
            f"no kernel `{value}` on this machine",
            hint="put its `vmlinuz` into a directory of that name in `/var/lib/qubes/vm-kernels`",
        )


def maxmem(view: View, owner: Owner, _value: Value, running: Running) -> None:
    """What a virtual machine may grow to is laid out at its start; a container has no such plan."""
    if owner is not None and running(owner) and view.value(owner, "virt_mode") != "container":
        raise NotHaltedError(
            f"qube `{owner.name}` is running, its `maxmem` cannot change",
            hint=f"shut it down first: `qvm-shutdown --wait {owner.name}`",
        )


def netvm(view: View, owner: Owner, value: Value, running: Running) -> None:
    """A network qube provides network, is no client of its own, and runs when it is needed."""
    if not isinstance(value, Qube) or owner is None:
        return
    provides_network_to(view, value)
    if value is owner or owner in view.netvm_chain(value):
        raise ValueRefusedError(
            f"qube `{value.name}` gets its network through `{owner.name}`: a loop",
            hint="choose a network qube nearer to the uplink",
        )
    _up(owner, value, running)


def default_netvm(view: View, _owner: Owner, value: Value, running: Running) -> None:
    """The default network qube must suit every qube that uses the default."""
    if not isinstance(value, Qube):
        return
    provides_network_to(view, value)
    followers = set(view.followers_of("default_netvm"))
    for qube in (value, *view.netvm_chain(value)):
        if qube in followers:
            raise ValueRefusedError(
                f"qube `{qube.name}` uses the default network qube itself: a loop",
                hint=f"set its own first: `qvm-prefs {qube.name} netvm ''`",
            )
    for qube in followers:
        _up(qube, value, running)


def provides_network_to(view: View, value: Qube) -> None:
    """Refuse a qube that does not provide network."""
    if not (view.has(value, "provides_network") and view.value(value, "provides_network")):
        raise ValueRefusedError(
            f"qube `{value.name}` does not provide network",
            hint=f"set its property `provides_network`: "
            f"`qvm-prefs {value.name} provides_network True`",
        )


def _up(owner: Qube, value: Qube, running: Running) -> None:
    if running(owner) and not running(value):
        raise NotStartedError(
            f"qube `{owner.name}` is running, but network qube `{value.name}` is not",
            hint=f"start it first: `qvm-start {value.name}`",
        )


def still_provides_network(view: View, owner: Owner, value: Value, _running: Running) -> None:
    """A qube goes on providing network while others use it."""
    if value or owner is None:
        return
    for client in view.clients_of(owner):
        raise ValueRefusedError(
            f"qube `{owner.name}` is the network qube of `{client.name}`",
            hint="give its clients another network qube first",
        )
    for user, name in view.users_of(owner):
        if name in {"netvm", "default_netvm"}:
            raise ValueRefusedError(
                f"qube `{owner.name}` is {_place(user, name)}",
                hint="choose another network qube there first",
            )


def address(view: View, owner: Owner, value: Value, _running: Running) -> None:
    """An address is private, and one qube's: two with the same could take each other's traffic."""
    if not isinstance(value, IPv4Address | IPv6Address):
        return
    if not addresses.is_for_qubes(value):
        raise PropertyValueError(
            f"address `{value}` is not one that a qube can have",
            hint="use a private one, such as `10.137.0.7`, `192.168.1.7` or `fd09::7`",
        )
    for qube in view.holders_of(value):
        if qube is not owner:
            raise PropertyValueError(
                f"address `{value}` belongs to qube `{qube.name}`", hint="use another address"
            )


def _place(user: Owner, name: str) -> str:
    return f"the global `{name}`" if user is None else f"the `{name}` of `{user.name}`"
