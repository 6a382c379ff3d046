"""The services that open, start, show and log, called in a real qube."""

from __future__ import annotations

import asyncio

import pytest
from grounds.agent import visitor
from grounds.engine import Ground
from test_pictures import RGBA, ROWS, png

pytestmark = pytest.mark.root

# What the owner of a qube installs, as root, in the qube itself.
PREPARE = r"""
mkdir -p /usr/local/bin /usr/local/share/applications /usr/local/share/icons/hicolor/48x48/apps
cat >/usr/local/bin/qubes-open <<'END'
#!/bin/sh
printf '%s %s\n' "$(id -un)" "$1" >/tmp/opened
case $1 in /*) stat -c '%a %U' "${1%/*}" "$1" >>/tmp/opened; echo more >>"$1" ;; esac
END
chmod +x /usr/local/bin/qubes-open
printf '[Desktop Entry]\nType=Application\nName=N\nExec=tee /tmp/started %%U\n' \
    >/usr/local/share/applications/org.n.desktop
"""
EDITED = """user /tmp/dom0-{}/a.txt
700 user
600 user
"""


async def test_what_other_qubes_open_start_and_log(ground: Ground) -> None:
    """Each service of this kind, as the agent starts it, with the owner's own opener."""
    async with visitor(ground) as qube:

        async def call(descriptor: str, stdin: bytes = b"") -> tuple[int, bytes]:
            outcome = await asyncio.to_thread(qube.service, descriptor, stdin)
            return outcome.code, outcome.stdout or outcome.stderr

        async def shell(line: str) -> str:
            outcome = await asyncio.to_thread(qube.shell, line)
            assert outcome.code == 0, outcome.stderr
            return outcome.stdout.decode()

        letter = b"a.txt".ljust(256, b"\0") + b"text\n"
        code, said = await call("qubes.OpenInVM", letter)
        # What opens files depends on the template; with none the caller is told so.
        assert (code, said.split(b"\n")[0]) == (
            1,
            b"error: the qube that was to open it has no program that opens files",
        )

        await shell(PREPARE)
        assert await call("qubes.OpenInVM", letter) == (0, b"text\nmore\n")
        opened = await shell("cat /tmp/opened; rm /tmp/opened")
        assert opened == EDITED.format(opened.splitlines()[0][len("user /tmp/dom0-") :][:6])
        assert await shell("ls -d /tmp/dom0-* 2>/dev/null || true") == ""

        assert await call("qubes.OpenURL", b"https://example.org/?a=$(id)\n") == (0, b"")
        assert await shell("cat /tmp/opened") == "user https://example.org/?a=$(id)\n"
        assert (await call("qubes.OpenURL", b"file:///etc/passwd\n"))[0] == 1

        assert await call("qubes.StartApp+org.n") == (0, b"")
        assert await shell("stat -c '%U %s' /tmp/started") == "user 0\n"
        assert (await call("qubes.StartApp+sh"))[0] == 1
        _, listed = await call("qubes.GetAppmenus")
        assert b"org.n.desktop:Exec=qubes-desktop-run org.n.desktop\n" in listed

        assert await call("qubes.GetImageRGBA", b"-\n" + png(ROWS)) == (0, RGBA)

        assert await call("qubes.Log", b"<11>a\x1b[2J\n") == (0, b"OK\nOK\n")
        log = "/rw/log/qubes-remote/dom0.log"
        assert (await shell(f"cut -d' ' -f2- {log}; stat -c '%a %U' {log}")) == (
            "err: a\\x1b[2J\n644 root\n"
        )
        assert await call("qubes.WaitForSession+x") == (
            0,
            b"warning: qubes.WaitForSession takes no argument\n",
        )
