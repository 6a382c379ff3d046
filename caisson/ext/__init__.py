"""Core extensions: what reacts to events, adds to changes, and decides who may do what.

Room: floor 2. An extension is part of the trusted core: it runs inside qubesd, and one that
cannot be loaded keeps the daemon from starting, since it may be a barrier.
Extensions are found through the entry points `caisson.ext`. What they are told of qubes is
trusted as far as the model checked it; what a qube announces itself carries `untrusted_`.
Called by the Admin API (`ask`) and by the lifecycle (`rules`, `judge`).
"""

from caisson.ext.host import Extensions
from caisson.ext.interface import (
    Core,
    Extension,
    Filter,
    NoPolicy,
    Policy,
    Question,
    Shown,
    View,
    judgement,
    on,
    permission,
    rule,
)
from caisson.ext.rights import Right

__all__ = [
    "Core",
    "Extension",
    "Extensions",
    "Filter",
    "NoPolicy",
    "Policy",
    "Question",
    "Right",
    "Shown",
    "View",
    "judgement",
    "on",
    "permission",
    "rule",
]
