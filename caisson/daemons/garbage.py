"""When the daemons look for cyclic garbage: each full look takes 0.2 s with 10,000 qubes."""

from __future__ import annotations

import gc


def wait() -> None:
    """Do not look at all while the daemon starts: nearly all that it makes stays."""
    gc.disable()


def spare_what_is() -> None:
    """Look from now on, but never again at what there is now, and less often than usual."""
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
    gc.enable()
