"""An explanation, told to a person: one line a rule, the decision, what would change it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from caisson.names import CLOCK_SERVICE, DOM0, shown
from caisson.policy.explanation import (
    Absence,
    Absent,
    AddRule,
    Explanation,
    Step,
    Suggestion,
    Try,
)
from caisson.policy.outcome import Allow, Ask, Decision, Deny
from caisson.policy.rules import Action
from caisson.tools import terminal
from caisson.tools.policy import broken
from caisson.tools.policy.names import question

if TYPE_CHECKING:
    from caisson.policy import Request

_COLOURS = {Action.ALLOW: "green", Action.ASK: "yellow", Action.DENY: "red"}
_CLOCK = "the qube of `clockvm` tells the time there, if one is named, runs and does not ask itself"
_WISHES = {
    Action.ALLOW: "to allow it",
    Action.ASK: "to be asked",
    Action.DENY: "to deny it",
}


def tell(explanation: Explanation, near: Mapping[str, Sequence[str]], *, every: bool) -> None:
    """Print an explanation.

    Args:
        explanation: what to tell.
        near: for names that no qube has, those that are close.
        every: tell of rules of other services, too.
    """
    console = _console()
    if explanation.error is not None:
        broken.complain(explanation.error)
        console.print(Text("denied, as every call is, until the policy is mended", "red"))
        return
    for line in lines(explanation, near, every=every):
        console.print(line)


def sentence(decision: Decision) -> str:
    """A decision in one sentence."""
    match decision:
        case Allow():
            user = f" as `{decision.user}`" if decision.user else ""
            return f"allowed by {decision.location}: it goes to `{decision.target}`{user}"
        case Ask():
            chosen = decision.default_target
            default = f", `{chosen}` preselected" if chosen else ""
            return f"a person is asked, because of {decision.location}{default}"
        case Deny():
            text = decision.text.removeprefix("denied ")
            return f"denied {text}" if text != decision.text else f"denied: {text}"


def _console() -> Console:
    welcome = terminal.coloured(sys.stdout)
    # One line a rule: what is longer than the screen is the terminal's to break.
    return Console(
        color_system="auto" if welcome else None,
        force_terminal=welcome,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )


def lines(
    explanation: Explanation, near: Mapping[str, Sequence[str]], *, every: bool
) -> Iterator[Text]:
    """What `tell` prints of a policy that is not broken."""
    yield Text(heading(explanation.request), "bold")
    yield from _section("the call", _told(explanation.before, explanation.decision))
    for field, names in near.items():
        hint = question(names) or "list the qubes with `qvm-ls`"
        yield _plain(f"  hint: the {field.replace('_', ' ')} is no qube; {hint}")
    yield from _rules(explanation, every=every)
    yield from _section("then", _told(explanation.after, explanation.decision))
    yield Text.assemble(
        "\n", (terminal.cell(sentence(explanation.decision)), _COLOURS[explanation.decision.action])
    )
    if _of_clock(explanation):
        yield _plain(f"  {_CLOCK}")
    if isinstance(explanation.decision, Ask):
        yield _plain(f"  to pick from: {', '.join(explanation.decision.targets)}")
    yield from map(_plain, _absent(explanation.absent))
    told = (f"{_wish(each)}: {each}" for each in explanation.suggestions)
    yield from _section("what would change it", told)


def heading(request: Request) -> str:
    """A call in one line."""
    target = shown(request.target) if request.target else "@default"
    relayed = f" for {shown(request.requested_source)}" if request.requested_source else ""
    return f"{shown(request.source)}{relayed} → {target}: {shown(request.descriptor)}"


def _of_clock(explanation: Explanation) -> bool:
    """Whether the call goes to the admin qube, which has another one tell the time."""
    decision = explanation.decision
    to_admin = isinstance(decision, Allow) and decision.target == DOM0
    return to_admin and explanation.request.service == CLOCK_SERVICE


def _told(steps: Sequence[Step], decision: Decision) -> Iterator[str]:
    """The steps that the sentence of the decision does not say anyway."""
    return (step.text for step in steps if step.text != decision.text)


def _wish(suggestion: Suggestion) -> str:
    """What somebody wants who follows a suggestion."""
    if isinstance(suggestion, AddRule) and suggestion.offers:
        return "to have it among the targets to pick from"
    return _WISHES[suggestion.becomes]


def _plain(text: str) -> Text:
    return Text(terminal.cell(text))


def _section(title: str, texts: Iterable[str]) -> Iterator[Text]:
    """A title and its lines; nothing without lines."""
    told = list(texts)
    if told:
        yield Text(f"\n{title}", "bold")
        yield from (_plain(f"  {line}") for line in told)


def _rules(explanation: Explanation, *, every: bool) -> Iterator[Text]:
    shown_rules = explanation.tried if every else explanation.of_service
    hidden = len(explanation.tried) - len(shown_rules)
    if not explanation.tried:
        return
    other = f" ({hidden} {'rule speaks' if hidden == 1 else 'rules speak'} of other services)"
    yield Text.assemble(("\nrules", "bold"), other if hidden else "")
    places = [_place(each) for each in shown_rules]
    texts = [terminal.cell(str(each.rule)) for each in shown_rules]
    wide, broad = max(map(len, places), default=0), max(map(len, texts), default=0)
    for each, place, text in zip(shown_rules, places, texts, strict=True):
        row = f"{place.ljust(wide)}  {text.ljust(broad)}  "
        if each.decides:
            yield Text(f"> {row}decides", f"bold {_COLOURS[each.rule.action]}")
        else:
            why = "; ".join(f"{m.field}: {m.text}" for m in each.failed_on)
            yield Text.assemble("  ", row, (terminal.cell(why), "dim"))
    if explanation.deciding is None:
        yield _plain("  no rule matches")


def _place(tried: Try) -> str:
    """Where a rule stands, and how its file came to be read."""
    path = " ".join(f"from {place}" for place in reversed(tried.rule.included_from))
    location = str(tried.rule.location)
    return terminal.cell(f"{location} {path}" if path else location)


_ABSENCES = {
    Absence.CALLER: "the caller itself",
    Absence.INTERNAL: "internal",
    Absence.NO_RULE: "no rule offers it",
    Absence.NOT_RUNNING: "not running, and autostart=no",
}


def _absent(absent: Sequence[Absent]) -> Iterator[str]:
    """What cannot be picked, by reason."""
    by_reason: dict[str, list[str]] = {}
    for each in absent:
        reason = _ABSENCES.get(each.why) or f"denied by {each.location}"
        by_reason.setdefault(reason, []).append(each.target)
    for reason, targets in by_reason.items():
        yield f"  not to pick, {reason}: {', '.join(targets)}"
