"""`qrexec-legacy-convert` on the files of an instance."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from broker_rig import PATIENCE, info

from caisson.paths import Paths
from caisson.policy import PolicySet
from caisson.policy.legacy import same_rules
from caisson.store.policy_files import load_policy
from caisson.store.policy_lock import changing_policy

BIN = Path(sys.executable).parent
OLD = {
    "my.Service": "# who may\n$anyvm vault allow,user=root\n$include:include/common\n",
    "my.Service+secret": "work $dispvm allow\n",
    "qubes.Gpg": "work vault ask,default_target=vault\n",
    "include/common": "$tag:t $default ask\n",
}


class Machine:
    """An instance whose policy is partly in old files; no daemon runs."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        for directory in (*self.paths.policy_dirs, self.paths.legacy_policy / "include"):
            directory.mkdir(parents=True)
        self.new("35-compat.policy", "!compat-4.0\n")
        self.new("30-user.policy", "my.Other * work vault allow\n")
        for name, text in OLD.items():
            (self.paths.legacy_policy / name).write_text(text)

    def new(self, name: str, text: str) -> None:
        """Write a policy file."""
        (self.paths.policy_dirs[1] / name).write_text(text)

    def policy(self) -> PolicySet:
        """What is in force."""
        policy = load_policy(self.paths)
        assert isinstance(policy, PolicySet), policy.error
        return policy

    def tree(self) -> dict[str, tuple[int, str]]:
        """All files but the lock, which stays."""
        files = {path for path in self.paths.root.rglob("*") if path.is_file()}
        files.discard(self.paths.policy_lock)
        return {str(path): (path.stat().st_ino, path.read_text()) for path in sorted(files)}

    def convert(self, *options: str, answer: str = "") -> tuple[int, str, str]:
        """Run the command; exit code, stdout, stderr."""
        done = subprocess.run(
            [BIN / "qrexec-legacy-convert", *options],
            env=os.environ | {"CAISSON_ROOT": str(self.paths.root), "NO_COLOR": "1"},
            input=answer,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def system(self, *names: str) -> str:
        """Write system information; its file."""
        path = self.paths.root / "system.json"
        path.write_text(json.dumps({"domains": {name: info(name) for name in names}}))
        return str(path)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with old files."""
    return Machine(tmp_path)


@pytest.mark.parametrize("how", [("--yes",), ()])
def test_old_files_become_rules_that_decide_the_same(machine: Machine, how: tuple[str, ...]):
    """Kept if told so; the old files stay under another name; again there is nothing to do."""
    before = machine.policy()
    code, out, err = machine.convert(*how, answer="yes\n")
    assert (code, out) == (0, "")
    assert "every service has the same rules" in err
    assert "written: 30-user.policy\nwritten: 50-config-splitgpg.policy\n" in err
    assert same_rules(before, machine.policy())
    kept = {p.name for p in machine.paths.legacy_policy.iterdir()}
    assert kept == {
        "include",
        "my.Service.rpmsave",
        "my.Service+secret.rpmsave",
        "qubes.Gpg.rpmsave",
    }
    files = {p.name for p in machine.paths.policy_dirs[1].iterdir()}
    assert files == {"30-user.policy", "35-compat.policy", "50-config-splitgpg.policy"}
    assert machine.convert() == (0, "", "nothing to convert\n")


@pytest.mark.parametrize("answer", ["", "n\n", "\n", "maybe\n"])
def test_without_a_yes_everything_is_put_back(machine: Machine, answer: str):
    """The very same files, and an exit code that says so."""
    before = machine.tree()
    code, _, err = machine.convert(answer=answer)
    assert code == 1
    assert err.endswith("Keep the new policy? [y/N] everything is as it was\n")
    assert machine.tree() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_is_broken_off_at_the_question_puts_everything_back(
    machine: Machine, number: signal.Signals
):
    """Ctrl-C is no yes, and neither is a terminal that goes away."""
    before = machine.tree()
    command = [BIN / "qrexec-legacy-convert", "--root", machine.paths.root]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stderr is not None
        while b"retired" not in running.stderr.readline():
            pass
        assert machine.tree() != before
        running.send_signal(number)
        assert running.wait(PATIENCE) == 128 + number
    assert machine.tree() == before


def test_a_dry_run_prints_what_would_change(machine: Machine):
    """A patch of the files and the renames, on stdout; nothing is touched."""
    before = machine.tree()
    code, out, _ = machine.convert("--dry-run")
    assert code == 0
    assert "+++ b/30-user.policy\n" in out
    assert "\n+my.Service +secret @anyvm @anyvm deny\n" in out
    assert "\n+# who may\n+my.Service * @anyvm vault allow user=root\n" in out
    assert "\nrename my.Service => my.Service.rpmsave\n" in out
    assert machine.tree() == before


def test_what_cannot_be_placed_is_compared_call_by_call(machine: Machine):
    """It is refused with the calls that would change; where none does, it is converted."""
    machine.new(
        "35-compat.policy", "my.Service * far vault deny\n!compat-4.0\nmy.Service * far * deny\n"
    )
    before = machine.tree()
    options = ("--yes", "--system-info", machine.system("dom0", "work", "vault", "far"))
    code, _, err = machine.convert(*options)
    assert code == 1
    assert "wider: my.Service\n" in err
    assert "from  far\n    to    vault\n" in err
    assert "calls would be decided differently, so nothing is changed" in err
    Path(options[2]).unlink()
    assert machine.tree() == before
    options = ("--yes", "--system-info", machine.system("dom0", "work", "vault"))
    code, _, err = machine.convert(*options)
    assert (code, "every call between the qubes that exist" in err) == (0, True)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("30-user.policy", "nonsense\n", "30-user.policy:1:"),
        ("35-compat.policy", "", "not in force"),
    ],
)
def test_what_cannot_be_converted_is_left_alone(machine: Machine, file: str, text: str, said: str):
    """A broken policy, and old files that count for nothing."""
    machine.new(file, text)
    before = machine.tree()
    code, out, err = machine.convert("--yes")
    assert (code, out) == (1, "")
    assert said in err
    assert machine.tree() == before


def test_escapes_in_old_files_do_not_reach_the_terminal(machine: Machine):
    """A comment may hold anything; on a terminal it is made visible."""
    path = machine.paths.legacy_policy / "my.Service"
    path.write_text("# \x1b]0;owned\x07\n" + OLD["my.Service"])
    ours, theirs = pty.openpty()
    command = [BIN / "qrexec-legacy-convert", "--dry-run", "--root", machine.paths.root]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs):
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # at the end
            while chunk := os.read(ours, 4096):
                said += chunk
        os.close(ours)
    assert b"\\x1b]0;owned\\x07" in said
    assert b"\x1b" not in said


def test_nothing_is_converted_while_the_daemon_changes_policy(machine: Machine):
    """It is refused at once; whoever only looks takes no lock and needs none."""
    before = machine.tree()
    with changing_policy(machine.paths):
        code, _, err = machine.convert("--yes")
        assert (code, machine.tree()) == (1, before)
        assert err.startswith("error: somebody else is changing the policy\n")
        assert machine.convert("--dry-run")[0] == 0
    assert machine.convert("--yes")[0] == 0
