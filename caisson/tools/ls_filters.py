"""The filters of `qvm-ls`: which qubes are listed, and what has to be read to judge."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Mapping

from caisson.admin.client import Client
from caisson.errors import CaissonError
from caisson.names import shown
from caisson.tools import selection
from caisson.tools.command import UsageError, pairs
from caisson.tools.inventory import Facts
from caisson.tools.properties import wire_name

_NO_QUBE = frozenset({"none", ""})
_STATES = ("Running", "Paused", "Halted")


def add_options(made: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = made.add_argument_group("filters")
    group.add_argument("--class", dest="klass", metavar="CLASS,…", help="of these classes")
    group.add_argument("--label", metavar="LABEL,…", help="with these labels")
    group.add_argument("--tags", metavar="TAG", nargs="+", default=[], help="with all these tags")
    group.add_argument(
        "--exclude-tags", metavar="TAG", nargs="+", default=[], help="without any of these tags"
    )
    group.add_argument("--running", action="store_true", help="that run")
    group.add_argument("--paused", action="store_true", help="that are paused")
    group.add_argument("--halted", action="store_true", help="that are halted")
    group.add_argument("--template-source", metavar="VMNAME,…", help="based on these templates")
    group.add_argument(
        "--netvm-is", metavar="VMNAME,…", help="behind these network qubes; `none`: behind none"
    )
    group.add_argument("--internal", choices=["y", "n"], help="with the feature `internal`, or not")
    group.add_argument(
        "--servicevm", choices=["y", "n"], help="with the feature `servicevm`, or not"
    )
    group.add_argument("--pending-update", action="store_true", help="with updates to install")
    group.add_argument(
        "--features", metavar="NAME=VALUE", nargs="+", default=[], help="with these features"
    )
    group.add_argument(
        "--prefs", metavar="NAME=VALUE", nargs="+", default=[], help="with these properties"
    )


def _words(text: str | None) -> list[str]:
    return [] if text is None else text.split(",")


def unknown_word(what: str, word: str, known: Iterable[str]) -> UsageError:
    """The error for a word that stands for nothing, with the nearest one as its hint."""
    from difflib import get_close_matches

    near = get_close_matches(word, sorted(filter(None, known)), n=1)
    hint = f"did you mean `{shown(near[0])}`?" if near else None
    return UsageError(f"{what} `{shown(word)}` does not exist", hint)


class Filters:
    """Conditions that a qube has to meet, all of them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.properties: set[str] = set()
        self.tags = bool(arguments.tags or arguments.exclude_tags)
        self.features = False
        self._conditions: list[Callable[[Facts], bool]] = []
        self._arguments = arguments
        self._add_facts(arguments)
        self._add_properties(arguments)
        self._add_features(arguments)

    @property
    def needed(self) -> bool:
        """Whether a name alone is not enough to judge."""
        return bool(self._conditions)

    def fit(self, qube: Facts) -> bool:
        """Whether a qube meets all."""
        return all(condition(qube) for condition in self._conditions)

    def check(self, client: Client, qubes: Mapping[str, Facts]) -> None:
        """Refuse a name that nothing has: a typing error would just list nothing.

        Raises:
            UsageError: a class, label or qube does not exist.
        """
        asked = self._arguments
        classes = {*selection.CLASSES, *(qube.klass for qube in qubes.values())}
        for klass in _words(asked.klass):
            if klass not in classes:
                raise unknown_word("class", klass, classes)
        for name in (*_words(asked.template_source), *_words(asked.netvm_is)):
            if name not in qubes and name.lower() not in _NO_QUBE:
                raise unknown_word("qube", name, qubes)
        labels = {qube.text("label") for qube in qubes.values()}
        if not labels.issuperset(_words(asked.label)):
            try:
                labels.update(client.lines("admin.label.List"))
            except CaissonError:
                # Who may not know the labels may not be told which there are.
                return
        for label in _words(asked.label):
            if label not in labels:
                raise unknown_word("label", label, labels)

    def _add_facts(self, arguments: argparse.Namespace) -> None:
        states = {state for state in _STATES if getattr(arguments, state.lower())}
        if states:
            self._conditions.append(lambda qube: qube.state in states)
        if arguments.klass:
            classes = _words(arguments.klass)
            self._conditions.append(lambda qube: qube.klass in classes)
        if arguments.tags:
            self._conditions.append(lambda qube: qube.tags.issuperset(arguments.tags))
        if arguments.exclude_tags:
            self._conditions.append(lambda qube: qube.tags.isdisjoint(arguments.exclude_tags))

    def _add_properties(self, arguments: argparse.Namespace) -> None:
        for name, text in (
            ("label", arguments.label),
            ("template", arguments.template_source),
            ("netvm", arguments.netvm_is),
        ):
            if text is not None:
                self._add_property(name, _words(text))
        for key, value in pairs(arguments.prefs):
            self._add_property(wire_name(key), [value])

    def _add_property(self, name: str, values: Collection[str]) -> None:
        # A qube cannot be called `none`, so that no value has two meanings.
        texts = {"" if value.lower() == "none" else value for value in values}
        self.properties.add(name)
        self._conditions.append(lambda qube: qube.text(name) in texts)

    def _add_features(self, arguments: argparse.Namespace) -> None:
        for feature in ("internal", "servicevm"):
            if (answer := getattr(arguments, feature)) is not None:
                self._add_presence(feature, answer == "y")
        if arguments.pending_update:
            self._add_presence("updates-available", True)
        for feature, value in pairs(arguments.features):
            self._add_feature(feature, value)

    def _add_presence(self, feature: str, present: bool) -> None:
        self.features = True
        self._conditions.append(lambda qube: bool(qube.features.get(feature)) == present)

    def _add_feature(self, feature: str, value: str) -> None:
        self.features = True
        self._conditions.append(lambda qube: qube.features.get(feature) == value)
