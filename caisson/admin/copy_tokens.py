"""Tokens of copies: what `CloneFrom` hands out and `CloneTo` takes back, once."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from caisson.errors import CopyTokenNotFoundError
from caisson.model import Qube
from caisson.names import VolumeName

MOST: Final = 64
"""How many a caller may hold at once; a further one takes the place of its oldest."""
MOST_CALLERS: Final = 256
"""How many callers may hold some; a further one takes the place of who came first."""
SECONDS: Final = 600.0
"""How long a token is good for."""
_BYTES: Final = 16
Source = tuple[Qube, VolumeName]


@dataclass(frozen=True, slots=True)
class CopyTokens:
    """The copies that were begun, by their callers. Kept in memory only.

    Args:
        clock: tells the seconds that have passed since some moment.
    """

    clock: Callable[[], float] = time.monotonic
    _of: OrderedDict[Qube, OrderedDict[str, tuple[Source, float]]] = field(
        default_factory=OrderedDict
    )

    def issue(self, origin: Qube, source: Source) -> str:
        """Return a token of 32 characters for a copy from `source`, good for `origin` alone."""
        mine = self._of.setdefault(origin, OrderedDict())
        token = secrets.token_hex(_BYTES)
        mine[token] = (source, self.clock() + SECONDS)
        if len(mine) > MOST:
            mine.popitem(last=False)
        if len(self._of) > MOST_CALLERS:
            self._of.popitem(last=False)
        return token

    def redeem(self, origin: Qube, untrusted_token: str) -> Source:
        """Take a token back and return what it stands for; it is of no use from now on.

        Raises:
            CopyTokenNotFoundError: it was never issued to `origin`, was used, or is too old.
        """
        mine = self._of.get(origin, OrderedDict())
        source, end = mine.pop(untrusted_token, (None, 0.0))
        if not mine:
            self._of.pop(origin, None)
        if source is None or self.clock() > end:
            raise CopyTokenNotFoundError(
                "no copy of a volume was begun with that token",
                hint=f"begin it anew: a token can be used once, within {SECONDS:.0f} seconds",
            )
        return source
