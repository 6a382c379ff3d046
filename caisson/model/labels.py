"""Labels: the colours by which people tell qubes apart."""

from __future__ import annotations

import re
from dataclasses import dataclass

from caisson.names import LabelName


@dataclass(frozen=True, slots=True)
class Label:
    """A named colour; `color` is `0xrrggbb`."""

    name: LabelName
    index: int
    color: str


BUILT_IN = tuple(
    Label(LabelName(name), index, color)
    for index, name, color in (
        (1, "red", "0xcc0000"),
        (2, "orange", "0xf57900"),
        (3, "yellow", "0xedd400"),
        (4, "green", "0x73d216"),
        (5, "gray", "0x555555"),
        (6, "blue", "0x3465a4"),
        (7, "purple", "0x75507b"),
        (8, "black", "0x000000"),
    )
)
"""The labels that every system has and that nobody can remove."""

REFERENCE = re.compile(r"(?:label-)?([0-9]{1,9})")
"""A label by its number."""
