"""What the text of a refusal may tell: names of qubes only to who may list them.

The model refuses in the words of the admin qube, which sees everything. Names of qubes stand in
backticks there, alone or as part of a value; what others may not know is taken out here, in one
place, so that no error has to think of it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from caisson.errors import CaissonError
from caisson.ext import Core
from caisson.model import Event, Qube
from caisson.names import DOM0

_LEFT_OUT: Final = "…"
_ALONE: Final = re.compile(rf"(?:(?:the )?((?:network )?qube) )?`{_LEFT_OUT}`")
_TEXTS: Final = ("reason",)
_VALUES: Final = ("source",)
"""Arguments of events that were made for the admin qube: a text, and the name of a volume."""


@dataclass(frozen=True, slots=True)
class Discretion:
    """What one caller may be told.

    Args:
        core: knows the qubes and the policy.
        origin: the caller; None for one that does not exist.
        untrusted_said: all that it said itself, and may be told again.
    """

    core: Core
    origin: Qube | None
    untrusted_said: str = ""

    def error(self, error: CaissonError) -> CaissonError:
        """The error, without the names of qubes that the caller may not list."""
        if self._sees_all():
            return error
        told = copy.copy(error)
        told.message = self._text(error.message)
        if error.hint is not None and self._text(error.hint) != error.hint:
            told.hint = "the qube that this is about is not one that you may list"
        return told

    def arguments(self, event: Event) -> Mapping[str, str]:
        """The arguments of an event, with the same left out of what is no value of its qube."""
        if self._sees_all() or not event.kwargs.keys() & {*_TEXTS, *_VALUES}:
            return event.kwargs
        texts = {key: self._text(event.kwargs[key]) for key in _TEXTS if key in event.kwargs}
        values = {key: self._value(event.kwargs[key]) for key in _VALUES if key in event.kwargs}
        return {**event.kwargs, **texts, **values}

    def _sees_all(self) -> bool:
        return self.origin is not None and self.origin.name == DOM0

    def _text(self, text: str) -> str:
        parts = text.split("`")
        # Where a stray backtick came with a value of the caller's, any part may be a value.
        values = slice(1, None, 2) if len(parts) % 2 else slice(None)
        parts[values] = map(self._value, parts[values])
        return _ALONE.sub(lambda match: f"another {match[1] or 'qube'}", "`".join(parts))

    def _value(self, value: str) -> str:
        names = [re.escape(name) for name in self.core.system.qubes if name in value]
        if not names:
            return value
        # The longest first: a name may be the end of another one, or follow a prefix of a tag.
        anyone = "|".join(sorted(names, key=len, reverse=True))
        whole = re.compile(rf"(?<![A-Za-z0-9_.])(?:{anyone})(?![A-Za-z0-9_.-])")
        return whole.sub(lambda match: match[0] if self._knows(match[0]) else _LEFT_OUT, value)

    def _knows(self, name: str) -> bool:
        if name == DOM0 or name in self.untrusted_said:
            return True
        origin = self.origin
        return origin is not None and (
            name == origin.name or self.core.policy.allows(origin.name, "admin.vm.List", "", name)
        )
