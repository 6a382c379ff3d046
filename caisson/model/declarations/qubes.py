"""What qubes have (sheet `admin-api`, sections 5.1 and 5.2)."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from types import MappingProxyType

from caisson.model import checks, defaults, parsing
from caisson.model.declarations.declare import (
    BOOL,
    INT,
    LABEL,
    QUBE,
    STR,
    Table,
    computed,
    extended,
    following,
    inherited,
    prop,
    table,
)
from caisson.model.declarations.machine import MACHINE
from caisson.model.declarations.network import NETVM_HELP, NETWORK
from caisson.model.defaults import global_property
from caisson.model.klass import Klass
from caisson.model.property import constant

_NAME = prop(
    "name",
    STR,
    "Name of the qube, given at creation.",
    attribute=attrgetter("name"),
    write_once=True,
    cloned=False,
)
_UUID = prop(
    "uuid",
    STR,
    "UUID of the qube, random, given at creation; it is never used again.",
    attribute=attrgetter("uuid"),
    write_once=True,
    cloned=False,
)
_QID = prop(
    "qid",
    INT,
    "Number of the qube, the lowest free one at creation; its addresses follow from it.",
    attribute=attrgetter("qid"),
    write_once=True,
    cloned=False,
)
_KLASS = computed("klass", STR, "Class of the qube.", default=defaults.klass)
_ICON = computed("icon", STR, "Name of the icon: kind of qube and label.", default=defaults.icon)
_IN_BACKUPS_HELP = "Whether a backup that names no qubes includes this one."
_IN_BACKUPS = prop(
    "include_in_backups",
    BOOL,
    _IN_BACKUPS_HELP,
    default=constant(True),
    cloned=False,
)
_LABEL = prop(
    "label",
    LABEL,
    "Colour by which people recognise the qube and its degree of trust.",
    required=True,
    cloned=False,
)
_DENIED = prop(
    "devices_denied",
    STR,
    "Codes of device interfaces, seven characters each, written one after the other: a device "
    "that offers one of them is not attached to the qube.",
    default=constant(""),
    normalise=parsing.denied_interfaces,
)
_DEFAULT_DISPVM = following(
    "default_dispvm",
    "Template of the disposables that the qube starts without naming one. Empty: it starts none.",
    "default_dispvm",
    check=checks.base_of_disposables,
)
_KEYBOARD_EFFECT = (
    "It has an effect on qubes whose windows a GUI qube shows; a qube without windows keeps it."
)
_KEYBOARD = prop(
    "keyboard_layout",
    STR,
    "Keyboard of the qube: layout, variant and options, joined by plus signs. " + _KEYBOARD_EFFECT,
    default=defaults.keyboard_layout,
    normalise=parsing.keyboard_layout,
)
_BASE = prop(
    "template_for_dispvms",
    BOOL,
    "Whether disposables may be made from this qube.",
    default=constant(False),
    cloned=False,
    check=checks.still_a_base,
)

Q: Table = MappingProxyType(
    {
        **table(
            _NAME,
            _UUID,
            _QID,
            _LABEL,
            _KLASS,
            _ICON,
            prop(
                "autostart",
                BOOL,
                "Whether the qube starts with the machine.",
                default=constant(False),
                cloned=False,
            ),
            prop(
                "backup_timestamp",
                INT,
                "When the qube was last part of a backup, in seconds since the epoch.",
                default=constant(None),
                cloned=False,
            ),
            _DEFAULT_DISPVM,
            inherited(
                "management_dispvm",
                QUBE,
                "Template of the disposables from which the qube is managed.",
                global_property("management_dispvm"),
                check=checks.base_of_disposables,
            ),
            inherited(
                "default_user",
                STR,
                "User as whom programs start in the qube unless a call or the policy names one.",
                constant("user"),
                normalise=parsing.user_name,
            ),
            _DENIED,
            _IN_BACKUPS,
            prop(
                "installed_by_rpm",
                BOOL,
                "Whether a package of the machine owns the qube; such a qube cannot be removed.",
                default=constant(False),
                cloned=False,
            ),
            computed(
                "updateable",
                BOOL,
                "Whether updates are installed in this qube and not in a template.",
                default=defaults.updateable,
            ),
            following(
                "guivm",
                "Qube that shows the windows and prompts of this one; empty: none does. The tag "
                "guivm-NAME follows it. It has an effect on qubes with a graphical session.",
                "default_guivm",
            ),
            following(
                "audiovm",
                "Qube that plays the sound of this one; empty: none does. The tag audiovm-NAME "
                "follows it. It has an effect on qubes with a sound daemon.",
                "default_audiovm",
            ),
            _KEYBOARD,
        ),
        **MACHINE,
        **NETWORK,
    }
)
"""What TemplateVM, AppVM, StandaloneVM and DispVM have in common."""

_TEMPLATE_HELP = "Qube whose root volume this one starts from. It changes while halted only."

TEMPLATE: Table = extended(
    Q,
    prop(
        "netvm",
        QUBE,
        NETVM_HELP,
        default=constant(None),
        check=checks.netvm,
    ),
    prop(
        "appvm_default_bootmode",
        STR,
        "Mode in which the qubes based on this template boot. It has an effect on virtual "
        "machines; a container has no boot to choose a mode for.",
        default=defaults.appvm_default_bootmode,
    ),
)

STANDALONE: Table = extended(Q, _BASE)

APP: Table = extended(
    Q,
    _BASE,
    prop(
        "template",
        QUBE,
        _TEMPLATE_HELP,
        required=True,
        optional=False,
        cloned=False,
        check=checks.template,
    ),
)

DISPOSABLE: Table = extended(
    Q,
    prop(
        "template",
        QUBE,
        _TEMPLATE_HELP,
        required=True,
        optional=False,
        cloned=False,
        check=checks.disposable_template,
    ),
    prop(
        "dispid",
        INT,
        "Number of the disposable, random, given at creation; its addresses follow from it.",
        write_once=True,
        required=True,
        cloned=False,
    ),
    prop(
        "auto_cleanup",
        BOOL,
        "Whether the qube is removed when it stops.",
        default=constant(False),
        cloned=False,
    ),
    computed(
        "is_preload",
        BOOL,
        "Whether the qube waits, started, for its first use.",
        default=constant(False),
    ),
    prop(
        "include_in_backups",
        BOOL,
        _IN_BACKUPS_HELP,
        default=defaults.kept_unless_cleaned_up,
        cloned=False,
    ),
    prop(
        "default_dispvm",
        QUBE,
        "Template of the disposables that the qube starts without naming one. Empty: none.",
        default=defaults.own_template,
        check=checks.base_of_disposables,
    ),
)

ADMIN: Table = table(
    computed("name", STR, "Name of the admin qube.", attribute=attrgetter("name")),
    computed("uuid", STR, "UUID of the admin qube: all zeros.", attribute=attrgetter("uuid")),
    computed("qid", INT, "Number of the admin qube: 0.", attribute=attrgetter("qid")),
    prop("label", LABEL, "Colour of the admin qube.", default=defaults.black),
    _KLASS,
    _ICON,
    _DEFAULT_DISPVM,
    _DENIED,
    _IN_BACKUPS,
    prop(
        "keyboard_layout",
        STR,
        "Keyboard of the admin qube: layout, variant and options, joined by plus signs. The "
        "qubes whose windows it shows have it by default.",
        default=constant("us++"),
        normalise=parsing.keyboard_layout,
    ),
    computed("maxmem", INT, "Memory of the machine, in MiB.", default=defaults.host_memory),
    computed(
        "updateable",
        BOOL,
        "Whether updates are installed in this qube and not in a template.",
        default=constant(True),
    ),
)

REMOTE: Table = table(
    _NAME,
    _UUID,
    _QID,
    _LABEL,
    _KLASS,
    _ICON,
    prop(
        "include_in_backups",
        BOOL,
        "Whether a backup that names no qubes includes the record of this one.",
        default=constant(False),
    ),
    prop(
        "relayvm",
        QUBE,
        "Qube that carries calls to and from this one; empty: no call reaches it. The tag "
        "relayvm-NAME follows it.",
        default=constant(None),
    ),
    prop(
        "remote_name",
        STR,
        "Name of the qube on the machine where it runs; no value: the same as here.",
        default=constant(None),
    ),
    prop(
        "transport_rpc",
        STR,
        "Service of the relay qube that carries the calls; no value: no call reaches it.",
        default=constant(None),
    ),
)
"""The record of a qube that runs on another machine."""

PROPERTIES: Mapping[Klass, Table] = MappingProxyType(
    {
        Klass.ADMIN: ADMIN,
        Klass.TEMPLATE: TEMPLATE,
        Klass.STANDALONE: STANDALONE,
        Klass.APP: APP,
        Klass.DISPOSABLE: DISPOSABLE,
        Klass.REMOTE: REMOTE,
    }
)
"""What each class of qube has."""
