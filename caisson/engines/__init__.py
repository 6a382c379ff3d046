"""Where a qube runs: one interface, an engine on OCI runtimes, and one in memory for tests.

Trusts its caller, the lifecycle, which alone may use it, and the kernel.
Does not trust anything that a qube wrote: layers, volumes, its processes' output and reports.
"""

from caisson.engines.barriers import BARRIERS, missing
from caisson.engines.interface import (
    ID_RANGE,
    Bind,
    Engine,
    Instance,
    RunSpec,
    Tree,
    Usage,
)
from caisson.engines.memory import MemoryEngine
from caisson.engines.oci import OciEngine, enter_private_namespace

__all__ = [
    "BARRIERS",
    "ID_RANGE",
    "Bind",
    "Engine",
    "Instance",
    "MemoryEngine",
    "OciEngine",
    "RunSpec",
    "Tree",
    "Usage",
    "enter_private_namespace",
    "missing",
]
