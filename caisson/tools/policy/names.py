"""Names on a command line that may be slips: a filter that nothing fits would look reassuring."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from caisson.errors import QubeNotFoundError
from caisson.names import shown
from caisson.tools import terminal

if TYPE_CHECKING:
    from caisson.policy import Rule, SystemInfo

_LONGEST = 64
_NEAR = 3


def near(name: str, known: Iterable[str]) -> list[str]:
    """What a name may be a slip of."""
    from difflib import get_close_matches

    return get_close_matches(name, known, _NEAR) if len(name) <= _LONGEST else []


def question(names: Sequence[str]) -> str | None:
    """Whether one of these was meant; None if there is none."""
    return f"did you mean {' or '.join(f'`{name}`' for name in names)}?" if names else None


def qube(untrusted: str, system: SystemInfo) -> str:
    """The name of the qube that a name or `uuid:` form means.

    Raises:
        QubeNotFoundError: there is none; names those that are close.
    """
    found = system.find(untrusted)
    if found is None:
        raise QubeNotFoundError(
            f"there is no qube `{shown(untrusted)}`",
            question(near(untrusted, system.domains)) or "list the qubes with `qvm-ls`",
        )
    return found.name


def note_unnamed(services: Iterable[str], rules: Iterable[Rule]) -> None:
    """Tell which services no rule names, and which named ones are close."""
    named = {rule.service for rule in rules}
    for service in services:
        if service not in named:
            meant = question(near(service, named))
            terminal.say(
                f"note: no rule names the service `{shown(service)}`"
                + (f"; {meant}" if meant else "")
            )
