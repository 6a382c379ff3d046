"""What would change a decision: lines, tags and other calls, each tried before it is shown.

A suggested line speaks of one source, one target, one service and one argument, never of more.
Only what really changes the decision as claimed leaves this module.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import msgspec

from caisson.errors import CaissonError, PolicyError
from caisson.names import Tag
from caisson.policy import PolicySet, reference
from caisson.policy.explanation import (
    AddRule,
    AddTag,
    CallOtherwise,
    Field,
    Place,
    RevokeGrant,
    SetDisposable,
    StartQube,
    Suggestion,
    Try,
)
from caisson.policy.outcome import Ask, Decision, Deny, Reason
from caisson.policy.parse import parse_text
from caisson.policy.resolution import Call, can_be_base
from caisson.policy.rules import EVERY, Action, Rule, check_rule
from caisson.policy.syntax import Location, RuleLine
from caisson.policy.system import Domain, SystemInfo
from caisson.policy.tokens import Kind, Token, is_admin_qube

OWN_FILE = "30-user.policy"
"""Where people's own rules go."""

_MOST = 5
"""Suggestions of one kind; a person reads no more."""
_MOST_TRIED = 32
"""Candidates of one kind: what a policy can make us try is bounded."""
# The system gives these tags; nobody can set them.
_OF_THE_SYSTEM = ("created-by-", "disp-created-by-", "guivm-", "audiovm-", "relayvm-")


def suggestions(
    call: Call,
    decision: Decision,
    tried: Sequence[Try],
    rules: Sequence[Rule],
    domains: SystemInfo,
) -> Iterator[Suggestion]:
    """What would change this decision, the most direct first.

    Args:
        call: the call, its names checked.
        decision: what is decided now.
        tried: the rules that were tried for it.
        rules: all rules of the policy.
        domains: the system.
    """
    if call.source.name == "dom0":
        return  # no rule changes what dom0 may do
    own = tuple(rule for rule in rules if reference.matches_service(rule, call))
    case = _Case(call, decision, tried, PolicySet(own), rules, domains)
    yield from case.lines()
    yield from case.revoke()
    if isinstance(decision, Deny):
        yield from case.start()
        yield from islice(case.bases(), 1)
        yield from islice(case.tags(), _MOST)
        yield from islice(case.other_calls(), _MOST)


@dataclass(frozen=True)
class _Case:
    """One decision; `own` are the rules of its service: no other can change it."""

    call: Call
    decision: Decision
    tried: Sequence[Try]
    own: PolicySet
    rules: Sequence[Rule]
    domains: SystemInfo

    @property
    def _deciding(self) -> Rule | None:
        return self.tried[-1].rule if self.tried and self.tried[-1].decides else None

    # Lines.

    def lines(self) -> Iterator[AddRule]:
        """A line for every other outcome that a line can bring about."""
        request = self.call.request
        if self.call.target.kind is Kind.DEFAULT and request.target not in ("", "@default"):
            return  # a name that no qube has: a rule about it would be about all such names
        place = _place(self._deciding)
        if place is None:
            return  # no line comes before a grant
        for action in (Action.ALLOW, Action.ASK, Action.DENY):
            offers = action is self.decision.action
            if offers and self._can_be_had():
                continue
            text = self._line(action)
            rule = _parsed(text, place)
            if rule is not None and self._is_exact(rule) and self._holds(rule, place):
                yield AddRule(action, text, place, offers)

    def _can_be_had(self) -> bool:
        """Whether a question, if it is one, has the target that is asked for in its list."""
        rule = self._deciding
        if not isinstance(self.decision, Ask) or rule is None:
            return True
        return self._wish(rule.redirect or self._target()) <= {*self.decision.targets}

    def _wish(self, token: Token) -> set[str]:
        """What a call that goes to this token wants, as a list would name it."""
        return reference.by_name(reference.expand(token, self.domains), self.call, self.domains)

    def _line(self, action: Action) -> str:
        """A rule for exactly this call, if there is one: names may hold anything."""
        request, source, target = self.call.request, self.call.source, self._target()
        words = [request.service, str(request.argument), source.name, str(target), action]
        if action is not Action.DENY:
            words += self._parameters()
        if action is Action.ASK and self._deciding and self._deciding.default_target:
            words.append(f"default_target={self._deciding.default_target}")
        return " ".join(words)

    def _target(self) -> Token:
        """The target as a rule names it."""
        target = self.call.target
        qube = self.domains.find(target.value) if target.value else None
        return msgspec.structs.replace(target, value=qube.name) if qube else target

    def _parameters(self) -> list[str]:
        """Where the call goes now, or would have to go, and as whom."""
        rule = self._deciding
        if rule is None or isinstance(self.decision, Deny):
            # The admin qube serves the calls of the Admin API, whichever qube they are about.
            admin = self.call.request.service.startswith("admin.")
            return ["target=dom0"] if admin and not is_admin_qube(str(self.call.target)) else []
        words = [f"target={rule.redirect}"] if rule.redirect else []
        words += [f"user={rule.user}"] if rule.user else []
        # Such a rule keeps a halted target out of a list, and would keep it out again.
        starts = rule.autostart or not self._can_be_had()
        return words if starts else [*words, "autostart=no"]

    def _is_exact(self, rule: Rule) -> bool:
        """Whether a parsed line says no more than this call; names may hold anything."""
        request = self.call.request
        return (
            (rule.service, rule.argument) == (request.service, request.argument)
            and EVERY not in (rule.service, rule.argument)
            and rule.source == Token(Kind.NAME, self.call.source.name)
            and rule.target == self._target()
        )

    def _holds(self, rule: Rule, place: Place) -> bool:
        """Whether the call becomes what the line says, by this line."""
        rules = self.own.rules
        at = bisect_left(rules, _order_of_place(place), key=_order)
        changed = PolicySet((*rules[:at], rule, *rules[at:]))
        decision = changed.decide(self.call.request, self.domains)
        if decision.action is not rule.action or decision.location != rule.location:
            return False
        # A question is a remedy only if what was asked for can be picked.
        wish = self._wish(rule.redirect or rule.target)
        return not isinstance(decision, Ask) or wish <= {*decision.targets}

    # Other remedies.

    def revoke(self) -> Iterator[RevokeGrant]:
        """The grant that decides gone."""
        rule = self._deciding
        if rule is None or not _is_granted(rule):
            return
        rest = PolicySet(tuple(each for each in self.own.rules if each is not rule))
        decision = rest.decide(self.call.request, self.domains)
        if decision.action is not self.decision.action:
            yield RevokeGrant(decision.action, rule.location.file)

    def start(self) -> Iterator[StartQube]:
        """The target running."""
        if not (isinstance(self.decision, Deny) and self.decision.reason is Reason.NOT_RUNNING):
            return
        rule = self._deciding
        token = (rule.redirect if rule else None) or self.call.target
        qube = self.domains.find(token.value) if token.kind is Kind.NAME else None
        if qube is None:
            return
        running = msgspec.structs.replace(qube, power_state="Running")
        decision = self.own.decide(self.call.request, self._with(running))
        if not isinstance(decision, Deny):
            yield StartQube(decision.action, qube.name)

    def bases(self) -> Iterator[SetDisposable]:
        """Qubes from which the caller's disposables could be made, where it has no such qube."""
        rule, source = self._deciding, self.call.source
        token = (rule.redirect if rule else None) or self.call.target
        base = source.default_dispvm
        if token.kind is not Kind.DISPVM or (base and can_be_base(base, self.domains)):
            return
        bases = (q.name for q in self.domains.domains.values() if q.template_for_dispvms)
        for name in islice(sorted(bases), _MOST_TRIED):
            changed = msgspec.structs.replace(source, default_dispvm=name)
            decision = self.own.decide(self.call.request, self._with(changed))
            if not isinstance(decision, Deny):
                yield SetDisposable(decision.action, source.name, name)

    def tags(self) -> Iterator[AddTag]:
        """Tags that make an earlier rule match; what they bring beside this call is counted."""
        seen: set[tuple[str, str]] = set()
        for rule, token, qube in islice(self._near_by_tag(), _MOST_TRIED):
            tag = token.value
            if (qube.name, tag) in seen or not _can_be_set(tag):
                continue
            seen.add((qube.name, tag))
            tagged = msgspec.structs.replace(qube, tags=qube.tags | {tag})
            decision = self.own.decide(self.call.request, self._with(tagged))
            if isinstance(decision, Deny) or decision.location != rule.location:
                continue
            naming = [each for each in self.rules if _names_tag(each, tag)]
            if not any(map(_gives_everything, naming)):
                others = len(naming) - 1
                yield AddTag(decision.action, qube.name, tag, rule.location, others)

    def _near_by_tag(self) -> Iterator[tuple[Rule, Token, Domain]]:
        """Rules that only a tag keeps from matching, with the token and the qube that lacks it."""
        for each in self.tried:
            rule = each.rule
            if rule.action is Action.DENY or len(each.fields) != 1:
                continue
            if each.fields == (Field.SOURCE,) and rule.source.kind is Kind.TAG:
                yield rule, rule.source, self.call.source
            if each.fields == (Field.TARGET,) and rule.target.kind in (Kind.TAG, Kind.DISPVM_TAG):
                qube = self._tagged_for(rule.target)
                if qube is not None:
                    yield rule, rule.target, qube

    def _tagged_for(self, token: Token) -> Domain | None:
        """The qube whose tags decide whether a target token matches; never dom0."""
        target = self.call.target
        name = target.value
        if token.kind is Kind.DISPVM_TAG and target.kind is Kind.DISPVM:
            name = self.call.source.default_dispvm or ""
        qube = self.domains.find(name) if name else None
        return None if qube is None or qube.name == "dom0" else qube

    def other_calls(self) -> Iterator[CallOtherwise]:
        """Calls of the same service that the policy lets through."""
        request = self.call.request
        replace = msgspec.structs.replace
        arguments = islice(dict.fromkeys(self._near_by_argument()), _MOST_TRIED)
        candidates = [replace(request, argument=argument) for argument in arguments]
        candidates += [
            replace(request, target=target)
            for target in ("@dispvm", "@default")
            if target != str(self.call.target)
        ]
        for candidate in candidates:
            decision = self.own.decide(candidate, self.domains)
            if not isinstance(decision, Deny):
                yield CallOtherwise(decision.action, candidate, decision.location)

    def _near_by_argument(self) -> Iterator[str]:
        """The arguments of rules that only their argument keeps from matching."""
        for rule in self.own.rules:
            if (
                rule.action is not Action.DENY
                and not reference.matches_argument(rule, self.call)
                and reference.matches_qube(rule.source, self.call.source.name, self.domains)
                and reference.matches_target(rule.target, self.call, self.domains)
            ):
                yield rule.argument

    def _with(self, qube: Domain) -> SystemInfo:
        return SystemInfo({**self.domains.domains, qube.name: qube})


def _is_granted(rule: Rule) -> bool:
    """Whether a rule stands in no file: a grant, which comes before every file."""
    return rule.location.line is None and not rule.included_from


def _place(deciding: Rule | None) -> Place | None:
    """Where a line comes before the rule that decides: in people's own file if that is early.

    None if no line does.
    """
    if deciding is not None:
        if _is_granted(deciding):
            return None
        top = _top(deciding)
        if top.file <= OWN_FILE:
            return Place(top.file, top.line)
    return Place(OWN_FILE, None)


def _top(rule: Rule) -> Location:
    """The line of a `.policy` file that the rule stands on, or that includes it."""
    return rule.included_from[0] if rule.included_from else rule.location


def _order(rule: Rule) -> tuple[str, float]:
    if _is_granted(rule):
        return "", 0
    top = _top(rule)
    return top.file, top.line or 0


def _order_of_place(place: Place) -> tuple[str, float]:
    return place.file, float("inf") if place.before is None else place.before


def _parsed(line: str, place: Place) -> Rule | None:
    """The rule that a line in this place states; None if it states none, or something else."""
    try:
        statements = parse_text(place.file, line)
        if len(statements) != 1 or not isinstance(statements[0], RuleLine):
            return None
        rule = check_rule(statements[0])
    except PolicyError:
        return None
    return msgspec.structs.replace(rule, location=Location(f"{place.file} (new)", place.before))


def _can_be_set(tag: str) -> bool:
    """Whether a person can give a qube this tag."""
    try:
        Tag.parse(tag)
    except CaissonError:
        return False
    return not tag.startswith(_OF_THE_SYSTEM)


def _names_tag(rule: Rule, tag: str) -> bool:
    """Whether source or target of a rule is this tag."""
    kinds = (Kind.TAG, Kind.DISPVM_TAG)
    return any(t.kind in kinds and t.value == tag for t in (rule.source, rule.target))


def _gives_everything(rule: Rule) -> bool:
    """Whether a rule about a tag hands its qubes to an administrator, or lets them do anything."""
    everything = rule.service == EVERY or rule.service.startswith(("admin.", "policy."))
    return everything and rule.action is not Action.DENY
