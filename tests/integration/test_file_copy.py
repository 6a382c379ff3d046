"""Files between real qubes: commands, policy, service, receiver."""

from __future__ import annotations

import errno
import subprocess
import zlib
from collections.abc import Iterator

import pytest
from agent_rig import BINARY
from grounds.processes import PATIENCE
from grounds.whole import Whole
from qfile_peer import Result, entries_of, read_stream

pytestmark = pytest.mark.root

POLICY = """\
qubes.Filecopy +allow-all-names giver  @anyvm   deny
qubes.Filecopy *                giver  @default allow target=taker
qubes.Filecopy *                giver  taker    allow
qubes.Filecopy *                giver  @anyvm   deny
"""
INCOMING = "QubesIncoming/giver"
TREE = """\
mkdir -p tree/deep/er && cd tree
head -c 300000 /dev/urandom >big
printf content >'a file' && printf '#!/bin/sh\\n' >run && : >deep/er/empty
ln -s 'a file' link && ln -s ../../run deep/er/up
chmod 400 'a file' && chmod 6755 run && chmod 1700 deep/er
touch -d '2001-02-03 04:05:06.123456789' 'a file' deep/er
"""
LOOK = """\
cd {}/tree && find . ! -type l -printf '%p %y %m %T@\\n' | sort
find . -type l -printf '%p %l\\n' | sort; find . -type f | sort | xargs -d '\\n' sha256sum
"""


@pytest.fixture(scope="module")
def qubes(whole: Whole) -> Iterator[Whole]:
    """`giver` and `taker` run."""
    try:
        for name in ("giver", "taker"):
            whole.app(name, start=True)
        whole.policy(POLICY)
        whole.said("giver", TREE)
        yield whole
    finally:
        for name in ("giver", "taker"):
            whole.discard(name)


def test_a_tree_arrives_in_the_qube_that_policy_names(qubes: Whole) -> None:
    """Content, modes but set-user-id and set-group-id, times and links; as the user's own."""
    done = qubes.inside("giver", "qvm-copy tree/")
    assert (done.code, done.err) == (0, "")
    here = qubes.said("giver", LOOK.format("."))
    assert qubes.said("taker", LOOK.format(INCOMING)) == here.replace(" f 6755 ", " f 755 ")
    owners = qubes.said("taker", f"find {INCOMING} -printf '%u\\n' | sort -u")
    assert owners == "user"
    record = qubes.audited(source="giver", service="qubes.Filecopy", ended="exited")
    assert (record["target"], record["code"]) == ("taker", 0)


def test_nothing_is_overwritten(qubes: Whole) -> None:
    """The second file of a name is refused, by name, and a move keeps it."""
    qubes.said("giver", "echo first >twice && qvm-copy-to-vm taker twice && echo second >twice")
    done = qubes.inside("giver", "qvm-move-to-vm taker twice")
    assert done.code == errno.EEXIST
    assert done.err == (
        "error: a file of that name exists in the target qube; nothing is overwritten:"
        " `twice` (code 17)\n"
    )
    assert qubes.said("giver", "cat twice") == "second"
    assert qubes.said("taker", f"cat {INCOMING}/twice") == "first"


def test_a_move_leaves_nothing_behind(qubes: Whole) -> None:
    """What was delivered is gone here, and only that."""
    qubes.said("giver", "mkdir -p moved/d && echo x >moved/d/f && ln -s /etc moved/d/out")
    done = qubes.inside("giver", "qvm-move moved")
    assert done.code == errno.ENOLINK
    assert "no symbolic link that could lead out" in done.err
    qubes.said("giver", "test -e moved/d/f && rm moved/d/out")
    qubes.said("taker", f"rm -r {INCOMING}/moved")
    assert qubes.inside("giver", "qvm-move moved").code == 0
    assert qubes.said("giver", "test ! -e moved; cat /etc/hostname") == "giver"
    assert qubes.said("taker", f"cat {INCOMING}/moved/d/f") == "x"


def test_policy_judges_odd_names_and_other_targets(qubes: Whole) -> None:
    """Refused as any call, and nothing arrives."""
    qubes.said("giver", "touch \"$(printf 'odd\\nname')\" other")
    for command in ("qvm-copy odd*", "qvm-copy-to-vm dom0 other", "qvm-move-to-vm giver other"):
        done = qubes.inside("giver", command)
        assert (done.code, done.err) == (126, "Request refused\n")
    assert qubes.inside("taker", f"ls {INCOMING}/o*").code != 0
    qubes.said("giver", "test -e other")


def test_the_receiver_is_confined_in_a_qube(qubes: Whole) -> None:
    """Landlock and openat2 are there for it: `host` template, container, user without privilege."""
    qubes.said("taker", "rm -rf QubesIncoming && mkdir elsewhere && ln -s ../elsewhere x")
    qubes.said("taker", "mkdir QubesIncoming && ln -s ../elsewhere QubesIncoming/giver")
    done = qubes.inside("giver", "touch other; qvm-copy other")
    assert done.code == 1
    assert "must be directories of this user, not links" in done.err
    assert qubes.said("taker", "ls elsewhere; rm -r QubesIncoming") == ""


def test_dom0_keeps_a_backup_in_a_qube_and_restores_it(qubes: Whole) -> None:
    """`qubes.Backup` stores the stream, `qubes.Restore` sends members of it as files."""

    def begin(service: str) -> subprocess.Popen[bytes]:
        words = ["qrexec-client", "-d", "taker", f"user:QUBESRPC {service} dom0"]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            words, executable=BINARY, env=qubes.env, stdin=pipe, stdout=pipe, stderr=pipe
        )

    qubes.said("taker", "mkdir -p b/c backups && echo one >b/1 && echo two >b/c/2")
    archive = qubes.inside("taker", "tar -cf - b").raw
    process = begin("qubes.Backup")
    out, err = process.communicate(b"/home/user/backups\n" + archive, timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, b"", b"")
    process = begin("qubes.Restore")
    assert process.stdin is not None
    process.stdin.write(b"cat /home/user/backups/qubes-backup-*\nb/c\n")
    process.stdin.flush()
    raw = read_stream(process)
    assert [entry.name for entry in entries_of(raw)] == [b"b", b"b/c", b"b/c/2", b"b/c", b"b"]
    answer = Result(0, zlib.crc32(raw), b"b").encode()
    assert process.communicate(answer, timeout=PATIENCE) == (b"", b"")
    assert process.returncode == 0
