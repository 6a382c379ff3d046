"""What a qube has of a machine: memory, processors, kernel (sheet `admin-api`, section 5.1)."""

from __future__ import annotations

from caisson.model import defaults, parsing
from caisson.model.declarations.declare import (
    BOOL,
    CPUS_MAX,
    INT,
    MEMORY_MAX,
    SECONDS_MAX,
    STR,
    Table,
    computed,
    prop,
    table,
)
from caisson.model.defaults import global_property, of_template, runtime
from caisson.model.property import constant

MACHINE: Table = table(
    prop("debug", BOOL, "Whether the qube runs with debugging aids.", default=constant(False)),
    prop(
        "kernel",
        STR,
        "Version of the kernel to boot a virtual machine with. Empty: the one in its root volume.",
        default=of_template("kernel", global_property("default_kernel")),
        normalise=parsing.kernel,
    ),
    prop(
        "kernelopts",
        STR,
        "Command line of the kernel of a virtual machine.",
        default=defaults.kernel_options,
        normalise=parsing.kernel_options,
    ),
    prop(
        "bootmode",
        STR,
        "Mode in which the qube boots, one of those that its features offer.",
        default=defaults.bootmode,
        normalise=parsing.one_line,
    ),
    prop(
        "memory",
        INT,
        "Memory that the qube starts with, in MiB.",
        default=of_template("memory", constant(400)),
        at_least=1,
        at_most=MEMORY_MAX,
    ),
    prop(
        "maxmem",
        INT,
        "Memory that the qube may grow to, in MiB. 0: it keeps what it starts with.",
        default=of_template("maxmem", defaults.maxmem),
        at_least=0,
        at_most=MEMORY_MAX,
    ),
    prop(
        "vcpus",
        INT,
        "How many processors the qube may use.",
        default=of_template("vcpus", constant(2)),
        at_least=1,
        at_most=CPUS_MAX,
    ),
    prop(
        "stubdom_mem",
        INT,
        "Memory of the stub domain, in MiB.",
        default=constant(None),
        at_least=1,
        at_most=MEMORY_MAX,
    ),
    computed(
        "stubdom_xid",
        INT,
        "Number of the running stub domain, or -1.",
        default=runtime("stubdom_xid", -1),
    ),
    computed(
        "stubdom_uuid",
        STR,
        "UUID of the running stub domain, or nothing.",
        default=runtime("stubdom_uuid", ""),
    ),
    computed(
        "xid",
        INT,
        "Number of the running qube, new at each start, or -1.",
        default=runtime("xid", -1),
    ),
    computed(
        "start_time",
        STR,
        "When the qube started, in seconds since the epoch, or nothing.",
        default=runtime("start_time", None),
    ),
    prop(
        "virt_mode",
        STR,
        "Kind of wall around the qube: container, or pvh, hvm, pv for a virtual machine.",
        default=of_template("virt_mode", constant("container")),
        normalise=parsing.virt_mode,
    ),
    prop(
        "qrexec_timeout",
        INT,
        "How many seconds the qube may take to start.",
        default=of_template("qrexec_timeout", global_property("default_qrexec_timeout")),
        at_least=1,
        at_most=SECONDS_MAX,
    ),
    prop(
        "shutdown_timeout",
        INT,
        "How many seconds the qube may take to shut down.",
        default=of_template("shutdown_timeout", global_property("default_shutdown_timeout")),
        at_least=1,
        at_most=SECONDS_MAX,
    ),
)
