"""`qrexec-run-service`: a service of this qube with our own streams, as an agent would start it."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from agent_rig import BINARY, ME, PATIENCE

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="switches the user")


@dataclass
class Place:
    """Directories of services and settings, and the program."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("services", "settings", "locks"):
            (self.home / name).mkdir()
        (self.home / "qrexec-run-service").symlink_to(BINARY)
        self.environment = {
            "PATH": os.environ["PATH"],
            "QREXEC_SERVICE_PATH": str(self.home / "services"),
            "QUBES_RPC_CONFIG_PATH": str(self.home / "settings"),
            "CAISSON_SESSION_LOCKS": str(self.home / "locks"),
        }

    def write(self, name: str, text: str) -> None:
        """Put a service there."""
        path = self.home / "services" / name
        path.write_text(text)
        path.chmod(0o755)

    def run(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
        """Run the program."""
        command = [self.home / "qrexec-run-service", *arguments]
        options = {"env": self.environment, "capture_output": True, "timeout": PATIENCE}
        return subprocess.run(command, check=False, **(options | more))


@pytest.fixture
def place() -> Iterator[Place]:
    """A place of our own that other users may enter."""
    with tempfile.TemporaryDirectory() as directory:
        yield Place(Path(directory))


def test_streams_argument_and_code_are_those_of_the_service(place: Place) -> None:
    """Nothing stands between."""
    place.write("a.Echo", '#!/bin/sh\necho "$1" >&2; cat; exit 9\n')
    done = place.run("a.Echo+arg", "work", input=b"in\0put")
    assert (done.returncode, done.stdout, done.stderr) == (9, b"in\0put", b"arg\n")


def test_the_service_learns_of_its_call_and_of_no_other(place: Place) -> None:
    """What is inherited is no word about a call; the rest of our environment is."""
    place.write("a.Env", "#!/bin/sh\nexec env\n")
    place.environment |= {"QREXEC_REMOTE_DOMAIN": "forged", "QREXEC_OLD": "1", "KEPT": "yes"}
    for target, told in (
        ((), {"QREXEC_REQUESTED_TARGET_TYPE": ""}),
        (
            ("name", "vault"),
            {"QREXEC_REQUESTED_TARGET_TYPE": "name", "QREXEC_REQUESTED_TARGET": "vault"},
        ),
        (
            ("keyword", "dispvm:x"),
            {
                "QREXEC_REQUESTED_TARGET_TYPE": "keyword",
                "QREXEC_REQUESTED_TARGET_KEYWORD": "dispvm:x",
            },
        ),
    ):
        done = place.run("a.Env+a+b", "work", *target)
        found = dict(line.split("=", 1) for line in done.stdout.decode().splitlines())
        assert int(found.pop("QREXEC_AGENT_PID")) > 1
        assert found["KEPT"] == "yes"
        assert found["USER"] == ME
        assert {name: value for name, value in found.items() if name.startswith("QREXEC")} == {
            "QREXEC_SERVICE_PATH": place.environment["QREXEC_SERVICE_PATH"],
            "QREXEC_SERVICE_FULL_NAME": "a.Env+a+b",
            "QREXEC_SERVICE_ARGUMENT": "a+b",
            "QREXEC_REMOTE_DOMAIN": "work",
            **told,
        }


def test_a_socket_service_is_told_the_target_too(place: Place) -> None:
    """All that follows `QUBESRPC ` on the wire, then our input."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place.home / "services/a.Socket"))
        listening.listen()
        listening.settimeout(PATIENCE)
        command = [place.home / "qrexec-run-service", "a.Socket+", "work", "keyword", "adminvm"]
        process = subprocess.Popen(
            command, env=place.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with listening.accept()[0] as connection:
            assert process.stdin is not None
            process.stdin.close()
            assert connection.makefile("rb").read() == b"a.Socket+ work keyword adminvm\0"
            connection.sendall(b"answer")
        process.stdin = None
        assert process.communicate(timeout=PATIENCE)[0] == b"answer"
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        ([], 2),
        (["a.B"], 2),
        (["a.B", "work", "name"], 2),
        (["a.B", "work", "name", "x", "y"], 2),
        (["--nonsense", "a.B", "work"], 2),
        (["a.Missing", "work"], 127),
        (["a.True", ""], 125),
        (["a.True", "work", "other", "x"], 125),
        (["a.True", "work", "name", "x y"], 125),
        (["a.True", "work", "name", ""], 125),
        (["../a.True", "work"], 125),
        (["a.True", "a b"], 125),
        (["--user", "no-such-user", "a.True", "work"], 125),
    ],
)
def test_wrong_calls_are_named(place: Place, arguments: list[str], code: int) -> None:
    """Nothing runs."""
    place.write("a.True", "#!/bin/sh\necho ran\n")
    done = place.run(*arguments)
    assert done.returncode == code
    assert b"ran" not in done.stdout
    assert done.stderr.startswith(b"error: ") == (code != 0)


@needs_root
def test_root_may_choose_the_user_and_settings_may_force_one(place: Place) -> None:
    """A forced one counts more; another user inherits nothing of ours."""
    place.home.chmod(0o755)
    place.write("a.Who", '#!/bin/sh\necho "$(id -un) $USER ${KEPT-none}"\n')
    place.environment["KEPT"] = "ours"
    assert place.run("a.Who", "work").stdout == b"root root ours\n"
    assert place.run("--user=daemon", "a.Who", "work").stdout == b"daemon daemon none\n"
    (place.home / "settings/a.Who").write_text("force-user = 'daemon'\n")
    assert place.run("a.Who", "work").stdout == b"daemon daemon none\n"
    assert place.run("--user=root", "a.Who", "work").stdout == b"daemon daemon none\n"
