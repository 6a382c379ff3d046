"""What methods need beside the life of qubes: set by the daemon that puts the parts together."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from caisson.errors import NotImplementedHereError
from caisson.findings import Finding
from caisson.names import shown


def _unmeasured(_layer: str) -> int:
    return 0


async def _nothing_to_check() -> Sequence[Finding]:
    return ()


async def _no_recipes(recipe: str) -> AsyncGenerator[str, None]:
    raise NotImplementedHereError(f"template recipe `{shown(recipe)}` does not exist here")
    yield ""  # unreachable: makes this a generator


@dataclass(frozen=True, slots=True)
class Services:
    """Functions of other rooms.

    Args:
        layer_usage: bytes on disk of a layer; may take a while, and runs in a thread.
        doctor: checks the machine.
        build_template: builds a template from a recipe and yields a line of progress at a time.
        recipes: names of the recipes that can be built.
    """

    layer_usage: Callable[[str], int] = _unmeasured
    doctor: Callable[[], Awaitable[Sequence[Finding]]] = _nothing_to_check
    build_template: Callable[[str], AsyncGenerator[str, None]] = _no_recipes
    recipes: tuple[str, ...] = ()
