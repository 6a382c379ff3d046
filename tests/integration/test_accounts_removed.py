"""Taking Caisson off a machine where other instances run: their accounts stay."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from caisson.paths import SHIPPED

pytestmark = pytest.mark.root
BUSY, IDLE, GROUP = "caisson-busy", "caisson-idle", "caisson-both"
NUMBERS = {BUSY: 59321, IDLE: 59322, GROUP: 59323}


@pytest.fixture
def accounts() -> Iterator[list[str]]:
    """What a command runs under to see a copy of `/etc`, with accounts that the machine lacks."""
    with tempfile.TemporaryDirectory(prefix="caisson-test-") as directory:
        copy = Path(directory) / "etc"
        subprocess.run(["cp", "-a", "/etc", str(copy)], check=True)
        inside = ["unshare", "--mount", "sh", "-ec", 'mount --bind "$0" /etc; exec "$@"', str(copy)]
        make = f"groupadd -g {NUMBERS[GROUP]} {GROUP}"
        for user in (BUSY, IDLE):
            make += f" && useradd --no-create-home -u {NUMBERS[user]} -U {user}"
        subprocess.run([*inside, "sh", "-ec", make], check=True)
        yield inside


def removed(inside: list[str]) -> tuple[list[str], str]:
    """Remove them; which are left, and what was said."""
    script = shlex.join([str(SHIPPED / "script/remove-accounts"), GROUP, BUSY, IDLE])
    look = (
        f"{script}; getent passwd {BUSY} {IDLE} | cut -d: -f1; getent group {GROUP} | cut -d: -f1"
    )
    done = subprocess.run([*inside, "sh", "-c", look], capture_output=True, text=True, check=False)
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize("member", [False, True])
def test_an_account_is_kept_while_a_process_has_it(accounts: list[str], member: bool):
    """Its number would go to the next account that somebody makes; the group likewise."""
    groups = ["--groups", str(NUMBERS[GROUP])] if member else ["--clear-groups"]
    numbers = ["--reuid", str(NUMBERS[BUSY]), "--regid", str(NUMBERS[BUSY]), *groups]
    other = subprocess.Popen(
        ["setpriv", *numbers, "sh", "-c", "echo up; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"up\n"
        left, said = removed(accounts)
    finally:
        other.kill()
        other.communicate()
    assert left == ([BUSY, GROUP] if member else [BUSY])
    kept = f"uninstall: user `{BUSY}` is kept: process {other.pid} has it\n"
    assert kept in said
    assert (f"group `{GROUP}` is kept: process {other.pid} has it" in said) is member
    assert removed(accounts)[0] == []
