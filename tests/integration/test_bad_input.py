"""What goes wrong by a person's hand or a machine's lack: one clear error, a hint, nothing half."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from grounds.daemon import HIDE, Daemon
from grounds.processes import Done, finished, until
from grounds.whole import Whole, whole_instance

from caisson.paths import SHIPPED

pytestmark = pytest.mark.root

MIB = 1 << 20
HIDE_GROUPS = "umount --recursive --lazy /sys/fs/cgroup"


def refused(done: Done, error: str, hint: str) -> None:
    """The command failed with exactly one error and one hint, and printed no data."""
    assert done.code != 0
    assert done.out == ""
    lines = done.err.splitlines()
    assert "Traceback" not in done.err
    assert sum(line.startswith("error: ") for line in lines) == 1, done.err
    assert sum(line.startswith("hint: ") for line in lines) == 1, done.err
    assert re.search(error, done.err), done.err
    assert re.search(hint, done.err), done.err


@pytest.fixture(scope="module")
def bad(whole: Whole) -> Iterator[Whole]:
    """An instance with the qube `taken`, in which nothing that these tests try may change."""
    whole.app("taken")
    before = whole.states(), whole.layers()
    yield whole
    assert (whole.states(), whole.layers()) == before
    whole.discard("taken")


@pytest.mark.parametrize(
    "argv",
    [
        "qvm-start nobody-here",
        "qvm-shutdown nobody-here",
        "qvm-kill nobody-here",
        "qvm-remove -f nobody-here",
        "qvm-prefs nobody-here",
        "qvm-prefs nobody-here label",
        "qvm-prefs nobody-here label red",
        "qvm-tags nobody-here list",
        "qvm-features nobody-here",
        "qvm-run --pass-io nobody-here true",
        "qvm-pause nobody-here",
        "qvm-ls nobody-here",
        "qvm-create --template nobody-here -l red fresh",
        "qvm-create -l red --property netvm=nobody-here fresh",
        "qvm-prefs taken netvm nobody-here",
    ],
)
def test_unknown_qube(bad: Whole, argv: str) -> None:
    """Every command names the qube that there is not, and says how to see those that there are."""
    refused(bad.command(*argv.split()), "`nobody-here`", "qvm-ls")


@pytest.mark.parametrize(
    "name",
    [
        "1st",
        "has space",
        "../etc",
        "a" * 32,
        "Domain-0",
        "none",
        "x/y",
        "ü",
        "x\n",
    ],
)
def test_wrong_name(bad: Whole, name: str) -> None:
    """A name that no qube may have is refused before anything is made."""
    done = bad.command("qvm-create", "-l", "red", "--", name)
    refused(done, "name|options", "name|letter|--help|another")


def test_taken_name(bad: Whole) -> None:
    """The qube that has the name stays as it was."""
    label = bad.command("qvm-prefs", "taken", "label").out
    for name in ("taken", "host", "dom0"):
        refused(bad.command("qvm-create", "-l", "blue", name), f"`{name}`", "name")
    assert bad.command("qvm-prefs", "taken", "label").out == label


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ("qvm-create fresh -l mauve", "`mauve`"),
        ("qvm-create fresh -l red --class NoVM", "NoVM"),
        ("qvm-create fresh -l red --template taken", "`taken`"),
        ("qvm-create fresh -l red --property nonsense=1", "`nonsense`"),
        ("qvm-create fresh -l red --property maxmem=lots", "`?maxmem|lots"),
        ("qvm-prefs taken nonsense", "`nonsense`"),
        ("qvm-prefs taken maxmem lots", "lots"),
        ("qvm-prefs taken netvm taken", "netvm|network|taken"),
        ("qvm-prefs taken klass TemplateVM", "klass"),
        ("qvm-tags taken add a.b", "a.b"),
        ("qvm-remove -f host", "host"),
        ("qvm-remove -f dom0", "dom0"),
        ("qvm-pause taken", "taken"),
        ("qvm-run --pass-io dom0 true", "admin qube"),
    ],
)
def test_wrong_value(bad: Whole, argv: str, error: str) -> None:
    """One line says what is wrong; the qube that was to be made is not there."""
    done = bad.command(*argv.split())
    assert done.code != 0
    assert done.out == ""
    assert "Traceback" not in done.err
    assert re.search(error, done.err), done.err
    assert len(re.findall("^(error|qvm-[a-z]+: error): ", done.err, re.MULTILINE)) == 1, done.err


def test_start_of_a_template_without_content(bad: Whole) -> None:
    """It says how to fill it; a qube of it says so too; neither leaves a trace of the attempt."""
    assert bad.command("qvm-create", "--class", "TemplateVM", "-l", "black", "empty").code == 0
    made = bad.command("qvm-create", "--template", "empty", "-l", "red", "hollow")
    assert made.code == 0, made.err
    layers = bad.layers()
    for name in ("empty", "hollow"):
        refused(bad.command("qvm-start", name), "no content", "caisson template build")
        assert bad.states()[name] == "Halted"
    assert bad.layers() == layers
    assert bad.command("qvm-remove", "-f", "hollow").code == 0
    assert bad.command("qvm-remove", "-f", "empty").code == 0


def test_no_template_at_all() -> None:
    """A new instance has none: creating a qube says how to get one."""
    with whole_instance(template=False) as whole:
        refused(whole.command("qvm-create", "-l", "red", "first"), "template", "template")
        assert set(whole.states()) == {"dom0"}


def test_daemon_not_running(tmp_path: Path) -> None:
    """Every command says that the daemon does not run, and how to start it."""
    elsewhere = Whole()
    try:
        for argv in ("qvm-ls", "qvm-start work", "qvm-create -l red work", "caisson doctor"):
            done = elsewhere.command(*argv.split())
            if argv != "caisson doctor":
                refused(done, "daemon", "caisson up")
            assert "Traceback" not in done.err
    finally:
        elsewhere.remove()


def test_daemon_that_went_away(whole: Whole) -> None:
    """Its socket is still there, and nobody behind it."""
    whole.qubesd.crash()
    try:
        refused(whole.command("qvm-ls"), "does not run", "caisson up")
    finally:
        whole.qubesd.start()


def test_supervisor_killed() -> None:
    """`caisson up` is killed: its daemons end too, qubes run on, and `caisson up` works again."""
    whole = Whole()
    lock = whole.paths.run / "caisson-up.lock"
    try:
        assert whole.command("caisson", "up", "--detach").code == 0
        whole.template()
        whole.app("work", start=True)
        os.kill(int(lock.read_text()), signal.SIGKILL)
        until(lambda: whole.command("qvm-ls").code, "the daemons end")
        until(lambda: whole.command("caisson", "up", "--detach").code == 0, "it starts again")
        assert whole.said("work", "hostname") == "work"
        refused(whole.command("caisson", "up"), "run already", "caisson down")
        assert whole.command("qvm-kill", "work").code == 0
        assert whole.command("caisson", "down").code == 0
        assert whole.left() == []
        refused(whole.command("caisson", "down"), "no daemons", "systemctl")
    finally:
        whole.remove()


def as_nobody(whole: Whole, *argv: str) -> Done:
    """Run a command as a user without any rights."""
    user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    return finished([*user, *argv], env=whole.env)


def readable() -> bool:
    """Whether an ordinary user can read this checkout at all."""
    test = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "test", "-r"]
    return subprocess.run([*test, SHIPPED / "caisson/paths.py"], check=False).returncode == 0


needs_readable = pytest.mark.skipif(not readable(), reason="the checkout is private to its owner")


@needs_readable
def test_not_root(bad: Whole) -> None:
    """Who may not speak to the daemon is told how to be allowed."""
    for argv in ("qvm-ls", "qvm-start taken", "qvm-run taken true"):
        program, *rest = argv.split()
        refused(as_nobody(bad, program, *rest), "permission|socket", "sudo")


@needs_readable
@pytest.mark.parametrize("argv", ["caisson up", "caisson up --detach"])
def test_daemons_without_root(bad: Whole, argv: str) -> None:
    """The daemons say that they need root, before they touch anything."""
    refused(as_nobody(bad, *argv.split()), "root", "sudo")


@needs_readable
@pytest.mark.parametrize("module", ["caisson.daemons.qubesd", "caisson.daemons.broker"])
def test_each_daemon_without_root(bad: Whole, module: str) -> None:
    """The daemons themselves refuse as clearly as the command that starts them."""
    python = os.fspath(SHIPPED / ".venv/bin/python")
    refused(as_nobody(bad, python, "-m", module), "root", "sudo|root")


def test_second_daemon(bad: Whole) -> None:
    """An instance is served once; the second daemon leaves the first alone."""
    second = finished(Daemon("qubesd", bad.paths).command, env=bad.env)
    refused(second, "another daemon", "caisson down")
    assert bad.states()["taken"] == "Halted"


def test_no_runtime() -> None:
    """Without crun and runc a start says what to install; the qube stays halted, nothing stays."""
    with whole_instance(prepared=HIDE.format("crun runc")) as whole:
        whole.app("work")
        refused(whole.command("qvm-start", "work"), "no OCI runtime", "install crun")
        assert whole.states()["work"] == "Halted"
        assert whole.ranges() == []
        assert list(whole.paths.engine.glob("*.json")) == []
        sockets = whole.paths.broker / "q"
        assert list(sockets.iterdir()) == []
        doctor = whole.command("caisson", "doctor")
        assert doctor.code != 0
        assert "crun" in doctor.out


@pytest.mark.skipif(shutil.which("runc") is None, reason="needs runc")
def test_no_crun() -> None:
    """Where only runc is installed, it serves: start, call, adoption, and nothing stays."""
    with whole_instance(prepared=HIDE.format("crun")) as whole:
        whole.app("work", start=True)
        assert whole.said("work", "hostname") == "work"
        whole.qubesd.crash()
        whole.qubesd.start()
        assert whole.said("work", "hostname") == "work"
        whole.shut_down("work")
        whole.start("work")
        whole.down()
        assert whole.left() == []


def test_no_control_groups() -> None:
    """Without control groups no qube could be limited: the daemon says so and does not start."""
    whole = Whole(prepared=HIDE_GROUPS)
    try:
        done = finished(whole.qubesd.command, env=whole.env)
        refused(done, "control groups", "mount")
    finally:
        whole.remove()


def test_full_disk() -> None:
    """Creating and starting fail with the reason; when there is room again, all is well."""
    small = Whole()
    state = small.paths.state
    small.qubesd = Daemon(
        "qubesd",
        small.paths,
        prepared=f"mkdir -p {state}; mount -t tmpfs -o size=24m,mode=755 caisson-test {state}",
    )
    try:
        small.up()
        small.template()
        small.app("work", start=True)
        small.said("work", "echo kept >/home/user/kept")
        small.shut_down("work")
        assert small.qubesd.process is not None
        filler = f"/proc/{small.qubesd.process.pid}/root{state}/filler"
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], check=False, stderr=-3)
        before = small.states()
        for number in range(50):
            done = small.command("qvm-create", "-l", "red", f"more{number}")
            if done.code:
                break
        refused(done, "space|full|disk", "free some space")
        assert f"more{number}" not in small.states()
        done = small.command("qvm-start", "work")
        if done.code:
            refused(done, "space|full|disk", "free some space")
            assert small.states()["work"] == "Halted"
        Path(filler).unlink()
        for name in set(small.states()) - set(before):
            small.call("admin.vm.Remove", name)
        with_room = small.command("qvm-create", "-l", "red", "--property", "netvm=", "more")
        assert with_room.code == 0, with_room.err
        if "work" not in small.running():
            small.start("work")
        assert small.said("work", "cat /home/user/kept") == "kept"
        small.start("more")
    finally:
        small.remove()


def test_memory_of_a_qube_runs_out(bad: Whole) -> None:
    """The process that eats it ends, the qube and its other processes do not."""
    bad.call("admin.vm.property.Set+maxmem", "taken", b"128")
    bad.start("taken")
    assert bad.inside("taken", "tail /dev/zero").code == 137
    assert bad.said("taken", "echo alive") == "alive"
    bad.shut_down("taken")


def test_remove_of_a_running_qube(bad: Whole) -> None:
    """Refused with what to do first; the qube runs on."""
    bad.start("taken")
    refused(bad.command("qvm-remove", "-f", "taken"), "taken", "qvm-shutdown|shut")
    assert bad.said("taken", "echo alive") == "alive"
    bad.shut_down("taken")


def test_shutdown_of_a_network_qube_with_clients(bad: Whole) -> None:
    """Refused while a client runs; with --force it goes."""
    try:
        bad.app("gate", provides_network="True")
        bad.call("admin.vm.feature.Set+net.uplink", "gate", b"none")
        bad.app("client", netvm="gate", start=True)
        refused(bad.command("qvm-shutdown", "--wait", "gate"), "client", "force|clients")
        assert bad.states()["gate"] == "Running"
        assert bad.command("qvm-shutdown", "--wait", "--force", "gate").code == 0
        until(lambda: bad.states()["gate"] == "Halted", "it is halted")
    finally:
        bad.discard("client")
        bad.discard("gate")


def test_an_uplink_that_is_not_there(bad: Whole) -> None:
    """The start says which namespace is missing and how to make it; nothing runs afterwards."""
    try:
        bad.app("gate", provides_network="True")
        bad.call("admin.vm.feature.Set+net.uplink", "gate", b"netns:no-such-namespace")
        refused(bad.command("qvm-start", "gate"), "no-such-namespace", "ip netns add")
        assert bad.states()["gate"] == "Halted"
    finally:
        bad.discard("gate")
