"""The programs that speak with other qubes, and a client of a few lines for their calls."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from agent_rig import BINARY, PATIENCE, Outcome

NAMES = (
    "qubes-desktop-run",
    "qubes-get-appmenus",
    "qubes-get-image",
    "qubes-image-source",
    "qubes-log-sink",
    "qubes-open-url",
    "qubes-start-app",
    "qvm-convert-img",
    "qvm-log",
    "qvm-open-in-dvm",
    "qvm-open-in-vm",
    "qvm-run-vm",
    "vm-file-editor",
)
CLIENT = r"""#!/bin/sh
prefix=
case $1 in --prefix-data=*) prefix=${1#--prefix-data=}; shift ;; esac
[ "$1" = -- ] || exit 99
printf '%s %s\n' "$2" "$3" >>"$DESK/calls"
service=$DESK/services/${3%%+*}
[ -x "$service" ] || { echo 'Request refused' >&2; exit 126; }
if [ -z "$prefix" ]; then
    exec "$service"
fi
{ printf '%s' "$prefix"; cat; } | "$service"
"""


@dataclass
class Desk:
    """A directory with our programs along PATH, and the services that they reach."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("bin", "services", "user"):
            (self.home / name).mkdir()
        for name in NAMES:
            (self.home / "bin" / name).symlink_to(BINARY)
        self.script("bin/qrexec-client-vm", CLIENT)

    def script(self, name: str, text: str) -> Path:
        """A program of the test's own; a line without `#!` is one of a shell."""
        path = self.home / name
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def service(self, name: str, text: str) -> None:
        """What answers a call of this service."""
        self.script(f"services/{name}", text)

    def opener(self, text: str) -> None:
        """What opens files and addresses."""
        self.environment["QUBES_OPEN_WITH"] = str(self.script("opener", text))

    def run(self, name: str, *arguments: str | bytes, stdin: bytes = b"", **more: str) -> Outcome:
        """Run one of our programs to its end."""
        done = subprocess.run(
            [self.home / "bin" / name, *arguments],
            input=stdin,
            capture_output=True,
            env=self._environment(more),
            cwd=self.home / "user",
            timeout=PATIENCE,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def start(self, name: str, **more: str) -> subprocess.Popen[bytes]:
        """Start one of our programs with pipes; ending it is the test's part."""
        return subprocess.Popen(
            [self.home / "bin" / name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=self._environment(more),
            cwd=self.home / "user",
        )

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        return {
            "PATH": f"{self.home}/bin:/usr/bin:/bin",
            "HOME": str(self.home / "user"),
            "DESK": str(self.home),
            "QREXEC_REMOTE_DOMAIN": "work",
            **self.environment,
            **more,
        }

    def calls(self) -> list[str]:
        """Targets and services of all calls so far."""
        path = self.home / "calls"
        return path.read_text().splitlines() if path.exists() else []
