"""Questions to a person, and notices: one shown for each qube, a few waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import structlog

from caisson.errors import CaissonError
from caisson.policy import Ask, SystemInfo
from caisson.qrexec import prompt
from caisson.qrexec.calls import Call

MOST_WAITING = 8
MOST_NOTICES = 4

_log = structlog.get_logger("prompt")


class Person:
    """Whoever answers at the prompt agent.

    Args:
        agent: the socket of the prompt agent.
        background: runs what nobody waits for.
    """

    def __init__(
        self, agent: Path, background: Callable[[Coroutine[Any, Any, None]], None]
    ) -> None:
        self._agent = agent
        self._background = background
        self._queues: dict[str, _Queue] = {}
        self._notices = 0

    async def ask(
        self, call: Call, ask: Ask, system: SystemInfo, infos: Mapping[str, Mapping[str, Any]]
    ) -> prompt.Answer:
        """Ask which target the call may go to; cancelling takes the question back.

        Raises:
            CaissonError: nobody could be asked, or nobody answered.
        """
        question = _question(call, ask, system, infos)
        queue = self._queues.setdefault(call.source, _Queue())
        if queue.length > MOST_WAITING:
            raise CaissonError("too many questions of this qube wait for a person")
        try:
            async with queue:
                return await prompt.ask(self._agent, question)
        except CaissonError as e:
            _log.warning("nobody could be asked", source=call.source, error=str(e))
            raise
        finally:
            if not queue.length:
                self._queues.pop(call.source, None)

    def tell(self, call: Call, resolution: str, target: str) -> None:
        """Tell the person what happened to a call, if somebody listens and is not flooded."""
        if self._notices < MOST_NOTICES:
            self._notices += 1
            argument = f"+{call.argument}"
            notice = prompt.Notice(resolution, call.service, argument, call.source, target)
            self._background(self._tell(notice))

    async def _tell(self, notice: prompt.Notice) -> None:
        try:
            await prompt.notify(self._agent, notice)
        finally:
            self._notices -= 1


def _question(
    call: Call, ask: Ask, system: SystemInfo, infos: Mapping[str, Mapping[str, Any]]
) -> prompt.Question:
    targets = list(ask.targets)
    involved = {call.source, *(t.removeprefix("@dispvm:") for t in targets)}
    domains = system.domains
    icons = {d.name: d.icon for d in domains.values() if d.icon}
    bases = [d for d in domains.values() if d.template_for_dispvms]
    icons |= {f"@dispvm:{d.name}": d.icon for d in bases if d.icon}
    walls = {name: infos.get(name, {}).get("isolation") for name in involved}
    return prompt.Question(
        source=call.source,
        service=call.service,
        argument=f"+{call.argument}",
        targets=targets,
        default_target=ask.default_target or "",
        icons=icons,
        labels={n: d.label for n in involved if (d := domains.get(n)) and d.label},
        isolation={name: str(wall) for name, wall in walls.items() if wall},
    )


class _Queue:
    """The questions of one qube."""

    def __init__(self) -> None:
        self.length = 0
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        self.length += 1
        try:
            await self._lock.acquire()
        except BaseException:
            self.length -= 1
            raise

    async def __aexit__(self, *_: object) -> None:
        self.length -= 1
        self._lock.release()
