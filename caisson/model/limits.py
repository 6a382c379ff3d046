"""How much may be stored about one qube: without bounds, its owner fills what all others share.

They count for what is written from now on; what a store holds already is taken as it is.
"""

from __future__ import annotations

from typing import Final

from caisson.errors import ValueRefusedError
from caisson.model.qube import Qube
from caisson.names import FeatureName, QubeName, Tag, shown

LONGEST_FEATURE: Final = 16_384
"""Characters of the value of a feature."""
MOST_FEATURES: Final = 1_000
LONGEST_TAG: Final = 256
"""Characters."""
MOST_TAGS: Final = 256
"""Besides those that the system gives itself."""
LONGEST_TEXT: Final = 4_096
"""Characters of a property that is text, where none of its own rules is tighter."""
MOST_DENIED: Final = 256
"""Codes of device interfaces that a qube is kept from."""


def check_feature(qube: Qube, name: FeatureName, value: str) -> None:
    """Refuse a value that is too long, and one feature too many.

    Raises:
        ValueRefusedError: it is.
    """
    if len(value) > LONGEST_FEATURE:
        raise ValueRefusedError(
            f"the value of feature `{name}` is {len(value)} characters long",
            hint=f"use at most {LONGEST_FEATURE}",
        )
    if name not in qube.features and len(qube.features) >= MOST_FEATURES:
        raise ValueRefusedError(
            f"qube `{qube.name}` has {len(qube.features)} features",
            hint=f"at most {MOST_FEATURES} are possible: remove one first",
        )


def check_tag(qube: Qube, tag: Tag) -> None:
    """Refuse a new tag that is too long, and one tag too many.

    Raises:
        ValueRefusedError: it is.
    """
    if len(tag) > LONGEST_TAG:
        raise ValueRefusedError(
            f"tag `{shown(tag)}` is {len(tag)} characters long", hint=f"use at most {LONGEST_TAG}"
        )
    if len(qube.tags) >= MOST_TAGS:
        raise ValueRefusedError(
            f"qube `{qube.name}` has {len(qube.tags)} tags",
            hint=f"at most {MOST_TAGS} are possible: remove one first",
        )


def check_first_tags(qube: QubeName, number: int) -> None:
    """Refuse more tags for a new qube than it may have, besides those that the system gives.

    Raises:
        ValueRefusedError: there are.
    """
    if number > MOST_TAGS:
        raise ValueRefusedError(
            f"qube `{qube}` would have {number} tags",
            hint=f"at most {MOST_TAGS} are possible: shorten the feature `tag-created-vm-with`",
        )


def check_text(name: str, value: str) -> None:
    """Refuse a text that is too long for any property.

    Raises:
        ValueRefusedError: it is.
    """
    if len(value) > LONGEST_TEXT:
        raise ValueRefusedError(
            f"the value of `{name}` is {len(value)} characters long",
            hint=f"use at most {LONGEST_TEXT}",
        )


def check_denied(number: int) -> None:
    """Refuse more codes of device interfaces than a qube may be kept from.

    Raises:
        ValueRefusedError: there are.
    """
    if number > MOST_DENIED:
        raise ValueRefusedError(
            f"{number} codes of device interfaces are too many",
            hint=f"use at most {MOST_DENIED}; `*` in a code stands for any",
        )
