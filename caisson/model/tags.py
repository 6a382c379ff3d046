"""Tags that the system itself keeps, because policies trust them (section 6)."""

from __future__ import annotations

from collections.abc import Iterable

from caisson.errors import PermissionDeniedError
from caisson.model.limits import LONGEST_TAG
from caisson.names import DOM0, QubeName, Tag

CREATED_BY = "created-by-"
DISPOSABLE_CREATED_BY = "disp-created-by-"
REFERENCES = {"guivm": "guivm-", "audiovm": "audiovm-", "relayvm": "relayvm-"}
"""Properties that a tag of the qube repeats, for policies to build on."""

_ORIGINS = (CREATED_BY, DISPOSABLE_CREATED_BY)
_MANAGED = (*_ORIGINS, *REFERENCES.values(), "backup-restore-in-progress")


def of_origin(creator: QubeName) -> tuple[Tag, Tag]:
    """What a qube gets from its creator, and what a disposable gets besides."""
    return Tag.parse(CREATED_BY + creator), Tag.parse(DISPOSABLE_CREATED_BY + creator)


def is_managed(tag: str) -> bool:
    """Whether the tag says something about one qube that must not spread to others."""
    return tag.startswith(_MANAGED)


def free_ones(untrusted_words: Iterable[str]) -> set[Tag]:
    """Those words that are tags which anyone may give."""
    return {
        Tag(word)
        for word in untrusted_words
        if len(word) <= LONGEST_TAG and Tag.pattern.fullmatch(word) and not is_managed(word)
    }


def check(tag: Tag, origin: QubeName) -> None:
    """Refuse to let anyone but the admin qube say who created a qube: policies build on it.

    Raises:
        PermissionDeniedError: the tag is such a one.
    """
    if tag.startswith(_ORIGINS) and origin != DOM0:
        raise PermissionDeniedError(
            f"tag `{tag}` says who created a qube, only the admin qube may change it"
        )
