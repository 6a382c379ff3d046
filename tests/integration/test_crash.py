"""`kill -9` of either daemon at many moments: nothing is lost, nothing is left, qubes run on."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from grounds.daemon import Daemon
from grounds.processes import PATIENCE, alive, until
from grounds.whole import Whole, whole_instance

from caisson.errors import CaissonError, QubeNotFoundError
from caisson.model import Host, System
from caisson.store import Store

pytestmark = pytest.mark.root

POINTS = 6
"""How many moments of each act the daemon is killed at, spread over the time that it takes."""
Act = Callable[[], object]


@pytest.fixture(scope="module")
def crashing() -> Iterator[Whole]:
    """An instance whose daemons are killed again and again; it must end without a trace.

    `caller` and `callee` run all the time, `gate` is a network qube with an uplink, `client` its
    client, `work` a plain qube, `base` what disposables are based on.
    """
    with whole_instance() as whole:
        whole.app("gate", provides_network="True")
        whole.call("admin.vm.feature.Set+net.uplink", "gate", f"netns:{whole.netns()}".encode())
        whole.app("client", netvm="gate")
        for name in ("caller", "callee", "base"):
            whole.app(name, start=True)
        whole.app("work")
        whole.service("callee", "my.Echo", "exec cat\n")
        whole.service("base", "my.Hello", "echo hello\n")
        whole.shut_down("base")
        whole.call("admin.vm.property.Set+template_for_dispvms", "base", b"True")
        whole.call("admin.vm.property.Set+default_dispvm", "caller", b"base")
        whole.policy("* * caller callee allow\nmy.Hello * caller @dispvm allow\n")
        check(whole)
        yield whole
        whole.down()
        assert whole.left() == []
        assert whole.layers() == known_layers(whole)


def known_layers(whole: Whole) -> set[str]:
    """The layers that the volumes in the database refer to, read from a copy of it."""
    with tempfile.TemporaryDirectory() as directory:
        for part in whole.paths.database.parent.glob(f"{whole.paths.database.name}*"):
            shutil.copy(part, directory)
        store, system = Store.open(Path(directory, whole.paths.database.name)), System(Host())
        system.load(store.load())
        store.close()
    states = [state for qube in system.qubes.values() for state in qube.volumes.values()]
    layers = {layer for state in states for layer in state.layers}
    layers |= {layer for state in states for r in state.revisions for layer in r.layers}
    return layers | {state.dirty for state in states if state.dirty}


def first_processes(whole: Whole) -> int:
    """How many qubes really run, as the kernel sees it."""
    count = 0
    for pid in whole.processes():
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            numbers = next(s for s in status.splitlines() if s.startswith("NSpid:")).split()
            own = Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/usr/lib/qubes/")
            count += len(numbers) > 2 and numbers[-1] == "1" and own
    return count


def check(whole: Whole) -> None:
    """What the daemon says, what runs and what is on disk agree; every running qube answers."""
    until(
        lambda: not any(n.startswith("disp") or s not in {"Running", "Halted"}
                        for n, s in whole.states().items()),
        "every qube runs or is halted, and disposables are gone",
    )  # fmt: skip
    running = set(whole.running())
    for name in running:
        assert whole.said(name, "hostname") == name
    assert first_processes(whole) == len(running)
    sockets = whole.paths.broker / "q"
    until(lambda: {p.name for p in sockets.iterdir()} == running, "socket directories fit")
    until(lambda: len(list(whole.paths.engine.glob("*.json"))) == len(running), "records fit")
    until(lambda: len(whole.ranges()) == len(running), "held user ids fit")
    until(lambda: whole.layers() == known_layers(whole), "the pool holds what volumes need")
    until(lambda: len(whole.interfaces()) == ("gate" in running), "the uplink fits")
    if "gate" in running:
        wanted = {"lo", "eth0"} | ({vif(whole)} if "client" in running else set())
        until(lambda: set(whole.said("gate", "ls /sys/class/net").split()) == wanted, "links fit")


def vif(whole: Whole) -> str:
    """The interface of `client` in its network qube."""
    qid = whole.call("admin.vm.property.Get+qid", "client").rpartition(" ")[2]
    return f"vif{qid}"


def start(whole: Whole, name: str) -> Act:
    """Start a qube."""
    return lambda: whole.call("admin.vm.Start", name)


def stop(whole: Whole, name: str) -> Act:
    """Shut a qube down."""
    return lambda: whole.call("admin.vm.Shutdown+wait+force", name)


def halt(whole: Whole, *names: str) -> None:
    """Have these qubes halted."""
    for name in names:
        with contextlib.suppress(CaissonError):
            whole.call("admin.vm.Kill", name)


def duration(act: Act) -> float:
    """How long an undisturbed act takes."""
    started = time.monotonic()
    act()
    return time.monotonic() - started


def disturbed(act: Act, daemon: Daemon, after: float) -> None:
    """Begin an act, let a daemon crash some time into it, and start the daemon again."""

    def guarded() -> None:
        with contextlib.suppress(CaissonError):
            act()

    acting = threading.Thread(target=guarded)
    acting.start()
    time.sleep(after)  # the moment under test
    daemon.crash()
    daemon.start()
    acting.join(PATIENCE)
    assert not acting.is_alive(), "a client waits for ever for a daemon that is gone"


def moments(length: float) -> list[float]:
    """Moments from the beginning to a little after the end, others in each run of the tests."""
    return [1.2 * length * (n + random.random()) / POINTS for n in range(POINTS)]


class TestOfQubesd:
    """The daemon that owns the state."""

    def test_at_rest(self, crashing: Whole) -> None:
        """Running qubes are adopted: same process, same run, reachable through the old broker."""
        crashing.start("client")
        before = {name: crashing.of_qube(name) for name in ("caller", "client", "gate")}
        mark = crashing.said("caller", "cat /proc/sys/kernel/random/uuid | tee /tmp/mark")
        crashing.qubesd.crash()
        crashing.qubesd.start()
        assert {name: crashing.of_qube(name) for name in before} == before
        assert crashing.said("caller", "cat /tmp/mark") == mark
        check(crashing)
        halt(crashing, "client", "gate")
        check(crashing)

    def test_a_call_in_flight_goes_on(self, crashing: Whole) -> None:
        """Data and exit code need qubesd for nothing."""
        crashing.service("callee", "my.Seven", "cat; exit 7\n")
        child = crashing.begin("caller", "qrexec-client-vm callee my.Seven; echo $?")
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"before\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"before\n"
        crashing.qubesd.crash()
        child.stdin.write(b"after\n")
        child.stdin.close()
        assert child.stdout.read() == b"after\n7\n"
        crashing.qubesd.start()
        check(crashing)

    def test_a_qube_that_ended_meanwhile_is_put_away(self, crashing: Whole) -> None:
        """Its run ended while nobody looked: it is halted, its data kept, and it starts again."""
        crashing.start("work")
        crashing.said("work", "echo kept >/home/user/kept")
        pid = crashing.of_qube("work")
        crashing.qubesd.crash()
        os.kill(pid, signal.SIGTERM)
        until(lambda: not alive(pid), "the qube ends")
        crashing.qubesd.start()
        assert crashing.states()["work"] == "Halted"
        check(crashing)
        crashing.start("work")
        assert crashing.said("work", "cat /home/user/kept") == "kept"
        crashing.shut_down("work")

    def test_while_a_qube_is_created(self, crashing: Whole) -> None:
        """Afterwards it is there, whole, or it is not there, and its name is free."""

        def create() -> None:
            crashing.call("admin.vm.Create.AppVM", payload=b"name=fresh label=red")

        length = duration(create)
        crashing.call("admin.vm.Remove", "fresh")
        for moment in moments(length):
            disturbed(create, crashing.qubesd, moment)
            check(crashing)
            if "fresh" not in crashing.states():
                create()
            crashing.call("admin.vm.property.Set+netvm", "fresh", b"")
            crashing.start("fresh")
            assert crashing.said("fresh", "hostname; touch /home/user/x") == "fresh"
            crashing.shut_down("fresh")
            crashing.call("admin.vm.Remove", "fresh")

    @pytest.mark.parametrize("name", ["work", "client"])
    def test_while_a_qube_starts(self, crashing: Whole, name: str) -> None:
        """It runs afterwards, or it is halted with nothing left of the attempt, and starts."""
        length = duration(start(crashing, name))
        for moment in moments(length):
            halt(crashing, name, "gate")
            disturbed(start(crashing, name), crashing.qubesd, moment)
            check(crashing)
            crashing.start(name)
            check(crashing)
        halt(crashing, name, "gate")

    @pytest.mark.parametrize("name", ["work", "client"])
    def test_while_a_qube_shuts_down(self, crashing: Whole, name: str) -> None:
        """What it wrote in its run is there in the next one."""
        crashing.start(name)
        length = duration(stop(crashing, name))
        for number, moment in enumerate(moments(length)):
            crashing.start(name)
            crashing.said(name, f"echo {number} >/home/user/number")
            disturbed(stop(crashing, name), crashing.qubesd, moment)
            check(crashing)
            crashing.start(name)
            assert crashing.said(name, "cat /home/user/number") == str(number)
        halt(crashing, name, "gate")

    def test_while_a_qube_is_removed(self, crashing: Whole) -> None:
        """Afterwards it is gone with all its layers, or still there and can be removed."""

        def remove() -> None:
            crashing.call("admin.vm.Remove", "old")

        def create() -> None:
            crashing.app("old", start=True)
            crashing.said("old", "touch /home/user/x")
            crashing.shut_down("old")

        create()
        length = duration(remove)
        for moment in moments(length):
            create()
            disturbed(remove, crashing.qubesd, moment)
            check(crashing)
            with contextlib.suppress(QubeNotFoundError):
                remove()
            assert "old" not in crashing.states()
            check(crashing)

    def test_while_a_disposable_answers(self, crashing: Whole) -> None:
        """The call ends, well or not; no disposable stays, and the next call is answered."""
        line = "qrexec-client-vm @dispvm my.Hello"

        def call() -> None:
            done = crashing.inside("caller", line)
            assert done.code == 0 or done.out in {"", "hello\n"}

        length = duration(call)
        for moment in moments(length):
            disturbed(call, crashing.qubesd, moment)
            check(crashing)
            assert crashing.said("caller", line) == "hello"
        check(crashing)

    def test_that_comes_up_when_it_is_killed(self, crashing: Whole) -> None:
        """Killed while it adopts, it finds everything once more."""
        crashing.start("client")
        started = time.monotonic()
        crashing.qubesd.crash()
        crashing.qubesd.start()
        length = time.monotonic() - started
        for moment in moments(length):
            crashing.qubesd.crash()
            crashing.qubesd.launch()
            time.sleep(moment)  # the moment under test
            crashing.qubesd.crash()
            crashing.qubesd.start()
            check(crashing)
        halt(crashing, "client", "gate")

    def test_in_a_storm_of_acts(self, crashing: Whole) -> None:
        """Many clients start, stop, pause and kill the same few qubes when the daemon is killed."""
        names = ("work", "client", "gate")
        methods = ("Start", "Start", "Shutdown", "Shutdown+wait", "Kill", "Pause", "Unpause")
        bugs: list[str] = []

        def acts(_: int) -> None:
            for _ in range(12):
                try:
                    crashing.call(f"admin.vm.{random.choice(methods)}", random.choice(names))
                except CaissonError as error:
                    if "internal error" in str(error):
                        bugs.append(str(error))

        def storm() -> None:
            with ThreadPoolExecutor(12) as clients:
                list(clients.map(acts, range(12)))

        def calm() -> None:
            for name in names:
                with contextlib.suppress(CaissonError):
                    crashing.call("admin.vm.Unpause", name)

        length = duration(storm)
        calm()
        check(crashing)
        for moment in moments(length):
            disturbed(storm, crashing.qubesd, moment)
            calm()
            check(crashing)
        assert bugs == []
        halt(crashing, *names)


class TestOfTheBroker:
    """The door between qubes."""

    def test_a_call_in_flight_is_lost_and_says_so(self, crashing: Whole) -> None:
        """255 for the caller, the end of its input for the service; nobody waits for ever."""
        crashing.service("callee", "my.Wait", "echo $$; cat; touch /tmp/ended\n")
        child = crashing.begin("caller", "(qrexec-client-vm callee my.Wait; echo $? >code) 2>&1")
        assert child.stdout is not None
        assert child.stdout.readline().strip().isdigit()
        crashing.broker.crash()
        assert child.wait(PATIENCE) == 255
        crashing.broker.start()
        until(lambda: crashing.inside("caller", "cat code").out == "255\n", "the caller hears")
        until(lambda: crashing.inside("callee", "test -e /tmp/ended").code == 0, "the service ends")
        check(crashing)

    def test_while_calls_are_made(self, crashing: Whole) -> None:
        """Every call is answered right, or fails with a code; none hangs, none gets other data."""
        line = (
            "i=0; while [ ! -e stop ]; do i=$((i+1)); said=$(echo $i | qrexec-client-vm callee"
            ' my.Echo 2>/dev/null); code=$?; [ $code = 0 ] && [ "$said" != $i ] && code=wrong;'
            " echo $code >>codes; done; rm stop"
        )
        child = crashing.begin("caller", f"rm -f stop codes; echo ready; {line}")
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        for moment in moments(0.1):
            time.sleep(moment)  # the moment under test
            crashing.broker.crash()
            crashing.broker.start()
            check(crashing)
        crashing.said("caller", "touch stop")
        until(lambda: crashing.inside("caller", "test -e stop").code == 1, "the last call ends")
        codes = crashing.said("caller", "cat codes").split()
        assert codes.count("0") > POINTS
        assert set(codes) <= {"0", "1", "255"}

    def test_while_disposables_answer(self, crashing: Whole) -> None:
        """Whoever asked is gone with the broker: so is the disposable."""
        line = "qrexec-client-vm @dispvm my.Hello"
        length = duration(lambda: crashing.said("caller", line))
        for moment in moments(length):
            disturbed(lambda: crashing.inside("caller", line), crashing.broker, moment)
            check(crashing)
            assert crashing.said("caller", line) == "hello"
        check(crashing)

    def test_while_a_qube_starts(self, crashing: Whole) -> None:
        """The start waits for the broker and succeeds, or fails and leaves nothing."""
        length = duration(start(crashing, "work"))
        for moment in moments(length):
            halt(crashing, "work")
            disturbed(start(crashing, "work"), crashing.broker, moment)
            check(crashing)
            crashing.start("work")
            assert crashing.said("work", "hostname") == "work"
        halt(crashing, "work")

    def test_together_with_qubesd(self, crashing: Whole) -> None:
        """Both die; whichever comes back first waits for the other."""
        pid = crashing.of_qube("caller")
        for first, second in ((0, 1), (1, 0)):
            daemons = (crashing.broker, crashing.qubesd)
            for daemon in daemons:
                daemon.crash()
            daemons[first].launch()
            daemons[second].launch()
            crashing.qubesd.wait()
            crashing.broker.wait()
            assert crashing.of_qube("caller") == pid
            check(crashing)
            assert crashing.said("caller", "echo x | qrexec-client-vm callee my.Echo") == "x"


def test_after_a_power_cut(crashing: Whole) -> None:
    """Everything ends at once and /run is empty: all are halted, with their data, and start."""
    crashing.start("client")
    names = crashing.running()
    for name in names:
        crashing.said(name, f"echo {name} >/home/user/name; sync")
    pids = [crashing.of_qube(name) for name in names]
    crashing.qubesd.crash()
    crashing.broker.crash()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(alive, pids)), "the qubes end")
    shutil.rmtree(crashing.paths.run)
    crashing.paths.run.mkdir()
    crashing.qubesd.launch()
    crashing.broker.launch()
    crashing.qubesd.wait()
    crashing.broker.wait()
    assert crashing.running() == []
    check(crashing)
    for name in names:
        crashing.start(name)
        assert crashing.said(name, "cat /home/user/name") == name
    check(crashing)
    halt(crashing, "client", "gate")
