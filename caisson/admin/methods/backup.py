"""Backups, as far as there are profiles to speak of (specification sheet, section 2.8)."""

from __future__ import annotations

import asyncio

from caisson.admin.registry import Access, Call, Scope, Text, To, method
from caisson.errors import (
    BackupProfileNotFoundError,
    CaissonError,
    NotImplementedHereError,
    ProtocolError,
)
from caisson.names import shown


@method(
    "admin.backup.Execute",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    scope=Scope.GLOBAL,
    access=Access.EXECUTE,
    help="Make the backup that a profile describes, and wait for it; not available yet.",
)
async def execute(call: Call) -> None:
    """Refuse a backup whose profile exists."""
    await _refuse(call)


@method(
    "admin.backup.Info",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    help="Tell what the backup of a profile would contain; not available yet.",
)
async def info(call: Call) -> None:
    """Refuse to tell of a backup whose profile exists."""
    await _refuse(call)


@method(
    "admin.backup.Cancel",
    to=To.ADMIN,
    argument=Text.REQUIRED,
    scope=Scope.GLOBAL,
    access=Access.EXECUTE,
    help="Stop a backup that is under way.",
)
async def cancel(call: Call) -> None:
    """Refuse: no backup can be under way."""
    profile = _profile(call)
    raise CaissonError(f"no backup of profile `{shown(profile)}` is under way")


async def _refuse(call: Call) -> None:
    profile = _profile(call)
    if not await asyncio.to_thread(call.services.has_backup_profile, profile):
        raise BackupProfileNotFoundError(
            f"backup profile `{shown(profile)}` does not exist",
            hint="write it to `/etc/qubes/backup/NAME.conf`",
        )
    raise NotImplementedHereError(
        "backups cannot be made yet: volumes are not read out",
        hint="copy files out of running qubes with `qvm-run --pass-io`",
    )


def _profile(call: Call) -> str:
    """The profile's name: part of a path, so without a slash."""
    if "/" in call.untrusted_argument:
        raise ProtocolError(
            f"backup profile `{shown(call.untrusted_argument)}` contains a slash",
            hint="give the name of a file in `/etc/qubes/backup`, without `.conf`",
        )
    return call.untrusted_argument
