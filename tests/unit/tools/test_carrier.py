"""How the commands hand over to the program that carries a call."""

from __future__ import annotations

import subprocess
import sys

BECOMES = """
from caisson.tools.running import Carrier
Carrier("/bin/sh", ["sh", "-c", "echo lost; exit $?"], {}).in_place()
"""


def test_a_closed_stdout_is_the_carriers_to_tell_of() -> None:
    """`qvm-run -p` started with `>&-` becomes the client, which finds that it cannot write."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", BECOMES],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
        timeout=30,
    )
    assert done.returncode != 0
    assert b"Traceback" not in done.stderr
    assert b"echo" in done.stderr
