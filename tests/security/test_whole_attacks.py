"""Attacks from inside a qube on the whole system: broker, policy, network, people, other qubes."""

from __future__ import annotations

import contextlib
import os
import pty
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from grounds.processes import PATIENCE, machine, until
from grounds.whole import SERVICES, Whole, whole_instance

from caisson.engines import BARRIERS
from caisson.paths import SHIPPED

pytestmark = pytest.mark.root

URL = "http://10.139.2.1:8000/"
FETCH = f"exec curl --silent --show-error --max-time 10 --retry 50 --retry-connrefused {URL}\n"
NEST = 'ls /sys/class/net; exec qrexec-client-vm "@dispvm:online-base" my.Fetch\n'
POLICY = """\
my.Ask    *   mallory   @anyvm               ask
my.Fine   *   mallory   victim               allow
my.Fine   *   friend    victim               allow
my.Fetch  *   @anyvm    @dispvm              allow
my.Fetch  *   @anyvm    @dispvm:online-base  allow
my.Nest   *   @anyvm    @dispvm              allow
my.Name   *   @anyvm    victim               allow
*         *   @anyvm    @anyvm               deny
"""
RAW = """
import os, socket, sys
def told(data, patience=60):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(patience)
    s.connect("/run/qubes/qrexec")
    try:
        s.send(data)
        return s.recv(65536)
    except OSError as error:
        return repr(error).encode()
"""
ROSY = """
import json
names = %r
report = {"version": "1", "barriers": {n: {"up": True, "detail": ""} for n in names}}
hello = b"H1\\0" + json.dumps(report).encode()
"""


@pytest.fixture(scope="module")
def attacked(whole: Whole) -> Iterator[Whole]:
    """`mallory` is hostile and offline; `victim` serves; `friend` calls; nobody else runs."""
    names = ("mallory", "victim", "friend")
    try:
        for name in names:
            whole.app(name, start=True)
        whole.service("victim", "my.Fine", "exit 0\n")
        whole.service("victim", "my.Name", 'echo "$QREXEC_REMOTE_DOMAIN"\n')
        whole.service("victim", "my.Secret", "echo secret\n")
        whole.policy(POLICY)
        yield whole
    finally:
        for name in names:
            whole.discard(name)


@pytest.fixture(scope="module")
def world(attacked: Whole) -> Iterator[Whole]:
    """The same, with a server outside, and disposables that have a network by their base."""
    try:
        attacked.app("gate", provides_network="True")
        uplink = f"netns:{attacked.netns()}".encode()
        attacked.call("admin.vm.feature.Set+net.uplink", "gate", uplink)
        attacked.app("online", netvm="gate", start=True)
        attacked.app("online-base", netvm="gate", start=True)
        attacked.service("online-base", "my.Fetch", FETCH)
        attacked.service("online-base", "my.Nest", NEST)
        attacked.shut_down("online-base")
        attacked.call("admin.vm.property.Set+template_for_dispvms", "online-base", b"True")
        for name in ("online", "mallory", "online-base"):
            attacked.call("admin.vm.property.Set+default_dispvm", name, b"online-base")
        server = machine("ip", "netns", "exec", attacked.outside, sys.executable)
        words = ["script/price_server.py", "0.0.0.0", "8000", "1"]
        outside = attacked.spawn([*server, *words], cwd=SHIPPED)
        yield attacked
        outside.kill()
        outside.wait()
    finally:
        attacked.call("admin.vm.property.Set+default_dispvm", "online-base", b"")
        attacked.call("admin.vm.property.Set+default_dispvm", "mallory", b"")
        for name in ("online", "online-base", "gate"):
            attacked.discard(name)


def python(whole: Whole, qube: str, script: str, *, user: str = "root") -> str:
    """Run a script in a qube, as its root if not told otherwise; what it prints."""
    done = whole.inside(qube, "exec python3 -I -", user=user, stdin=script.encode())
    return done.out + done.err


# The network.


def test_offline_qube_stays_offline_through_nested_disposables(world: Whole) -> None:
    """QSB-047: its disposables have no network, nor have theirs, though their base has one."""
    assert world.said("online", "qrexec-client-vm @dispvm my.Fetch") == "1"
    nested = world.said("online", "qrexec-client-vm @dispvm my.Nest").split()
    assert sorted(nested) == ["1", "eth0", "lo"]
    for target in ("@dispvm", "@dispvm:online-base"):
        done = world.inside("mallory", f"qrexec-client-vm {target} my.Fetch")
        assert done.code != 0
        assert done.out == ""
    done = world.inside("mallory", "qrexec-client-vm @dispvm my.Nest")
    assert done.code != 0
    assert done.out.split() == ["lo"]


def test_offline_qube_reaches_no_abstract_socket_of_the_machine(attacked: Whole) -> None:
    """These need no file: only the network namespace separates them."""
    name = f"caisson-test-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        script = f"import socket; socket.socket(socket.AF_UNIX).connect('\\0{name}'); print('in')"
        said = python(attacked, "mallory", script)
    assert "in\n" not in said
    assert "ConnectionRefusedError" in said


def test_a_source_address_cannot_be_forged(world: Whole) -> None:
    """Root of a qube has no way to another address than its own, nor to raw packets."""
    other = world.call("admin.vm.property.Get+ip", "gate").rpartition(" ")[2]
    script = f"""
import socket
def attempt(what, act):
    try:
        act()
    except OSError as error:
        print(what, 'refused')
    else:
        print(what, 'DONE')
def udp(option=None):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if option:
        s.setsockopt(socket.IPPROTO_IP, option, 1)
    s.bind(({other!r}, 0))
    s.sendto(b'x', ('10.139.2.1', 9))
attempt('bind', udp)
attempt('freebind', lambda: udp(15))
attempt('transparent', lambda: udp(19))
attempt('raw', lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 255))
attempt('packet', lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 768))
"""
    said = python(world, "online", script)
    assert said.splitlines() == [
        f"{what} refused" for what in ("bind", "freebind", "transparent", "raw", "packet")
    ]
    for line in (
        f"ip addr add {other}/32 dev eth0",
        "ip link set eth0 address 00:16:3e:5e:6c:99",
        "ip link add dummy0 type dummy",
        "ip route replace default dev lo",
    ):
        done = world.inside("online", line, user="root")
        assert done.code != 0, line
        assert "not permitted" in done.err


# The broker.


def test_a_qube_cannot_make_calls_in_anothers_name(attacked: Whole) -> None:
    """Whatever it says about itself, the service and the audit see who really called."""
    forged = "QREXEC_REMOTE_DOMAIN=dom0 exec qrexec-client-vm victim my.Name"
    assert attacked.said("mallory", forged, user="root") == "mallory"
    script = RAW + "print(told(b'Cvictim\\0my.Secret\\0\\0friend\\0dom0'))"
    assert "b'A" not in python(attacked, "mallory", script)
    for name in ("dom0", "friend", "victim", "mallory", "nobody"):
        done = attacked.inside("mallory", f"qrexec-client-vm --source-qube={name} victim my.Name")
        assert (done.code, done.out) == (126, "")
    assert not attacked.audit(service="my.Secret", decision="allow")


@pytest.mark.parametrize(
    "message",
    [
        r"b'Dvictim\0\0id'",
        r"b'Dvictim\0root\0QUBESRPC my.Secret dom0'",
        r"b'S1\0root\0my.Secret\0dom0\0'",
        r"b'M1\0root\0id'",
        r"b'W'",
        r"b'A'",
        r"b'Q'",
        r"b'X1\0' + b'0'",
        r"b''",
        r"b'\xff' * 60000",
    ],
)
def test_a_qube_cannot_speak_as_dom0_or_as_the_broker(attacked: Whole, message: str) -> None:
    """Messages that only others may send are refused; nothing runs, everyone is served on."""
    said = python(attacked, "mallory", RAW + f"print(told({message}))")
    assert said.strip() in {"b'R'", "b''"} or "Error" in said, said
    assert attacked.said("friend", "qrexec-client-vm victim my.Fine; echo $?") == "0"
    assert attacked.said("mallory", "qrexec-client-vm victim my.Name") == "mallory"


def test_no_process_of_a_qube_can_take_the_agents_place(attacked: Whole) -> None:
    """Root sends a perfect report, again and again; the first process stays the agent."""
    script = RAW + ROSY % sorted(BARRIERS) + "print({told(hello)[:1] for _ in range(20)})"
    for user in ("root", "user"):
        said = python(attacked, "mallory", script, user=user)
        assert "b'W'" not in said
        assert "b'N'" in said or "Error" in said or "b''" in said
    assert attacked.said("mallory", "echo still served") == "still served"
    assert attacked.states()["mallory"] == "Running"


def test_the_sockets_of_others_are_out_of_reach(attacked: Whole) -> None:
    """In /run/qubes is the qube's own socket and nothing else, and nothing can be put there."""
    assert attacked.said("mallory", "ls -A /run/qubes", user="root") == "qrexec"
    for line in (
        "rm /run/qubes/qrexec",
        "mv /run/qubes/qrexec /run/qubes/x",
        "touch /run/qubes/x",
        "ln -s / /run/qubes/x",
        "chmod 777 /run/qubes",
    ):
        assert attacked.inside("mallory", line, user="root").code != 0, line
    for path in ("/run/qubesd.sock", attacked.paths.qubesd, attacked.paths.link):
        assert attacked.inside("mallory", f"test -e {path}", user="root").code == 1


@pytest.mark.parametrize(
    "target",
    ["dom0", "@adminvm", "@anyvm", "@tag:x", "@type:AppVM", "@dispvm:../x", "uuid:x", "no-such"],
)
def test_strange_targets_are_refused(attacked: Whole, target: str) -> None:
    """Keywords of policies, dom0 and what does not exist look all the same from inside."""
    for service in ("my.Fine", "admin.vm.List", "qubes.VMShell"):
        done = attacked.inside("mallory", f"qrexec-client-vm '{target}' {service}")
        assert (done.code, done.out, done.err) == (126, "", "Request refused\n")


# People.

EVIL = ("\x1b]0;owned\x07", "\x1b[2J", "\x9b31m", "a\rb", "a\nb", "\u202eevil", "\x7f", "é")


def harmless(raw: bytes) -> bool:
    """Whether a file holds nothing but printable ASCII and line breaks."""
    return all(byte == 0x0A or 0x20 <= byte < 0x7F for byte in raw)


@pytest.mark.parametrize("where", ["name", "argument", "target"])
def test_escape_sequences_reach_nobody(attacked: Whole, where: str) -> None:
    """Neither the prompt, nor a log, nor the audit shows a control character of a qube's."""
    with attacked.prompt(None) as person:
        for evil in EVIL:
            service = {"name": f"my.Ask{evil}", "argument": f"my.Ask+{evil}"}.get(where, "my.Ask")
            target = f"victim{evil}" if where == "target" else "victim"
            words = ["qrexec-client-vm", target, service]
            script = f"import os; os.execvp('qrexec-client-vm', {words!r})"
            assert "Request refused" in python(attacked, "mallory", script)
        assert attacked.inside("mallory", "qrexec-client-vm victim my.Ask").code == 126
    assert person.stdout is not None
    shown = person.stdout.read()
    assert b"my.Ask" in shown
    assert not any((c < " " and c != "\n") or "\x7f" <= c < "\xa0" for c in shown.decode())
    assert b"owned" not in shown
    assert harmless(attacked.paths.audit.read_bytes())
    assert harmless(attacked.broker.log.read_bytes())
    assert harmless(attacked.qubesd.log.read_bytes())


def test_a_qube_cannot_move_the_cursor_of_a_persons_terminal(attacked: Whole) -> None:
    """What a command prints goes to a terminal without its control characters."""
    ours, terminal = pty.openpty()
    evil = r"printf '\033]0;owned\007\033[2Jtext\n'; printf '\033[31mred\n' >&2"
    with contextlib.closing(os.fdopen(ours, "rb", buffering=0)) as screen:
        done = attacked.spawn(
            [str(Path(sys.executable).parent / "qvm-run"), "--pass-io", "mallory", evil],
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=terminal,
        )
        assert done.wait(PATIENCE) == 0
        os.close(terminal)
        seen = b""
        with contextlib.suppress(OSError):  # the terminal ends
            while part := screen.read(4096):
                seen += part
    assert b"text" in seen
    assert b"red" in seen
    assert b"\x1b" not in seen


@pytest.fixture
def flooder(attacked: Whole) -> Iterator[str]:
    """A hostile qube that has not asked anything yet."""
    try:
        attacked.policy(f"my.Ask * flooder @anyvm ask\n{POLICY}")
        yield attacked.app("flooder", start=True)
    finally:
        attacked.policy(POLICY)
        attacked.discard("flooder")


def test_a_flood_of_questions_does_not_bury_the_person(attacked: Whole, flooder: str) -> None:
    """One qube's questions come one at a time, and only a few of them wait."""
    path = attacked.paths.prompt_agent

    def too_many() -> int:
        records = attacked.audit(source=flooder, code=126)
        return sum("too many questions" in r.get("reason", "") for r in records)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.bind(str(path))
        path.chmod(0o666)
        agent.listen(100)
        line = "for i in $(seq 60); do qrexec-client-vm victim my.Ask </dev/null & done"
        flood = attacked.begin(flooder, f"({line}; wait) >/dev/null 2>&1")
        until(lambda: too_many() >= 50, "most questions are refused")
        waiting = 60 - too_many()
        assert 0 < waiting <= 10
        for _ in range(waiting):
            agent.settimeout(PATIENCE)
            question, _ = agent.accept()
            with question:
                assert question.recv(65536)
                agent.setblocking(False)
                with pytest.raises(BlockingIOError):
                    agent.accept()  # the next one comes only after this answer
                question.sendall(b"deny")
        assert flood.wait(PATIENCE) == 0
    path.unlink()


# Other qubes.


def test_a_flood_of_one_qube_does_not_stop_anothers_calls(attacked: Whole) -> None:
    """While one qube calls without end from many processes, every call of another is answered."""
    flood = (
        "rm -f stop; for i in $(seq 32); do (while [ ! -e stop ]; do"
        " qrexec-client-vm victim my.Fine </dev/null; qrexec-client-vm victim my.No </dev/null;"
        " done 2>/dev/null) & done; echo on; wait"
    )
    child = attacked.begin("mallory", flood)
    assert child.stdout is not None
    assert child.stdout.readline() == b"on\n"
    before = len(attacked.audit(source="mallory"))
    until(lambda: len(attacked.audit(source="mallory")) > before + 50, "the flood is on")
    line = "for i in $(seq 30); do qrexec-client-vm victim my.Name </dev/null; done"
    said = attacked.said("friend", line)
    assert said.split() == ["friend"] * 30
    during = len(attacked.audit(source="mallory"))
    until(lambda: len(attacked.audit(source="mallory")) > during, "the flood is still on")
    attacked.said("mallory", "touch stop")
    assert child.wait(PATIENCE) == 0


def test_a_qube_that_never_reads_keeps_nobody_else_waiting(attacked: Whole) -> None:
    """Its own call stands still; dom0 and other qubes go on."""
    attacked.policy(f"my.Flow * mallory victim allow\n{POLICY}")
    attacked.service("victim", "my.Flow", "exec cat /dev/zero\n")
    child = attacked.begin("mallory", "echo on; qrexec-client-vm victim my.Flow | sleep 1000")
    assert child.stdout is not None
    assert child.stdout.readline() == b"on\n"
    assert attacked.said("friend", "qrexec-client-vm victim my.Name") == "friend"
    assert attacked.said("mallory", "echo free") == "free"
    attacked.policy(POLICY)


def test_files_that_a_qube_leaves_behind_break_no_start(attacked: Whole) -> None:
    """It fills its volume with links, pipes and strange names; all start as ever."""
    spoil = (
        "cd /rw && mkfifo fifo; ln -s /etc/passwd link; mkdir -p $'\\n\\e[2J' deep/$(printf 'x%.0s'"
        " $(seq 200)); ln -s loop loop; mkdir -p home/user/.config; rm -rf usrlocal/etc;"
        " ln -s / usrlocal/etc; touch -- -rf; setfattr -n user.x -v y . 2>/dev/null; true"
    )
    attacked.said("mallory", spoil, user="root")
    attacked.shut_down("mallory")
    attacked.start("mallory")
    assert attacked.said("mallory", "hostname") == "mallory"
    assert attacked.inside("mallory", "ls /usr/local/etc/", user="root").code in {0, 2}
    assert attacked.said("friend", "qrexec-client-vm victim my.Name") == "friend"
    assert not (Path("/") / SERVICES.lstrip("/") / "my.Fine").exists()


# Barriers.

SABOTAGE = {
    "no-new-privileges": 's/"noNewPrivileges":true/"noNewPrivileges":false/',
    "proc-masked": r's/"maskedPaths":\[[^]]*\]/"maskedPaths":[]/',
    "proc-sys-read-only": r's/"readonlyPaths":\[[^]]*\]/"readonlyPaths":[]/',
    "capabilities": r's/"\(bounding\|effective\|permitted\)":\[/&"CAP_SYS_ADMIN",/g',
    # The name of the first barrier of those that fall with the filter.
    "keyrings": r's/"seccomp":/"none":/; s/"run.oci.seccomp_bpf_data"/"none"/',
    "sys-read-only": r's/"nosuid","noexec","nodev","ro"/"nosuid","noexec","nodev"/',
}
WRAPPER = """#!/bin/sh
for word in "$@"; do
  case "$word" in --bundle=*) [ -e {root}/sabotage ] &&
    sed -i -f {root}/sabotage "${{word#--bundle=}}/config.json" ;; esac
done
exec {root}/real "$@"
"""


@pytest.fixture(scope="module")
def sabotaged() -> Iterator[Whole]:
    """An instance whose runtime can be made to leave a wall out: it edits what it is told."""
    if not Path("/usr/bin/crun").exists():
        pytest.skip("needs crun, whose configuration is spoiled here")
    with tempfile_root() as root:
        (root / "wrapper").write_text(WRAPPER.format(root=root))
        (root / "wrapper").chmod(0o755)
        prepared = (
            f"cp /usr/bin/crun {root}/real; chmod 755 {root}/real;"
            f" mount --bind {root}/wrapper /usr/bin/crun"
        )
        with whole_instance(prepared=prepared) as whole:
            whole.sabotage = root / "sabotage"  # type: ignore[attr-defined]
            whole.app("work", start=True)
            whole.shut_down("work")
            yield whole


@contextlib.contextmanager
def tempfile_root() -> Iterator[Path]:
    """A directory that every user can look into."""
    root = Path(tempfile.mkdtemp(prefix="caisson-test-", dir="/var/tmp"))
    root.chmod(0o755)
    try:
        yield root
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("barrier", sorted(SABOTAGE))
def test_a_qube_without_a_barrier_is_stopped_and_the_barrier_named(
    sabotaged: Whole, barrier: str
) -> None:
    """The runtime was told to leave it out; the agent sees it, and no code of the qube ran."""
    sabotage: Path = sabotaged.sabotage  # type: ignore[attr-defined]
    sabotage.write_text(SABOTAGE[barrier] + "\n")
    try:
        done = sabotaged.command("qvm-start", "work")
        assert done.code == 1
        assert f"its barrier `{barrier}" in done.err
        assert "hint: see what this machine lacks: `caisson doctor`" in done.err
        assert sabotaged.states()["work"] == "Halted"
        until(lambda: not sabotaged.ranges(), "its user ids are free")
        assert not list((sabotaged.paths.broker / "q").iterdir())
    finally:
        sabotage.unlink()
    sabotaged.start("work")
    assert sabotaged.said("work", "hostname") == "work"
    sabotaged.shut_down("work")
