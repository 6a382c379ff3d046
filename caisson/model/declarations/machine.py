"""What a qube has of a machine: memory, processors, kernel (sheet `admin-api`, section 5.1).

What only a virtual machine can use is kept and checked for every qube, and its help says so:
tools and formulas find it, and it holds as soon as `virt_mode` moves the qube behind that wall.
"""

from __future__ import annotations

from caisson.model import checks, defaults, parsing
from caisson.model.declarations.declare import (
    BOOL,
    CPUS_MAX,
    INT,
    MEMORY_MAX,
    SECONDS_MAX,
    STR,
    Table,
    computed,
    inherited,
    prop,
    table,
)
from caisson.model.defaults import global_property, runtime
from caisson.model.property import constant

MACHINE: Table = table(
    inherited(
        "virt_mode",
        STR,
        "Kind of wall around the qube: container, or pvh, hvm, pv for a virtual machine. "
        "It has an effect at the next start; pvh, hvm and pv need an engine for virtual machines, "
        "and where the machine has none, the qube does not start.",
        constant("container"),
        normalise=parsing.virt_mode,
    ),
    inherited(
        "memory",
        INT,
        "Memory that the qube starts with, in MiB. "
        "For a container it is the limit where maxmem is 0, and has no effect otherwise.",
        constant(400),
        at_least=1,
        at_most=MEMORY_MAX,
    ),
    inherited(
        "maxmem",
        INT,
        "Memory that the qube may grow to, in MiB; 0 means that it keeps what it starts with. "
        "For a container it is the limit, from the next start on.",
        defaults.maxmem,
        at_least=0,
        at_most=MEMORY_MAX,
        check=checks.maxmem,
    ),
    inherited(
        "vcpus",
        INT,
        "How many processors the qube may use at once, from the next start on.",
        constant(2),
        at_least=1,
        at_most=CPUS_MAX,
    ),
    inherited(
        "kernel",
        STR,
        "Version of the kernel to boot with, one of those under /var/lib/qubes/vm-kernels; empty: "
        "the one in its own root volume. It has an effect on virtual machines; "
        "a container uses the kernel of the machine.",
        global_property("default_kernel"),
        normalise=parsing.kernel,
        check=checks.kernel,
    ),
    prop(
        "kernelopts",
        STR,
        "Command line of the kernel, at most 512 characters; not used where kernel is empty. "
        "It has an effect on virtual machines; a container uses the kernel of the machine.",
        default=defaults.kernel_options,
        inherited=True,
        normalise=parsing.kernel_options,
    ),
    prop(
        "bootmode",
        STR,
        "Mode in which the qube boots, one of those that its boot-mode features offer. "
        "It has an effect on virtual machines; a container has no boot to choose a mode for.",
        default=defaults.bootmode,
    ),
    prop(
        "debug",
        BOOL,
        "Whether the qube runs with debugging aids, such as its screen shown from the first "
        "moment. It has an effect on virtual machines; a container has none to show.",
        default=constant(False),
    ),
    prop(
        "stubdom_mem",
        INT,
        "Memory of the stub domain that emulates devices, in MiB; no value: the engine chooses. "
        "It has an effect on virtual machines with virt_mode hvm under Xen.",
        default=constant(None),
        at_least=1,
        at_most=MEMORY_MAX,
    ),
    computed(
        "stubdom_xid",
        INT,
        "Number of the running stub domain, or -1. Only virtual machines with virt_mode hvm "
        "under Xen have one.",
        default=runtime("stubdom_xid", -1),
    ),
    computed(
        "stubdom_uuid",
        STR,
        "UUID of the running stub domain, or nothing. Only virtual machines with virt_mode hvm "
        "under Xen have one.",
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
    inherited(
        "qrexec_timeout",
        INT,
        "How many seconds the qube may take to start; it is ended when it takes longer.",
        global_property("default_qrexec_timeout"),
        at_least=1,
        at_most=SECONDS_MAX,
    ),
    inherited(
        "shutdown_timeout",
        INT,
        "How many seconds a shutdown that waits may take before it counts as failed.",
        global_property("default_shutdown_timeout"),
        at_least=1,
        at_most=SECONDS_MAX,
    ),
)
