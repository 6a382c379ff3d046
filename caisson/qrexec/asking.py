"""Questions to a person, and notices: fair among qubes, few for each, none of a muted one.

A question takes the turn of the qube that stands behind it (`origin_of`). It costs a token when
it is shown; allowing gives the token back, so that only what the person did not want runs out.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any

from caisson.errors import CaissonError
from caisson.names import DOM0
from caisson.paths import Paths
from caisson.policy import Ask, SystemInfo
from caisson.qrexec import gui_qube, prompt, sparing
from caisson.qrexec.calls import Call
from caisson.qrexec.known import Known
from caisson.qrexec.patience import Allowance, Clock, Mute, Mutes
from caisson.qrexec.turns import Turns

QUESTIONS_AT_ONCE = 10
SECONDS_A_QUESTION = 12.0
"""Unwanted questions of a qube: ten, and five a minute for good."""

NOTICES_AT_ONCE = 10
SECONDS_A_NOTICE = 6.0
MOST_NOTICES = 4
"""Notices on their way at the same time, of all qubes."""

_DISPOSABLE = "disp-created-by-"


class Person:
    """Whoever answers for a qube: at the prompt agents here, or in its GUI qube.

    Args:
        paths: the instance.
        known: what exists.
        background: runs what nobody waits for.
        clock: seconds that never run backwards.
    """

    def __init__(
        self,
        paths: Paths,
        known: Known,
        background: Callable[[Coroutine[Any, Any, None]], None],
        clock: Clock = time.monotonic,
    ) -> None:
        self._paths = paths
        self._known = known
        self._background = background
        self._turns: defaultdict[str, Turns] = defaultdict(Turns)
        self._questions = Allowance(QUESTIONS_AT_ONCE, SECONDS_A_QUESTION, clock)
        self._notices = Allowance(NOTICES_AT_ONCE, SECONDS_A_NOTICE, clock)
        self._mutes = Mutes(clock)
        self._notices_under_way = 0

    async def ask(self, call: Call, ask: Ask, gui: str) -> prompt.Answer:
        """Ask which target the call may go to; cancelling takes the question back.

        Args:
            call: what the question is about.
            ask: what the policy lets the person pick from.
            gui: the qube where the person sits.

        Raises:
            CaissonError: nobody could be asked, nobody answered, or the qube asks too often.
        """
        origin = origin_of(self._known.system, call.source)
        if mute := self._mutes.find(origin):
            return _unheard(origin, mute)
        if not self._questions.has(origin):
            raise _too_often(origin)
        try:
            async with self._turns[gui].turn(origin):
                return await self._ask(call, ask, gui, origin)
        except CaissonError as e:
            sparing.warning("nobody could be asked", qube=call.source, error=str(e))
            raise

    async def _ask(self, call: Call, ask: Ask, gui: str, origin: str) -> prompt.Answer:
        """Ask in the qube's turn."""
        # What the person said to an earlier question holds for those that waited.
        if mute := self._mutes.find(origin):
            return _unheard(origin, mute)
        if not self._questions.take(origin):
            raise _too_often(origin)
        try:
            answer = await self._put(gui, self._question(call, ask, gui, origin))
        except prompt.NobodyError:
            self._questions.give_back(origin)
            raise
        if answer.target is not None:
            self._questions.give_back(origin)
        elif answer.for_now:
            self._mutes.begin(origin, answer.by)
        return answer

    async def _put(self, gui: str, question: prompt.Question) -> prompt.Answer:
        if gui == DOM0:
            return await prompt.ask(self._paths.prompt_agent, question)
        return await gui_qube.ask(self._paths.dom0_socket, gui, question)

    def _question(self, call: Call, ask: Ask, gui: str, origin: str) -> prompt.Question:
        targets = list(ask.targets)
        involved = {call.source, *(t.removeprefix("@dispvm:") for t in targets)}
        domains = self._known.system.domains
        icons = {d.name: d.icon for d in domains.values() if d.icon}
        bases = [d for d in domains.values() if d.template_for_dispvms]
        icons |= {f"@dispvm:{d.name}": d.icon for d in bases if d.icon}
        walls = {name: self._known.infos.get(name, {}).get("isolation") for name in involved}
        return prompt.Question(
            source=call.source,
            service=call.service,
            argument=f"+{call.argument}",
            targets=targets,
            default_target=ask.default_target or "",
            icons=icons,
            labels={n: d.label for n in involved if (d := domains.get(n)) and d.label},
            isolation={name: str(wall) for name, wall in walls.items() if wall},
            origin=origin,
            waiting=self._turns[gui].waiting(origin),
        )

    def tell(self, call: Call, resolution: str, target: str) -> None:
        """Tell the person what happened to a call, if somebody listens and is not flooded."""
        source = self._known.system.find(call.source)
        if source is None or source.guivm is None or self._notices_under_way >= MOST_NOTICES:
            return
        origin = origin_of(self._known.system, call.source)
        if not self._notices.take(origin):
            return
        mute = self._mutes.find(origin)
        muted = round(mute.left) if mute else 0
        argument = f"+{call.argument}"
        notice = prompt.Notice(resolution, call.service, argument, call.source, target, muted)
        self._notices_under_way += 1
        self._background(self._tell(source.guivm, notice))

    async def _tell(self, gui: str, notice: prompt.Notice) -> None:
        try:
            if gui == DOM0:
                await prompt.notify(self._paths.prompt_agent, notice)
            else:
                await gui_qube.notify(self._paths.dom0_socket, gui, notice)
        finally:
            self._notices_under_way -= 1


def origin_of(system: SystemInfo, source: str) -> str:
    """The qube whose turn a question takes: whoever made the disposable that asks.

    A qube gains nothing by making disposables, nor by those that they make in turn. What the
    admin qube made stands for itself.
    """
    seen: set[str] = set()
    while source not in seen:
        seen.add(source)
        domain = system.find(source)
        marks = () if domain is None else (t for t in domain.tags if t.startswith(_DISPOSABLE))
        creator = min(marks, default="").removeprefix(_DISPOSABLE)
        if creator in {"", DOM0}:
            break
        source = creator
    return source


def _unheard(origin: str, mute: Mute) -> prompt.Answer:
    minutes, seconds = divmod(round(mute.left), 60)
    reason = f"`{origin}` is denied for now, for {minutes} min {seconds} s more"
    return prompt.Answer(None, mute.by, reason=reason)


def _too_often(origin: str) -> CaissonError:
    return CaissonError(
        f"`{origin}` asks too often: beyond {QUESTIONS_AT_ONCE} questions that were not wanted,"
        f" one every {SECONDS_A_QUESTION:.0f} s"
    )
