"""Defaults and computed values, one small function each (sheet `admin-api`, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import AddressValueError, IPv4Address

from caisson.model import addresses
from caisson.model.klass import Klass
from caisson.model.property import (
    NO_DEFAULT,
    Default,
    Missing,
    Owner,
    Scalar,
    Value,
    View,
)
from caisson.model.qube import Qube
from caisson.names import LabelName

MAXMEM = 4000
_MAY_SERVE = frozenset({Klass.APP, Klass.STANDALONE, Klass.DISPOSABLE})
_KINDS = {
    Klass.ADMIN: "adminvm",
    Klass.TEMPLATE: "templatevm",
    Klass.APP: "appvm",
    Klass.STANDALONE: "standalonevm",
    Klass.DISPOSABLE: "dispvm",
    Klass.REMOTE: "remotevm",
}


def of_qube(compute: Callable[[View, Qube], Value | Missing]) -> Default:
    """A default that exists for qubes only."""

    def default(view: View, owner: Owner) -> Value | Missing:
        return NO_DEFAULT if owner is None else compute(view, owner)

    return default


def global_property(name: str) -> Default:
    """The value of a global property."""

    def default(view: View, _owner: Owner) -> Value:
        return view.value(None, name)

    return default


def of_template(name: str, otherwise: Default) -> Default:
    """The template's value of the same property; without a template, `otherwise`."""

    @of_qube
    def default(view: View, qube: Qube) -> Value | Missing:
        template = view.template_of(qube)
        return otherwise(view, qube) if template is None else view.value(template, name)

    return default


def runtime(name: str, otherwise: Scalar) -> Default:
    """What the running system reports; `otherwise` while the qube is down."""

    @of_qube
    def default(view: View, qube: Qube) -> Value:
        reported = view.runtime_value(qube, name)
        if reported is None:
            return otherwise
        return reported if isinstance(reported, int) else str(reported)

    return default


@of_qube
def klass(_view: View, qube: Qube) -> str:
    """The name of its class."""
    return qube.klass.value


@of_qube
def own_template(view: View, qube: Qube) -> Value:
    """The template it was made from."""
    return view.template_of(qube)


@of_qube
def icon(view: View, qube: Qube) -> str:
    """Kind and label."""
    label = view.value(qube, "label")
    colour = getattr(label, "name", "black")
    return f"{_kind(view, qube)}-{colour}"


def _kind(view: View, qube: Qube) -> str:
    if qube.klass is Klass.APP and view.value(qube, "template_for_dispvms"):
        return "templatevm"
    serves = qube.klass in _MAY_SERVE and view.feature([qube], "servicevm")
    return "servicevm" if serves else _KINDS[qube.klass]


def host_memory(view: View, _owner: Owner) -> int:
    """All RAM of the machine, in MiB."""
    return view.host.memory


def host_cpus(view: View, _owner: Owner) -> int:
    """All processors of the machine."""
    return view.host.cpus


@of_qube
def maxmem(view: View, qube: Qube) -> int:
    """Ten times the memory for Linux, else a fixed amount; never more than half of the machine."""
    memory = view.value(qube, "memory")
    if isinstance(memory, int) and view.feature(view.template_chain(qube), "os") == "Linux":
        return min(memory * 10, view.host.memory // 2)
    return min(MAXMEM, view.host.memory // 2)


@of_qube
def updateable(view: View, qube: Qube) -> bool:
    """What has no template is updated by itself."""
    return view.template_of(qube) is None


@of_qube
def kept_unless_cleaned_up(view: View, qube: Qube) -> bool:
    """Whether a disposable is worth a backup."""
    return not view.value(qube, "auto_cleanup")


@of_qube
def kernel_options(view: View, qube: Qube) -> Value:
    """None without a kernel; else the template's, else what came with the kernel."""
    kernel = view.value(qube, "kernel")
    if not kernel:
        return ""
    template = view.template_of(qube)
    if template is not None:
        return view.value(template, "kernelopts")
    came_with_it = view.host.kernel_options(str(kernel))
    return "swiotlb=2048" if came_with_it is None else came_with_it


@of_qube
def bootmode(view: View, qube: Qube) -> Value:
    """The active mode if the qube offers it, else what the template gives to its qubes.

    A mode is offered by the feature `boot-mode.kernelopts.MODE`.
    """
    active = view.feature(view.template_chain(qube), "boot-mode.active")
    if active and _offers(view, qube, active):
        return active
    for template in view.template_chain(qube):
        if view.has(template, "appvm_default_bootmode") and template is not qube:
            return view.value(template, "appvm_default_bootmode")
    return "default"


def _offers(view: View, qube: Qube, mode: str) -> bool:
    offered = view.feature(view.template_chain(qube), f"boot-mode.kernelopts.{mode}")
    return mode == "default" or offered is not None


@of_qube
def appvm_default_bootmode(view: View, qube: Qube) -> str:
    """What the template says about the qubes based on it."""
    return view.feature([qube], "boot-mode.appvm-default") or "default"


@of_qube
def keyboard_layout(view: View, qube: Qube) -> Value:
    """The layout of the GUI qube that is stored first along the chain."""
    seen = {qube}
    gui = view.value(qube, "guivm")
    while isinstance(gui, Qube) and gui not in seen:
        if view.has(gui, "keyboard_layout") and not view.is_default(gui, "keyboard_layout"):
            return view.value(gui, "keyboard_layout")
        seen.add(gui)
        gui = view.value(gui, "guivm") if view.has(gui, "guivm") else None
    return "us++"


def admin_qube(view: View, _owner: Owner) -> Qube:
    """The admin qube."""
    return view.dom0


def _networked(view: View, qube: Qube) -> bool:
    return bool(view.value(qube, "provides_network")) or view.netvm_of(qube) is not None


@of_qube
def ip(view: View, qube: Qube) -> Value:
    """The address that follows from its number."""
    if not _networked(view, qube):
        return None
    if qube.klass is Klass.DISPOSABLE:
        return addresses.ipv4_of_disposable(_dispid(view, qube))
    return addresses.ipv4_of(qube.qid)


@of_qube
def ip6(view: View, qube: Qube) -> Value:
    """The address that follows from its number, where IPv6 is switched on along the chain."""
    if not _networked(view, qube) or not view.feature([qube, *view.netvm_chain(qube)], "ipv6"):
        return None
    if qube.klass is Klass.DISPOSABLE:
        return addresses.ipv6_of_disposable(_dispid(view, qube))
    return addresses.ipv6_of(qube.qid)


def _dispid(view: View, qube: Qube) -> int:
    dispid = view.value(qube, "dispid")
    return dispid if isinstance(dispid, int) else qube.qid


@of_qube
def gateway(view: View, qube: Qube) -> Value:
    """Where its clients send what they send."""
    return view.value(qube, "visible_ip") if view.value(qube, "provides_network") else None


@of_qube
def gateway6(view: View, qube: Qube) -> Value:
    """Where its clients send what they send over IPv6."""
    return view.value(qube, "visible_ip6") if view.value(qube, "provides_network") else None


def _fake(view: View, qube: Qube, feature: str) -> IPv4Address | None:
    text = view.feature(view.template_chain(qube), feature)
    try:
        return IPv4Address(text) if text else None
    except AddressValueError:
        return None


@of_qube
def visible_ip(view: View, qube: Qube) -> Value:
    """The address that the qube sees as its own."""
    return _fake(view, qube, "net.fake-ip") or view.value(qube, "ip")


@of_qube
def visible_gateway(view: View, qube: Qube) -> Value:
    """The gateway that the qube sees."""
    netvm = view.netvm_of(qube)
    return _fake(view, qube, "net.fake-gateway") or (
        None if netvm is None else view.value(netvm, "gateway")
    )


@of_qube
def visible_netmask(view: View, qube: Qube) -> Value:
    """The netmask that the qube sees."""
    netvm = view.netvm_of(qube)
    return _fake(view, qube, "net.fake-netmask") or (
        None if netvm is None else IPv4Address("255.255.255.255")
    )


@of_qube
def visible_ip6(view: View, qube: Qube) -> Value:
    """The IPv6 address that the qube sees as its own."""
    return view.value(qube, "ip6")


@of_qube
def visible_gateway6(view: View, qube: Qube) -> Value:
    """The IPv6 gateway that the qube sees."""
    netvm = view.netvm_of(qube)
    return None if netvm is None else view.value(netvm, "gateway6")


@of_qube
def dns(view: View, qube: Qube) -> Value:
    """Name servers: two addresses that the uplink's qube answers."""
    if not _networked(view, qube):
        return None
    return " ".join(str(address) for address in addresses.DNS)


def black(view: View, _owner: Owner) -> Value:
    """The label of the admin qube."""
    return view.labels[LabelName("black")]
