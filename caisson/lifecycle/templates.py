"""Templates built on this machine: a recipe becomes the root volume of a TemplateVM."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from caisson.errors import NotHaltedError, QubeExistsError
from caisson.lifecycle.qubes import Qubes
from caisson.model import Klass
from caisson.names import LabelName, QubeName
from caisson.storage import Pool, debian_template

LABEL = LabelName("black")


async def build(qubes: Qubes, pool: Pool, untrusted_recipe: str) -> AsyncGenerator[str, None]:
    """Build a recipe, and make the template of its name, or give that template a new root.

    Yields:
        One line for a person now and then. A build that is left early leaves nothing.

    Raises:
        StorageError: no such recipe, or it cannot be built.
        QubeExistsError: the name belongs to a qube that is no template.
        NotHaltedError: the template is running.
    """
    recipe = debian_template.load_recipe(untrusted_recipe)
    name = QubeName.parse(recipe.name)
    existing = qubes.system.qubes.get(name)
    if existing is not None and existing.klass is not Klass.TEMPLATE:
        raise QubeExistsError(
            f"qube `{name}` exists, and is no template", hint="remove it, or rename the recipe"
        )
    if existing is not None and qubes.is_up(existing):
        raise NotHaltedError(
            f"template `{name}` is running", hint=f"shut it down: `qvm-shutdown --wait {name}`"
        )
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    building = asyncio.ensure_future(debian_template.build(pool, recipe, lines.put_nowait))
    building.add_done_callback(lambda _: lines.put_nowait(None))
    try:
        while (line := await lines.get()) is not None:
            yield line
        layer = await building
    finally:
        building.cancel()
        await asyncio.gather(building, return_exceptions=True)
    await qubes.install_template(name, LABEL, layer)
