"""`qubesdb-*` as scripts in qubes use them, on facts as qubesd writes them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from agent_rig import BINARY, PATIENCE, eventually

from caisson.lifecycle.facts import encode

FEATURES_REQUEST = Path(__file__).parents[2] / "qube/usr/bin/qvm-features-request"
COMMANDS = tuple(
    f"qubesdb-{verb}" for verb in ("read", "list", "multiread", "watch", "write", "rm")
)
FACTS = {
    "/name": "work",
    "/qubes-ip": "10.137.0.5",
    "/qubes-service/cron": "0",
    "/qubes-service/cups": "1",
    "/vm-config/a": "x y",
}


class Desk:
    """A qube's view of its facts."""

    def __init__(self, home: Path) -> None:
        self.told = home / "told"
        self.own = home / "own"
        self.told.mkdir()
        self.env = {"CAISSON_FACTS": str(self.told), "CAISSON_OWN_FACTS": str(self.own)}
        self.tell(FACTS)

    def tell(self, facts: Mapping[str, str]) -> None:
        """Replace the facts as qubesd does."""
        (self.told / ".new").write_bytes(encode(facts))
        (self.told / ".new").rename(self.told / "values")

    def begin(self, name: str, *argv: str | bytes) -> subprocess.Popen[bytes]:
        """Begin a command."""
        return subprocess.Popen(
            [name, *argv],
            executable=BINARY,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, name: str, *argv: str | bytes) -> tuple[int, str, str]:
        """Run a command: its code, output and messages."""
        with self.begin(name, *argv) as child:
            out, err = child.communicate(timeout=PATIENCE)
        return child.returncode, out.decode(), err.decode()

    @contextlib.contextmanager
    def watching(self, *paths: str) -> Iterator[subprocess.Popen[bytes]]:
        """A `qubesdb-watch` that waits."""
        with self.begin("qubesdb-watch", *paths) as child:
            try:
                waiting(child)
                yield child
            finally:
                child.kill()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Facts, and no notes yet."""
    return Desk(tmp_path)


def test_a_value_is_printed_with_a_newline_and_a_missing_path_fails(desk: Desk):
    """What scripts test for; `-q` is for those that expect it to be missing."""
    assert desk.run("qubesdb-read", "/name") == (0, "work\n", "")
    assert desk.run("qubesdb-read", "/name", "/qubes-ip") == (0, "work\n10.137.0.5\n", "")
    assert desk.run("qubesdb-read", "-q", "/absent", "/name") == (1, "work\n", "")
    assert desk.run("qubesdb-read", "/absent") == (
        1,
        "",
        "error: there is no `/absent` in this qube\n",
    )


def test_lists_leave_the_prefix_out(desk: Desk):
    """As loops over services expect it."""
    assert desk.run("qubesdb-list", "/qubes-service/")[:2] == (0, "cron\ncups\n")
    assert desk.run("qubesdb-list", "-f", "/vm-config/")[:2] == (0, "/vm-config/a\n")
    assert desk.run("qubesdb-multiread", "/qubes-service/")[:2] == (0, "cron = 0\ncups = 1\n")
    assert desk.run("qubesdb-list", "/absent/") == (0, "", "")


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("qubesdb-read", ()),
        ("qubesdb-read", ("--unknown", "/name")),
        ("qubesdb-read", ("-d", "vault", "/name")),
        ("qubesdb-write", ("/mine",)),
    ],
)
def test_a_command_line_without_sense_is_refused(desk: Desk, name: str, argv: tuple[str, ...]):
    """Also the wish to read another qube's facts."""
    code, out, err = desk.run(name, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_speaks_in_its_own_name(desk: Desk, name: str):
    """Its help, and the hint behind its mistakes."""
    code, out, err = desk.run(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: {name} ")
    assert not any(other in out for other in COMMANDS if other != name)
    for wrong in ((), ("--wrong", "/name")):
        code, out, err = desk.run(name, *wrong)
        assert (code, out) == (2, "")
        assert err.endswith(f"hint: `{name} --help` shows the options\n")


@pytest.mark.parametrize("name", ["qubesdb-read", "qubesdb-watch", "qubesdb-rm"])
def test_what_can_be_no_path_is_told_at_once(desk: Desk, name: str):
    """Nobody waits for what never comes."""
    for wrong in ("nosl", "/a b", "/" + "x" * 255):
        code, out, err = desk.run(name, "/name" if name == "qubesdb-watch" else "/mine", wrong)
        assert (code, out) == (1, "")
        assert f"error: `{wrong[:200]}" in err
        assert "is no path: it begins with `/`" in err


def test_features_are_noted_all_or_none(desk: Desk, tmp_path: Path):
    """The word that is wrong is named, without what could drive a terminal."""
    home = tmp_path / "bin"
    home.mkdir()
    for name in ("qubesdb-write", "qubesdb-multiread"):
        (home / name).symlink_to(BINARY)

    def request(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [FEATURES_REQUEST, *words],
            env=desk.env | {"PATH": f"{home}:/usr/bin:/bin"},
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        return done.returncode, done.stderr.decode()

    hint = "hint: `qvm-features-request --help` shows the options\n"
    for wrong, shown in (
        ("gui", "gui"),
        ("a b=1", "a b=1"),
        ("x=\x1b[2J", "x=?[2J"),
        ("--wrong", "--wrong"),
        ("=1", "=1"),
        ("x=" + "\n" * 999, "x=" + "?" * 78),
    ):
        code, err = request("os=Linux", wrong, "--commit")
        assert code == 2
        assert err.startswith(f"error: `{shown}`: ")
        assert err.endswith(hint)
        assert not desk.own.exists()
    assert request() == (2, f"error: expected NAME=VALUE or --commit\n{hint}")
    assert request("os=Linux", "os-version=12 a=b") == (0, "")
    noted = "os = Linux\nos-version = 12 a=b\n"
    assert desk.run("qubesdb-multiread", "/features-request/")[1] == noted


def test_a_qube_keeps_notes_beside_the_facts_and_cannot_forge_facts(desk: Desk):
    """Whatever it notes, qubesd's word counts; also what qubesd says only later."""
    assert desk.run("qubesdb-write", "/mine/a", "1", "/mine/b", "2") == (0, "", "")
    assert desk.run("qubesdb-multiread", "/mine/")[1] == "a = 1\nb = 2\n"
    assert desk.run("qubesdb-rm", "/mine/a") == (0, "", "")
    assert desk.run("qubesdb-rm", "-q", "/mine/a") == (1, "", "")
    for path in ("/name", "/qubes-ip", "/qubes-service/new", "/vm-config/new", "/type"):
        code, _, err = desk.run("qubesdb-write", "/mine/c", "3", path, "forged")
        assert code == 1
        assert err == f"error: `{path}` is told by the admin qube; this qube cannot change it\n"
    assert desk.run("qubesdb-read", "-q", "/mine/c")[0] == 1
    desk.tell({**FACTS, "/mine/b": "told"})
    assert desk.run("qubesdb-read", "/mine/b")[1] == "told\n"


def test_control_characters_are_spelt_out(desk: Desk):
    """A note is not a way to drive a terminal (QSB-087)."""
    assert desk.run("qubesdb-write", "/mine", b"a\x1b[2J\n")[0] == 0
    assert desk.run("qubesdb-read", "/mine")[1] == "a\\x1b[2J\\x0a\n"
    assert desk.run("qubesdb-read", "-r", "/mine")[1] == "a\x1b[2J\n\n"
    assert "\x1b" not in desk.run("qubesdb-read", b"/\x1b[2J")[2]


def test_notes_are_bounded(desk: Desk):
    """A loop does not fill the qube's memory."""
    assert desk.run("qubesdb-write", "/big", "x" * 3073)[0] == 1
    many = [word for i in range(200) for word in (f"/n/{i}", "x" * 3000)]
    code, _, err = desk.run("qubesdb-write", *many)
    assert code == 1
    assert "at most" in err
    assert desk.run("qubesdb-list", "/n/") == (0, "", "")


@pytest.mark.parametrize("kind", ["pipe", "directory", "device"])
def test_what_is_no_file_is_not_read(desk: Desk, kind: str):
    """A pipe in the place of the notes would make every reader wait."""
    desk.own.mkdir()
    values = desk.own / "values"
    match kind:
        case "pipe":
            os.mkfifo(values)
        case "directory":
            values.mkdir()
        case _:
            values.symlink_to("/dev/zero")
    assert desk.run("qubesdb-read", "/name")[0] == 1


def waiting(child: subprocess.Popen[bytes]) -> None:
    """Return when the command waits for an event."""
    stat = Path(f"/proc/{child.pid}/stat")
    sleeping = Path(f"/proc/{child.pid}/fd/3")  # the watch is the first that it opens
    eventually(lambda: sleeping.exists() and stat.read_text().rpartition(") ")[2][0] == "S")


def test_a_watch_ends_with_the_first_change_at_or_below_its_path(desk: Desk):
    """Changes beside it do not wake it; a note of the qube's own does."""
    with desk.watching("/qubes-service") as watch:
        desk.tell({**FACTS, "/name": "other", "/qubes-serviceless": "1"})
        waiting(watch)
        desk.tell({**FACTS, "/qubes-service/cron": "1"})
        assert watch.communicate(timeout=PATIENCE)[0] == b"/qubes-service/cron\n"
    with desk.watching("/absent", "/mine") as watch:
        assert desk.run("qubesdb-write", "/mine", "1")[0] == 0
        assert watch.communicate(timeout=PATIENCE)[0] == b"/mine\n"
    with desk.watching("/mine/") as watch:
        assert desk.run("qubesdb-write", "/mine/a", "1")[0] == 0
        assert watch.communicate(timeout=PATIENCE)[0] == b"/mine/a\n"
