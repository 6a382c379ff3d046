"""The filters of `qvm-ls`: which qubes are listed, and what has to be read to judge."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection

from caisson.tools.command import pairs
from caisson.tools.inventory import Facts
from caisson.tools.properties import wire_name

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


class Filters:
    """Conditions that a qube has to meet, all of them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.properties: set[str] = set()
        self.tags = bool(arguments.tags or arguments.exclude_tags)
        self.features = False
        self._conditions: list[Callable[[Facts], bool]] = []
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

    def _add_facts(self, arguments: argparse.Namespace) -> None:
        states = {state for state in _STATES if getattr(arguments, state.lower())}
        if states:
            self._conditions.append(lambda qube: qube.state in states)
        if arguments.klass:
            classes = arguments.klass.split(",")
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
                self._add_property(name, text.split(","))
        for key, value in pairs(arguments.prefs):
            self._add_property(wire_name(key), [value])

    def _add_property(self, name: str, values: Collection[str]) -> None:
        # A qube cannot be called `none`, so that no value has two meanings.
        texts = {"" if value.lower() == "none" else value for value in values}
        self.properties.add(name)
        self._conditions.append(lambda qube: (qube.properties.get(name) or "") in texts)

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
