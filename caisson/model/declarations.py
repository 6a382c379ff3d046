"""The properties of every class of qube and of the system (sheet `admin-api`, section 5).

Data: to add a property is to add a line. Those whose effect belongs to an engine that is not
here yet are stored and checked all the same, so that tools and formulas find them.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from caisson.model import checks, defaults, parsing
from caisson.model.defaults import global_property, of_template, runtime
from caisson.model.klass import Klass
from caisson.model.property import Property, PropertyType, constant
from caisson.model.volumes import KERNEL, KERNELS, LAYERS, PRIVATE, ROOT, VOLATILE
from caisson.names import PropertyName, VolumeName

_MEMORY_MAX = 1 << 24
_CPUS_MAX = 4_096
_SECONDS_MAX = 1_000_000

Table = Mapping[PropertyName, Property]

_STR, _INT, _BOOL = PropertyType.STR, PropertyType.INT, PropertyType.BOOL
_QUBE, _LABEL = PropertyType.QUBE, PropertyType.LABEL


def _p(name: str, kind: PropertyType, text: str, **rest: Any) -> Property:
    return Property(name=PropertyName(name), type=kind, help=text, **rest)


def _ro(name: str, kind: PropertyType, text: str, **rest: Any) -> Property:
    return _p(name, kind, text, read_only=True, cloned=False, **rest)


def _following(name: str, text: str, follows: str, **rest: Any) -> Property:
    return _p(
        name,
        _QUBE,
        text,
        default=global_property(follows),
        follows=PropertyName(follows),
        **rest,
    )


def _table(*declared: Property) -> Table:
    return MappingProxyType({each.name: each for each in declared})


def _with(table: Table, *declared: Property) -> Table:
    return MappingProxyType({**table, **_table(*declared)})


_NAME = _p(
    "name",
    _STR,
    "Name of the qube, given at creation.",
    attribute=attrgetter("name"),
    write_once=True,
    cloned=False,
)
_UUID = _p(
    "uuid",
    _STR,
    "UUID of the qube, random, given at creation; it is never used again.",
    attribute=attrgetter("uuid"),
    write_once=True,
    cloned=False,
)
_QID = _p(
    "qid",
    _INT,
    "Number of the qube, the lowest free one at creation; its addresses follow from it.",
    attribute=attrgetter("qid"),
    write_once=True,
    cloned=False,
)
_KLASS = _ro("klass", _STR, "Class of the qube.", default=defaults.klass)
_ICON = _ro("icon", _STR, "Name of the icon: kind of qube and label.", default=defaults.icon)
_IN_BACKUPS = _p(
    "include_in_backups",
    _BOOL,
    "Whether a backup includes the qube unless told otherwise.",
    default=constant(True),
    cloned=False,
)
_DENIED = _p(
    "devices_denied",
    _STR,
    "Codes of device interfaces, seven characters each, that are never attached to the qube.",
    default=constant(""),
    normalise=parsing.denied_interfaces,
)
_DEFAULT_DISPVM = _following(
    "default_dispvm",
    "Template of the disposables that the qube starts without naming one. Empty: it starts none.",
    "default_dispvm",
    check=checks.base_of_disposables,
)
_KEYBOARD = _p(
    "keyboard_layout",
    _STR,
    "Keyboard of the qube: layout, variant and options, joined by plus signs.",
    default=defaults.keyboard_layout,
    normalise=parsing.keyboard_layout,
)
_BASE = _p(
    "template_for_dispvms",
    _BOOL,
    "Whether disposables may be made from this qube.",
    default=constant(False),
    cloned=False,
    check=checks.still_a_base,
)

Q: Table = _table(
    _NAME,
    _UUID,
    _QID,
    _p(
        "label",
        _LABEL,
        "Colour by which people recognise the qube and its degree of trust.",
        required=True,
        cloned=False,
    ),
    _KLASS,
    _ICON,
    _p(
        "autostart",
        _BOOL,
        "Whether the qube starts with the machine.",
        default=constant(False),
        cloned=False,
    ),
    _p(
        "backup_timestamp",
        _INT,
        "When the qube was last part of a backup, in seconds since the epoch.",
        default=constant(None),
        at_least=0,
        cloned=False,
    ),
    _p("debug", _BOOL, "Whether the qube runs with debugging aids.", default=constant(False)),
    _DEFAULT_DISPVM,
    _p(
        "management_dispvm",
        _QUBE,
        "Template of the disposables from which the qube is managed.",
        default=of_template("management_dispvm", global_property("management_dispvm")),
        check=checks.base_of_disposables,
    ),
    _p(
        "default_user",
        _STR,
        "User as whom programs start in the qube.",
        default=of_template("default_user", constant("user")),
        normalise=parsing.user_name,
    ),
    _DENIED,
    _IN_BACKUPS,
    _p(
        "installed_by_rpm",
        _BOOL,
        "Whether a package of the machine owns the qube; such a qube cannot be removed.",
        default=constant(False),
        cloned=False,
    ),
    _p(
        "kernel",
        _STR,
        "Version of the kernel to boot a virtual machine with. Empty: the one in its root volume.",
        default=of_template("kernel", global_property("default_kernel")),
        normalise=parsing.kernel,
    ),
    _p(
        "kernelopts",
        _STR,
        "Command line of the kernel of a virtual machine.",
        default=defaults.kernel_options,
        normalise=parsing.kernel_options,
    ),
    _p(
        "bootmode",
        _STR,
        "Mode in which the qube boots, one of those that its features offer.",
        default=defaults.bootmode,
        normalise=parsing.one_line,
    ),
    _p(
        "mac",
        _STR,
        "Hardware address of the network interface.",
        default=constant("00:16:3e:5e:6c:00"),
        normalise=parsing.mac,
        cloned=False,
    ),
    _p(
        "memory",
        _INT,
        "Memory that the qube starts with, in MiB.",
        default=of_template("memory", constant(400)),
        at_least=1,
        at_most=_MEMORY_MAX,
    ),
    _p(
        "maxmem",
        _INT,
        "Memory that the qube may grow to, in MiB. 0: it keeps what it starts with.",
        default=of_template("maxmem", defaults.maxmem),
        at_least=0,
        at_most=_MEMORY_MAX,
    ),
    _p(
        "vcpus",
        _INT,
        "How many processors the qube may use.",
        default=of_template("vcpus", constant(2)),
        at_least=1,
        at_most=_CPUS_MAX,
    ),
    _p(
        "stubdom_mem",
        _INT,
        "Memory of the stub domain, in MiB.",
        default=constant(None),
        at_least=1,
        at_most=_MEMORY_MAX,
    ),
    _ro(
        "stubdom_xid",
        _INT,
        "Number of the running stub domain, or -1.",
        default=runtime("stubdom_xid", -1),
    ),
    _ro(
        "stubdom_uuid",
        _STR,
        "UUID of the running stub domain, or nothing.",
        default=runtime("stubdom_uuid", ""),
    ),
    _ro(
        "xid",
        _INT,
        "Number of the running qube, new at each start, or -1.",
        default=runtime("xid", -1),
    ),
    _ro(
        "start_time",
        _STR,
        "When the qube started, in seconds since the epoch, or nothing.",
        default=runtime("start_time", None),
    ),
    _p(
        "virt_mode",
        _STR,
        "Kind of wall around the qube: container, or pvh, hvm, pv for a virtual machine.",
        default=of_template("virt_mode", constant("container")),
        normalise=parsing.virt_mode,
    ),
    _p(
        "qrexec_timeout",
        _INT,
        "How many seconds the qube may take to start.",
        default=of_template("qrexec_timeout", global_property("default_qrexec_timeout")),
        at_least=1,
        at_most=_SECONDS_MAX,
    ),
    _p(
        "shutdown_timeout",
        _INT,
        "How many seconds the qube may take to shut down.",
        default=of_template("shutdown_timeout", global_property("default_shutdown_timeout")),
        at_least=1,
        at_most=_SECONDS_MAX,
    ),
    _ro(
        "updateable",
        _BOOL,
        "Whether updates are installed in this qube and not in a template.",
        default=defaults.updateable,
    ),
    _following(
        "netvm",
        "Qube that gives this one its network. Empty: it has none.",
        "default_netvm",
        check=checks.netvm,
    ),
    _p(
        "provides_network",
        _BOOL,
        "Whether other qubes can get their network through this one.",
        default=constant(False),
        check=checks.still_provides_network,
    ),
    _p(
        "ip",
        _STR,
        "IPv4 address of the qube.",
        default=defaults.ip,
        normalise=parsing.ipv4,
        check=checks.address,
        decode=IPv4Address,
        cloned=False,
    ),
    _p(
        "ip6",
        _STR,
        "IPv6 address of the qube, where its network has IPv6.",
        default=defaults.ip6,
        normalise=parsing.ipv6,
        check=checks.address,
        decode=IPv6Address,
        cloned=False,
    ),
    _ro("gateway", _STR, "IPv4 gateway for its clients.", default=defaults.gateway),
    _ro("gateway6", _STR, "IPv6 gateway for its clients.", default=defaults.gateway6),
    _ro("visible_ip", _STR, "IPv4 address that the qube sees.", default=defaults.visible_ip),
    _ro(
        "visible_gateway",
        _STR,
        "IPv4 gateway that the qube sees.",
        default=defaults.visible_gateway,
    ),
    _ro(
        "visible_netmask",
        _STR,
        "IPv4 netmask that the qube sees.",
        default=defaults.visible_netmask,
    ),
    _ro("visible_ip6", _STR, "IPv6 address that the qube sees.", default=defaults.visible_ip6),
    _ro(
        "visible_gateway6",
        _STR,
        "IPv6 gateway that the qube sees.",
        default=defaults.visible_gateway6,
    ),
    _ro("dns", _STR, "Name servers of the qube, separated by a space.", default=defaults.dns),
    _following("guivm", "Qube that shows the windows and prompts of this one.", "default_guivm"),
    _following("audiovm", "Qube that plays the sound of this one.", "default_audiovm"),
    _KEYBOARD,
)
"""What TemplateVM, AppVM, StandaloneVM and DispVM have in common."""

_TEMPLATE_HELP = "Qube whose root volume this one starts from. It changes while halted only."

TEMPLATE: Table = _with(
    Q,
    _p(
        "netvm",
        _QUBE,
        "Qube that gives this one its network. Empty: it has none.",
        default=constant(None),
        check=checks.netvm,
    ),
    _p(
        "appvm_default_bootmode",
        _STR,
        "Mode in which the qubes based on this template boot.",
        default=defaults.appvm_default_bootmode,
        normalise=parsing.one_line,
    ),
)

STANDALONE: Table = _with(Q, _BASE)

APP: Table = _with(
    Q,
    _BASE,
    _p(
        "template",
        _QUBE,
        _TEMPLATE_HELP,
        required=True,
        optional=False,
        cloned=False,
        check=checks.template,
    ),
)

DISPOSABLE: Table = _with(
    Q,
    _p(
        "template",
        _QUBE,
        _TEMPLATE_HELP,
        required=True,
        optional=False,
        cloned=False,
        check=checks.disposable_template,
    ),
    _p(
        "dispid",
        _INT,
        "Number of the disposable, random, given at creation; its addresses follow from it.",
        write_once=True,
        required=True,
        cloned=False,
    ),
    _p(
        "auto_cleanup",
        _BOOL,
        "Whether the qube is removed when it stops.",
        default=constant(False),
        cloned=False,
    ),
    _ro(
        "is_preload",
        _BOOL,
        "Whether the qube waits, started, for its first use.",
        default=constant(False),
    ),
    _p(
        "include_in_backups",
        _BOOL,
        "Whether a backup includes the qube unless told otherwise.",
        default=defaults.kept_unless_cleaned_up,
        cloned=False,
    ),
    _p(
        "default_dispvm",
        _QUBE,
        "Template of the disposables that the qube starts without naming one. Empty: none.",
        default=defaults.own_template,
        check=checks.base_of_disposables,
    ),
)

ADMIN: Table = _table(
    _ro("name", _STR, "Name of the admin qube.", attribute=attrgetter("name")),
    _ro("uuid", _STR, "UUID of the admin qube: all zeros.", attribute=attrgetter("uuid")),
    _ro("qid", _INT, "Number of the admin qube: 0.", attribute=attrgetter("qid")),
    _p("label", _LABEL, "Colour of the admin qube.", default=defaults.black),
    _KLASS,
    _ICON,
    _DEFAULT_DISPVM,
    _DENIED,
    _IN_BACKUPS,
    _p(
        "keyboard_layout",
        _STR,
        "Keyboard of the admin qube: layout, variant and options, joined by plus signs.",
        default=constant("us++"),
        normalise=parsing.keyboard_layout,
    ),
    _ro("maxmem", _INT, "Memory of the machine, in MiB.", default=defaults.host_memory),
    _ro(
        "updateable",
        _BOOL,
        "Whether updates are installed in this qube and not in a template.",
        default=constant(True),
    ),
)

PROPERTIES: Mapping[Klass, Table] = MappingProxyType(
    {
        Klass.ADMIN: ADMIN,
        Klass.TEMPLATE: TEMPLATE,
        Klass.STANDALONE: STANDALONE,
        Klass.APP: APP,
        Klass.DISPOSABLE: DISPOSABLE,
        Klass.REMOTE: _table(_NAME, _UUID, _QID, _KLASS, _ICON),
    }
)
"""What each class of qube has."""


def _pool(name: str, volume: VolumeName, text: str, **rest: Any) -> Property:
    return _p(name, _STR, text, normalise=parsing.pool_for(volume), **rest)


GLOBAL: Table = _table(
    _p(
        "check_updates_vm",
        _BOOL,
        "Whether new qubes look for updates.",
        default=constant(True),
    ),
    _p("clockvm", _QUBE, "Qube that the others take the time from.", default=constant(None)),
    _p(
        "default_audiovm",
        _QUBE,
        "Qube that plays the sound of those that name none.",
        default=defaults.admin_qube,
    ),
    _p(
        "default_guivm",
        _QUBE,
        "Qube that shows the windows and prompts of those that name none.",
        default=defaults.admin_qube,
    ),
    _p(
        "default_dispvm",
        _QUBE,
        "Template of disposables for qubes that name none.",
        default=constant(None),
        check=checks.base_of_disposables,
    ),
    _p(
        "management_dispvm",
        _QUBE,
        "Template of the disposables from which qubes are managed.",
        default=constant(None),
        check=checks.base_of_disposables,
    ),
    _p(
        "default_kernel",
        _STR,
        "Version of the kernel for virtual machines that name none.",
        normalise=parsing.kernel,
    ),
    _p(
        "default_netvm",
        _QUBE,
        "Qube that gives network to those that name none. Empty: they have none.",
        default=constant(None),
        check=checks.default_netvm,
    ),
    _pool("default_pool", PRIVATE, "Pool for new volumes.", default=constant(LAYERS)),
    _pool(
        "default_pool_private",
        PRIVATE,
        "Pool for new private volumes.",
        default=global_property("default_pool"),
    ),
    _pool(
        "default_pool_root",
        ROOT,
        "Pool for new root volumes.",
        default=global_property("default_pool"),
    ),
    _pool(
        "default_pool_volatile",
        VOLATILE,
        "Pool for new volatile volumes.",
        default=global_property("default_pool"),
    ),
    _pool("default_pool_kernel", KERNEL, "Pool for kernels.", default=constant(KERNELS)),
    _p(
        "default_qrexec_timeout",
        _INT,
        "How many seconds a qube may take to start.",
        default=constant(60),
        at_least=1,
        at_most=_SECONDS_MAX,
    ),
    _p(
        "default_shutdown_timeout",
        _INT,
        "How many seconds a qube may take to shut down.",
        default=constant(60),
        at_least=1,
        at_most=_SECONDS_MAX,
    ),
    _p(
        "default_template",
        _QUBE,
        "Template of new qubes that name none.",
        check=checks.template_or_none,
    ),
    _ro("maxmem", _INT, "Memory of the machine, in MiB.", default=defaults.host_memory),
    _ro("no_cpus", _INT, "Processors of the machine.", default=defaults.host_cpus),
    _p(
        "stats_interval",
        _INT,
        "How many seconds pass between two reports of statistics.",
        default=constant(3),
        at_least=1,
        at_most=_SECONDS_MAX,
    ),
    _p("updatevm", _QUBE, "Qube through which the machine is updated.", default=constant(None)),
)
"""What the system as a whole has."""
