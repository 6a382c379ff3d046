"""Questions to a person, and notices: fair among qubes, few for each, none of a muted one.

A question takes the turn of the `Asker` it is counted for. It costs a token when it is shown;
allowing gives the token back, so that only what the person did not want runs out.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from itertools import takewhile
from typing import Any, NamedTuple

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
"""Unwanted questions of an asker: ten, and five a minute for good."""

NOTICES_AT_ONCE = 10
SECONDS_A_NOTICE = 6.0
MOST_NOTICES = 4
"""Notices on their way at the same time to one place."""

_DISPOSABLE = "disp-created-by-"


class Asker(NamedTuple):
    """Whose questions count together: a qube's, or those of all disposables that came of it.

    Args:
        gui: the qube where the person sits.
        name: the qube.
        disposables: its disposables are meant, not the qube itself.
    """

    gui: str
    name: str
    disposables: bool = False

    def __str__(self) -> str:
        return f"disposables of `{self.name}`" if self.disposables else f"`{self.name}`"


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
        self._notices_under_way: Counter[str] = Counter()

    async def ask(self, call: Call, ask: Ask, gui: str) -> prompt.Answer:
        """Ask which target the call may go to; cancelling takes the question back.

        Args:
            call: what the question is about.
            ask: what the policy lets the person pick from.
            gui: the qube where the person sits.

        Raises:
            CaissonError: nobody could be asked, nobody answered, or the qube asks too often.
        """
        counted = counted_for(self._known.system, call.told_source, gui)
        seen = seen_as(self._known.system, call.told_source, gui)
        if mute := self._mutes.find(seen):
            return _unheard(seen, mute)
        if not self._questions.has(counted):
            raise _too_often(counted)
        try:
            async with self._turns[gui].turn(counted):
                return await self._ask(call, ask, counted, seen)
        except CaissonError as e:
            sparing.warning("nobody could be asked", qube=call.told_source, error=str(e))
            raise

    async def _ask(self, call: Call, ask: Ask, counted: Asker, seen: Asker) -> prompt.Answer:
        """Ask in the asker's turn."""
        # What the person said to an earlier question holds for those that waited.
        if mute := self._mutes.find(seen):
            return _unheard(seen, mute)
        if not self._questions.take(counted):
            raise _too_often(counted)
        waiting = self._turns[seen.gui].waiting(counted)
        try:
            answer = await self._put(seen.gui, self._question(call, ask, seen.name, waiting))
        except prompt.NobodyError:
            self._questions.give_back(counted)
            raise
        if answer.target is not None:
            self._questions.give_back(counted)
        elif answer.for_now:
            self._mutes.begin(seen, answer.by)
        return answer

    async def _put(self, gui: str, question: prompt.Question) -> prompt.Answer:
        if gui == DOM0:
            return await prompt.ask(self._paths.prompt_agent, question)
        return await gui_qube.ask(self._paths.dom0_socket, gui, question)

    def _question(self, call: Call, ask: Ask, origin: str, waiting: int) -> prompt.Question:
        """What is asked; a GUI qube learns from it of no qube that is not involved."""
        targets = list(ask.targets)
        find = self._known.system.find
        involved = {call.told_source, *(t.removeprefix("@dispvm:") for t in targets)}
        domains = {name: domain for name in involved if (domain := find(name))}
        icons = {name: d.icon for name, d in domains.items() if d.icon}
        bases = {t: icons.get(t.removeprefix("@dispvm:")) for t in targets}
        walls = {name: self._known.infos.get(name, {}).get("isolation") for name in involved}
        return prompt.Question(
            source=call.told_source,
            service=call.service,
            argument=f"+{call.argument}",
            targets=targets,
            default_target=ask.default_target or "",
            icons=icons | {target: icon for target, icon in bases.items() if icon},
            labels={name: d.label for name, d in domains.items() if d.label},
            isolation={name: str(wall) for name, wall in walls.items() if wall},
            origin=origin,
            waiting=waiting,
        )

    def tell(self, call: Call, resolution: str, target: str) -> None:
        """Tell the person what happened to a call, if somebody listens and is not flooded."""
        system = self._known.system
        source = system.find(call.told_source)
        if source is None or (gui := source.guivm) is None:
            return
        if self._notices_under_way[gui] >= MOST_NOTICES:
            return
        if not self._notices.take(counted_for(system, call.told_source, gui)):
            return
        mute = self._mutes.find(seen_as(system, call.told_source, gui))
        muted = round(mute.left) if mute else 0
        argument = f"+{call.argument}"
        notice = prompt.Notice(resolution, call.service, argument, call.told_source, target, muted)
        self._notices_under_way[gui] += 1
        self._background(self._tell(gui, notice))

    async def _tell(self, gui: str, notice: prompt.Notice) -> None:
        try:
            if gui == DOM0:
                await prompt.notify(self._paths.prompt_agent, notice)
            else:
                await gui_qube.notify(self._paths.dom0_socket, gui, notice)
        finally:
            self._notices_under_way[gui] -= 1


def counted_for(system: SystemInfo, source: str, gui: str) -> Asker:
    """Whose turn and tokens a question takes.

    The disposables of a qube, and those that they make in turn, are as one: a qube gains one
    more asker by making them, and they take nothing from the qube itself.
    """
    line = _line_of(system, source)
    return Asker(gui, line[-1], len(line) > 1)


def seen_as(system: SystemInfo, source: str, gui: str) -> Asker:
    """Whom the person is told of, and can deny for a while: nobody who asks elsewhere.

    The last in line that asks at the same place as all those before it.
    """
    first, *makers = _line_of(system, source)
    line = [first, *takewhile(lambda name: _gui_of(system, name) == gui, makers)]
    return Asker(gui, line[-1], len(line) > 1)


def _line_of(system: SystemInfo, source: str) -> list[str]:
    """The qube, whoever made it if it is a disposable, and so on.

    What the admin qube made stands for itself.
    """
    line = [source]
    while (maker := _maker_of(system, line[-1])) not in {"", DOM0, *line}:
        line.append(maker)
    return line


def _maker_of(system: SystemInfo, name: str) -> str:
    domain = system.find(name)
    marks = () if domain is None else (t for t in domain.tags if t.startswith(_DISPOSABLE))
    return min(marks, default="").removeprefix(_DISPOSABLE)


def _gui_of(system: SystemInfo, name: str) -> str | None:
    domain = system.find(name)
    return None if domain is None else domain.guivm


def _unheard(asker: Asker, mute: Mute) -> prompt.Answer:
    minutes, seconds = divmod(round(mute.left), 60)
    verb = "are" if asker.disposables else "is"
    reason = f"{asker} {verb} denied for now, for {minutes} min {seconds} s more"
    return prompt.Answer(None, mute.by, reason=reason)


def _too_often(asker: Asker) -> CaissonError:
    verb = "ask" if asker.disposables else "asks"
    return CaissonError(
        f"{asker} {verb} too often: beyond {QUESTIONS_AT_ONCE} questions that were not wanted,"
        f" one every {SECONDS_A_QUESTION:.0f} s"
    )
