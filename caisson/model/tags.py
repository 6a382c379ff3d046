"""Tags that the system itself keeps, because policies trust them (section 6)."""

from __future__ import annotations

from caisson.errors import PermissionDeniedError
from caisson.names import DOM0, QubeName, Tag

CREATED_BY = "created-by-"
DISPOSABLE_CREATED_BY = "disp-created-by-"
_ORIGINS = (CREATED_BY, DISPOSABLE_CREATED_BY)
_MANAGED = (*_ORIGINS, "guivm-", "audiovm-", "relayvm-", "backup-restore-in-progress")


def of_origin(creator: QubeName) -> tuple[Tag, Tag]:
    """What a qube gets from its creator, and what a disposable gets besides."""
    return Tag(CREATED_BY + creator), Tag(DISPOSABLE_CREATED_BY + creator)


def is_managed(tag: str) -> bool:
    """Whether the tag says something about one qube that must not spread to others."""
    return tag.startswith(_MANAGED)


def check(tag: Tag, origin: QubeName) -> None:
    """Refuse to let anyone but the admin qube say who created a qube: policies build on it.

    Raises:
        PermissionDeniedError: the tag is such a one.
    """
    if tag.startswith(_ORIGINS) and origin != DOM0:
        raise PermissionDeniedError(
            f"tag `{tag}` says who created a qube, only the admin qube may change it"
        )
