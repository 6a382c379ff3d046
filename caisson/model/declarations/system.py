"""What the system as a whole has (sheet `admin-api`, section 5.3)."""

from __future__ import annotations

from typing import Any

from caisson.model import checks, defaults, parsing
from caisson.model.declarations.declare import (
    BOOL,
    INT,
    QUBE,
    SECONDS_MAX,
    STR,
    Table,
    computed,
    prop,
    table,
)
from caisson.model.defaults import global_property
from caisson.model.property import Property, constant
from caisson.model.volumes import KERNEL, KERNELS, LAYERS, PRIVATE, ROOT, VOLATILE
from caisson.names import VolumeName


def _pool(name: str, volume: VolumeName, text: str, **rest: Any) -> Property:
    return prop(name, STR, text, normalise=parsing.pool_for(volume), **rest)


GLOBAL: Table = table(
    prop(
        "check_updates_vm",
        BOOL,
        "Whether new qubes look for updates; where not, they are made with the feature "
        "check-updates switched off.",
        default=constant(True),
    ),
    prop(
        "clockvm",
        QUBE,
        "Qube that the others take the time from; empty: none. The feature service.clocksync "
        "follows it.",
        default=constant(None),
    ),
    prop(
        "default_audiovm",
        QUBE,
        "Qube that plays the sound of those that name none; empty: none does. It has an effect on "
        "qubes with a sound daemon.",
        default=defaults.admin_qube,
    ),
    prop(
        "default_guivm",
        QUBE,
        "Qube that shows the windows and prompts of those that name none; empty: none does.",
        default=defaults.admin_qube,
    ),
    prop(
        "default_dispvm",
        QUBE,
        "Template of the disposables of qubes that name none; empty: they start none.",
        default=constant(None),
        check=checks.base_of_disposables,
    ),
    prop(
        "management_dispvm",
        QUBE,
        "Template of the disposables from which qubes are managed that name none.",
        default=constant(None),
        check=checks.base_of_disposables,
    ),
    prop(
        "default_kernel",
        STR,
        "Version of the kernel for qubes that name none, one of those under "
        "/var/lib/qubes/vm-kernels. It has an effect on virtual machines; a container uses the "
        "kernel of the machine.",
        normalise=parsing.kernel,
        check=checks.kernel,
    ),
    prop(
        "default_netvm",
        QUBE,
        "Qube that gives network to those that name none; empty: they have none.",
        default=constant(None),
        check=checks.default_netvm,
    ),
    _pool(
        "default_pool",
        PRIVATE,
        "Pool for new volumes whose kind has no pool of its own.",
        default=constant(LAYERS),
    ),
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
    _pool(
        "default_pool_kernel",
        KERNEL,
        "Pool of the kernels of virtual machines; there is only the one.",
        default=constant(KERNELS),
    ),
    prop(
        "default_qrexec_timeout",
        INT,
        "How many seconds a qube may take to start that says nothing else.",
        default=constant(60),
        at_least=1,
        at_most=SECONDS_MAX,
    ),
    prop(
        "default_shutdown_timeout",
        INT,
        "How many seconds a qube may take to shut down that says nothing else.",
        default=constant(60),
        at_least=1,
        at_most=SECONDS_MAX,
    ),
    prop(
        "default_template",
        QUBE,
        "Template of new qubes that name none; empty: they have to.",
        check=checks.template_or_none,
    ),
    computed("maxmem", INT, "Memory of the machine, in MiB.", default=defaults.host_memory),
    computed("no_cpus", INT, "Processors of the machine.", default=defaults.host_cpus),
    prop(
        "stats_interval",
        INT,
        "How many seconds pass between two reports of statistics.",
        default=constant(3),
        at_least=1,
        at_most=SECONDS_MAX,
    ),
    prop(
        "updatevm",
        QUBE,
        "Qube through which the machine is updated and templates are fetched; empty: none.",
        default=constant(None),
    ),
)
"""What the system as a whole has."""
