"""The disposables that may come to be: what a new one inherits, and from whom.

They are members like all others. One stands for all that a qube makes of one base; another, for
all that the disposables of this qube make of the base, however deep. Rules may name a disposable
that does not exist (`disp7`): there is then one more of each, with that name. So is there for the
name of its maker, if rules know the tags that it gives (`created-by-disp7`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

import msgspec

from caisson.errors import CaissonError
from caisson.policy.flow.facts import Facts, Qube
from caisson.policy.flow.members import Member
from caisson.policy.rules import Rule
from caisson.policy.tokens import Kind, Token

CREATED_BY = "created-by-"
DISPOSABLE_CREATED_BY = "disp-created-by-"
_OF_ONE_ONLY = (CREATED_BY, DISPOSABLE_CREATED_BY, "relayvm-", "backup-restore-in-progress")
GUIVM = "guivm-"
NAME = re.compile(r"disp[1-9][0-9]{0,3}")
"""What a new disposable may be called."""
_MOST_NAMES = 8
_MOST = 100_000


class Newborn(msgspec.Struct, frozen=True):
    """A disposable that may come to be.

    `root` is the qube that it goes back to; `deep`: a disposable of that qube makes it, named
    `maker`, or by a name that no rule knows (empty). `wished` are tags that its maker gives.
    """

    root: str
    base: str
    deep: bool
    name: str
    maker: str
    wished: frozenset[str]

    def __str__(self) -> str:
        named = f" named {self.name}" if self.name else ""
        whose = f"a disposable of {self.root}" if self.deep else self.root
        return f"new disposable of {self.base}{named}, made by {whose}"


def all_of(facts: Facts, rules: Sequence[Rule]) -> list[Newborn]:
    """The disposables that rules might let come to be.

    Raises:
        CaissonError: the rules name too many disposables that do not exist, or far too many
            may come to be.
    """
    if not any(_makes_disposables(rule) for rule in rules):
        return []
    bases = [q for q in facts.qubes.values() if q.domain.template_for_dispvms]
    names, makers = _named(rules, facts), ["", *_named_as_makers(rules, facts)]
    gifts = sorted({q.created_tags for q in bases}, key=sorted)
    count = (len(facts.qubes) - 1) * len(bases) * len(names) * (1 + len(makers) * len(gifts))
    if count > _MOST:
        raise CaissonError(
            f"too many disposables may come to be: {count} kinds of them",
            hint="name fewer disposables in the rules, or let fewer qubes be bases of them",
        )
    found = []
    for root, base in product(facts.qubes.values(), bases):
        if root.domain.name == "dom0":
            continue
        pair = (root.domain.name, base.domain.name)
        found += [Newborn(*pair, False, name, "", root.created_tags) for name in names]
        found += [
            Newborn(*pair, True, name, maker, wished)
            for name, maker, wished in product(names, makers, gifts)
        ]
    return found


def member_of(newborn: Newborn, facts: Facts) -> Member:
    """What rules see of a new disposable (`caisson.model.life_plans`)."""
    maker = newborn.maker if newborn.deep else newborn.root
    marks = {CREATED_BY + maker, DISPOSABLE_CREATED_BY + maker} if maker else set()
    inherited = {
        tag
        for tag in facts.qubes[newborn.base].domain.tags
        if not tag.startswith(_OF_ONE_ONLY)
        and not (tag.startswith(GUIVM) and _names_guivm(newborn.wished))
    }
    tags = frozenset(inherited | newborn.wished | marks)
    return Member(newborn.name, "DispVM", tags)


def must_inherit(tag: str) -> bool:
    """Whether every disposable has this tag if its base has it."""
    return not tag.startswith((*_OF_ONE_ONLY, GUIVM))


def default_bases(newborn: Newborn, facts: Facts) -> tuple[str | None, ...]:
    """What its `default_dispvm` may be: its base, or what is set at the base; None: it has none."""
    return newborn.base, facts.qubes[newborn.base].domain.default_dispvm or None


def network_of(newborn: Newborn, facts: Facts) -> Qube | None:
    """The qube whose network settings it takes over; None: it is offline, as its root is."""
    root = facts.qubes[newborn.root]
    is_offline = root.netvm is None and root.domain.type != "RemoteVM"
    return None if is_offline else facts.qubes[newborn.base]


def _names_guivm(tags: Iterable[str]) -> bool:
    return any(tag.startswith(GUIVM) for tag in tags)


def _makes_disposables(rule: Rule) -> bool:
    token = rule.redirect or rule.target
    return token.kind in {
        Kind.ANY,
        Kind.ANYVM,
        Kind.DEFAULT,
        Kind.DISPVM,
        Kind.DISPVM_OF,
        Kind.DISPVM_TAG,
    }


def _named(rules: Sequence[Rule], facts: Facts) -> list[str]:
    """The names that matter for a new disposable: any that rules do not know, and those."""
    words = {word for rule in rules for token in _tokens(rule) for word in _words(token)}
    named = sorted(w for w in words if NAME.fullmatch(w) and w not in facts.qubes)
    if len(named) > _MOST_NAMES:
        raise CaissonError(
            f"rules name {len(named)} disposables that do not exist",
            hint=f"the numbers of disposables are random; name at most {_MOST_NAMES} of them",
        )
    return ["", *named]


def _named_as_makers(rules: Sequence[Rule], facts: Facts) -> list[str]:
    """Those of these names that rules know in the tags of what such a disposable makes."""
    tags = {t.value for rule in rules for t in _tokens(rule) if t.kind is Kind.TAG}
    marks = (CREATED_BY, DISPOSABLE_CREATED_BY)
    return [n for n in _named(rules, facts) if n and any(mark + n in tags for mark in marks)]


def _tokens(rule: Rule) -> Iterator[Token]:
    yield rule.source
    yield rule.target
    if rule.redirect is not None:
        yield rule.redirect


def _words(token: Token) -> Iterator[str]:
    if token.kind is Kind.NAME:
        yield token.value
    if token.kind is Kind.TAG:
        yield token.value.removeprefix(DISPOSABLE_CREATED_BY).removeprefix(CREATED_BY)
