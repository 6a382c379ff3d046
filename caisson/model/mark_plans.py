"""Plans for features, tags, labels and volumes (sections 2.3, 2.8, 6)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from caisson.errors import (
    FeatureNotFoundError,
    InvalidLabelError,
    LabelInUseError,
    LabelNotFoundError,
    LabelValueError,
    NotesError,
    ProtocolError,
    TagNotFoundError,
)
from caisson.model import features, limits, notes, tags
from caisson.model.changes import (
    AddLabel,
    Change,
    RemoveLabel,
    RemoveVolume,
    SetNotes,
    SetVolume,
)
from caisson.model.events import feature_removed, feature_set, tagged, untagged
from caisson.model.klass import Klass
from caisson.model.labels import BUILT_IN, REFERENCE
from caisson.model.property_plans import PropertyPlans
from caisson.model.qube import Qube
from caisson.model.volumes import VolumeState
from caisson.names import FeatureName, LabelName, PropertyName, QubeName, Tag, VolumeName, shown

_COLOR = re.compile(r"0x[0-9a-fA-F]{6}")


class MarkPlans(PropertyPlans):
    """What may be written on qubes, and the labels to choose from."""

    def plan_feature(self, qube: Qube, untrusted_name: str, untrusted_value: str) -> Change:
        """Plan to store a feature.

        Raises:
            ProtocolError: a bad name, or a value that is not printable ASCII.
            PermissionDeniedError: the system keeps it for itself.
            ValueRefusedError: it breaks the rules of that feature, or the bounds of the qube.
        """
        name = FeatureName.parse(untrusted_name)
        features.check_settable(name)
        limits.check_feature(qube, name, untrusted_value)
        features.check(name, untrusted_value)
        return feature_set(qube, name, untrusted_value) + self._computed_anew(qube, name)

    def plan_remove_feature(self, qube: Qube, untrusted_name: str) -> Change:
        """Plan to remove a feature.

        Raises:
            ProtocolError: a bad name.
            FeatureNotFoundError: the qube does not have it.
            PermissionDeniedError: the system keeps it for itself.
        """
        name = FeatureName.parse(untrusted_name)
        features.check_settable(name)
        if name not in qube.features:
            raise FeatureNotFoundError(
                f"qube `{qube.name}` has no feature `{name}`",
                hint=f"list them with `qvm-features {qube.name}`",
            )
        return feature_removed(qube, name) + self._computed_anew(qube, name)

    def _computed_anew(self, qube: Qube, feature: FeatureName) -> Change:
        """What follows from a feature, here and where it is looked up through this qube."""
        following = features.FOLLOWED_BY.get(feature)
        if following is None:
            return Change()
        others = self._behind(qube) if feature == "ipv6" else self.based_on(qube)
        return self._moved(
            (each, name)
            for each in (qube, *others)
            for name in following
            if self._has_default(each, name)
        )

    def _behind(self, netvm: Qube) -> Iterator[Qube]:
        """The clients of a network qube, their clients, and so on."""
        for client in self.clients_of(netvm):
            yield client
            yield from self._behind(client)

    def plan_tag(self, qube: Qube, untrusted_tag: str, origin: QubeName) -> Change:
        """Plan to give a qube a tag; it may have it already.

        Raises:
            InvalidTagError: it is none.
            PermissionDeniedError: it says who created a qube, and `origin` is not the admin qube.
            ValueRefusedError: it is too long, or one too many.
        """
        tag = Tag.parse(untrusted_tag)
        tags.check(tag, origin)
        if tag in qube.tags:
            return Change()
        limits.check_tag(qube, tag)
        return tagged(qube, tag)

    def plan_untag(self, qube: Qube, untrusted_tag: str, origin: QubeName) -> Change:
        """Plan to take a tag from a qube.

        Raises:
            InvalidTagError: it is none.
            PermissionDeniedError: it says who created a qube, and `origin` is not the admin qube.
            TagNotFoundError: the qube does not have it.
        """
        tag = Tag.parse(untrusted_tag)
        tags.check(tag, origin)
        if tag not in qube.tags:
            raise TagNotFoundError(
                f"qube `{qube.name}` has no tag `{tag}`",
                hint=f"list them with `qvm-tags {qube.name} list`",
            )
        return untagged(qube, tag)

    def plan_notes(self, qube: Qube, untrusted: bytes) -> Change:
        """Plan other notes about a qube; nothing removes them.

        Raises:
            NotesError: this class of qube has none.
            ProtocolError: they are too long, or not UTF-8.
        """
        if qube.klass in {Klass.ADMIN, Klass.REMOTE}:
            raise NotesError(f"{qube.klass} `{qube.name}` has no notes")
        text = notes.parse(untrusted)
        return Change() if text == qube.notes else Change((SetNotes(qube.uuid, text),))

    def plan_volume(self, qube: Qube, volume: VolumeState) -> Change:
        """Plan to store the state of a volume, as the storage room computed it."""
        return Change(ops=(SetVolume(qube.uuid, volume),))

    def plan_remove_volume(self, qube: Qube, name: VolumeName) -> Change:
        """Plan to forget a volume."""
        return Change(ops=(RemoveVolume(qube.uuid, name),) if name in qube.volumes else ())

    def plan_create_label(self, untrusted_name: str, untrusted_color: str) -> Change:
        """Plan a label of the user's own.

        Raises:
            InvalidLabelError: a bad name.
            LabelValueError: a bad colour.
            LabelInUseError: the name is taken.
        """
        name = LabelName.parse(untrusted_name)
        if REFERENCE.fullmatch(name):
            raise InvalidLabelError(
                f"label name `{name}` reads like the number of a label", hint="use another name"
            )
        if not _COLOR.fullmatch(untrusted_color):
            raise LabelValueError(
                f"`{shown(untrusted_color)}` is not a colour", hint="use the form `0x3465a4`"
            )
        if name in self._labels:
            raise LabelInUseError(f"label `{name}` exists", hint="choose another name")
        index = max(label.index for label in self._labels.values()) + 1
        return Change(ops=(AddLabel(name, index, untrusted_color.lower()),))

    def plan_remove_label(self, untrusted_name: str) -> Change:
        """Plan to remove a label of the user's own.

        Raises:
            LabelNotFoundError: there is none of that name.
            ProtocolError: it is built in.
            LabelInUseError: a qube has it.
        """
        label = self._labels.get(LabelName(untrusted_name))
        if label is None:
            raise LabelNotFoundError(f"no label `{shown(untrusted_name)}`")
        if label in BUILT_IN:
            raise ProtocolError(f"label `{label.name}` is built in, it cannot be removed")
        for qube in self._names.values():
            if qube.stored.get(PropertyName("label")) == label.name:
                raise LabelInUseError(
                    f"qube `{qube.name}` has the label `{label.name}`",
                    hint="give it another label first",
                )
        return Change(ops=(RemoveLabel(label.name),))
