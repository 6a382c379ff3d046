"""Qubes as containers, by way of any OCI runtime.

Trusts the kernel, the OCI runtime and the layers' directory of the pool.
Does not trust what is written in the layers, nor any process of a qube.
"""

from caisson.engines.oci.engine import OciEngine
from caisson.engines.oci.mounts import enter_private_namespace

__all__ = ["OciEngine", "enter_private_namespace"]
