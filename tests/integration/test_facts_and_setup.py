"""What real qubes are told of themselves, what they do when they begin, and ports between them.

One instance for all: a network qube, an AppVM behind it, and the template of both.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shlex
import subprocess
from collections.abc import Iterator

import pytest
from grounds.processes import Done, finished, until
from grounds.whole import Whole, whole_instance

from caisson.paths import AGENT_BINARY, SHIPPED

pytestmark = pytest.mark.root
CONFIG = "/rw/config/qubes-bind-dirs.d"
KEPT = "/rw/bind-dirs"
SERVER = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
while True:
    with server.accept()[0] as peer:
        peer.sendall(peer.recv(64).upper())
"""
PROXY = """
import socket
server = socket.create_server(("127.0.0.1", 8082))
while True:
    with server.accept()[0] as peer:
        request = peer.recv(4096).split(b"\\r\\n")[0]
        head = b"HTTP/1.0 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(request)
        peer.sendall(head + request)
"""
"""An HTTP proxy that answers with what it was asked for."""
CLIENT = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as peer:
    peer.sendall(b"hello")
    peer.shutdown(socket.SHUT_WR)
    print(b"".join(iter(lambda: peer.recv(64), b"")).decode())
"""
LISTENS = """
until grep -q ":{:04X} 00000000:0000 0A" /proc/net/tcp; do sleep 0.02; done
"""
"""Shell that waits until a port is listened at."""


@pytest.fixture(scope="module")
def whole() -> Iterator[Whole]:
    """The instance; `sys-net` and `work` run."""
    with whole_instance() as made:
        made.app("sys-net", provides_network="True")
        made.call("admin.vm.feature.Set+net.uplink", "sys-net", b"none")
        made.app("work", netvm="sys-net", start=True)
        yield made


def service(whole: Whole, qube: str, name: str, *, user: str = "DEFAULT", **more: bytes) -> Done:
    """Call a service as the admin qube."""
    command = ["qrexec-client", "-d", qube, f"{user}:QUBESRPC {name} dom0"]
    return finished(command, executable=str(AGENT_BINARY), env=whole.env, **more)  # type: ignore[arg-type]


def again(whole: Whole, qube: str, configuration: str) -> None:
    """Write below `/rw` as root, and start the qube anew."""
    whole.said(qube, configuration, user="root")
    whole.shut_down(qube)
    whole.start(qube)


def test_a_qube_reads_its_facts_and_follows_changes(whole: Whole):
    """When the call that changes something returns, the qube reads it; no service file is left."""
    told = whole.said("work", "qubesdb-read /name /qubes-vm-type /qubes-ip /qubes-gateway")
    ip = whole.call("admin.vm.property.Get+ip", "work").rpartition(" ")[2]
    gateway = whole.call("admin.vm.property.Get+gateway", "sys-net").rpartition(" ")[2]
    assert told.split() == ["work", "AppVM", ip, gateway]
    whole.call("admin.vm.feature.Set+service.cups", "work", b"1")
    assert whole.said("work", "ls /run/qubes-service/; qubesdb-read /qubes-service/cups") == (
        "cups\n1"
    )
    whole.call("admin.vm.feature.Set+service.cups", "work", b"")
    assert whole.said("work", "ls /var/run/qubes-service/; qubesdb-read /qubes-service/cups") == "0"
    watch = whole.begin("work", "qubesdb-watch /vm-config/")
    assert watch.stdout is not None
    number = 0
    while not select.select([watch.stdout], [], [], 0.02)[0]:  # until it watches, and then at once
        number += 1
        whole.call("admin.vm.feature.Set+vm-config.n", "work", str(number).encode())
    assert watch.stdout.readline() == b"/vm-config/n\n"
    whole.call("admin.vm.property.Set+netvm", "work", b"")
    assert whole.inside("work", "qubesdb-read -q /qubes-gateway").code == 1
    whole.call("admin.vm.property.Set+netvm", "work", b"sys-net")
    assert whole.said("work", "qubesdb-read /qubes-gateway") == gateway


def test_a_qube_cannot_write_its_facts_nor_see_anothers(whole: Whole):
    """Its root changes neither file nor mount; of other qubes nothing is there."""
    before = whole.said("work", "qubesdb-multiread /")
    noted = whole.inside("work", "qubesdb-write /mine 1")
    assert (noted.code, noted.err) == (
        1,
        "error: cannot write the notes of this qube: permission denied\nhint: only its root may\n",
    )
    for act in (
        "echo >/run/qubesdb/values",
        "rm /run/qubesdb/values",
        "touch /run/qubes-service/forged",
        "mkdir /run/qubesdb/services/forged",
        "mv /run/qubesdb /run/other",
        "umount /run/qubesdb",
        "mount -o remount,rw /run/qubesdb",
        "chmod 777 /run/qubesdb",
        "setfattr -n user.x -v 1 /run/qubesdb/values",
        "cp /bin/true /run/qubes-service/true",
    ):
        assert whole.inside("work", act, user="root").code != 0, act
    assert whole.said("work", "qubesdb-multiread /") == before
    assert whole.said("work", "ls -A /run/qubesdb", user="root").split() == ["services", "values"]
    assert "sys-net" not in whole.said("work", "cat /run/qubesdb/values | tr '\\0' '\\n'")
    (mount,) = whole.said("work", "grep ' /run/qubesdb ' /proc/self/mounts").splitlines()
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(mount.split()[3].split(","))


def test_facts_outlive_a_restart_of_qubesd(whole: Whole):
    """The directory that the qube sees is the one that the next daemon writes."""
    whole.qubesd.crash()
    whole.qubesd.start()
    whole.call("admin.vm.feature.Set+service.after", "work", b"1")
    assert whole.said("work", "ls /run/qubes-service/") == "after"
    whole.call("admin.vm.feature.Remove+service.after", "work")
    assert whole.said("work", "ls /run/qubes-service/") == ""


def test_paths_are_kept_before_calls_and_scripts_run_beside_them(whole: Whole):
    """A first copy, a path that only the private volume has, and what was changed last time.

    The script runs as root, waits for something that a call brings, and holds no call up.
    """
    again(
        whole,
        "work",
        f"""
        mkdir -p {CONFIG} /rw/config/rc.local.d {KEPT}/opt/only {KEPT}/etc
        echo made >{KEPT}/opt/only/file
        echo "binds+=( '/etc/hosts' '/opt/only' )" >{CONFIG}/50_user.conf
        echo 'echo first >/run/order' >/rw/config/rc.local.d/10.rc
        printf '%s\\n' '#!/bin/sh' 'until [ -e /tmp/go ]; do sleep 0.02; done' \\
            'id -un >>/run/order' 'echo said' >/rw/config/rc.local
        chmod +x /rw/config/rc.local /rw/config/rc.local.d/10.rc
        """,
    )
    assert whole.said("work", "cat /opt/only/file; readlink /etc/hosts") == (
        f"made\n{KEPT}/etc/hosts"
    )
    whole.said("work", "touch /tmp/go; until grep -qx root /run/order; do sleep 0.02; done")
    assert whole.said("work", "cat /run/order") == "first\nroot"
    whole.said("work", "until grep -qx said /var/log/qubes/setup.log; do sleep 0.02; done")
    again(whole, "work", "echo '10.0.0.1 mine' >>/etc/hosts; chmod -x /rw/config/rc.local")
    assert "10.0.0.1 mine" in whole.said("work", "cat /etc/hosts")
    assert whole.inside("work", "test -e /run/order && grep root /run/order").code != 0


def test_what_fails_in_a_script_stands_in_the_log_of_the_set_up(whole: Whole):
    """What it says, how it ends, and that one without an x bit is not run; others still are."""
    again(
        whole,
        "work",
        f"""
        rm -rf {CONFIG}/*; mkdir -p {CONFIG} /rw/config/rc.local.d
        echo 'binds+=( ' >{CONFIG}/50_user.conf
        printf '%s\\n' '#!/bin/sh' 'echo no such disk >&2' 'exit 3' >/rw/config/rc.local.d/10.rc
        chmod +x /rw/config/rc.local.d/10.rc
        echo 'echo not run' >/rw/config/rc.local.d/20.rc
        echo 'echo last' >/rw/config/rc.local; chmod +x /rw/config/rc.local
        """,
    )
    log = "/var/log/qubes/setup.log"
    last = "until grep -q '^last$' {0}; do sleep 0.02; done; cat {0}"
    assert whole.said("work", last.format(log)).splitlines() == [
        f"warning: `{CONFIG}/50_user.conf` makes no sense in line 2: nothing in it is kept",
        "no such disk",
        "warning: `/rw/config/rc.local.d/10.rc` failed with exit code 3",
        "warning: `/rw/config/rc.local.d/20.rc` is not run: it is no executable file",
        "hint: `chmod +x` lets it run at the next start",
        "last",
    ]
    again(whole, "work", "rm -r /rw/config/rc.local.d; chmod -x /rw/config/rc.local")
    alone = whole.said("work", f"until grep -q hint {log}; do sleep 0.02; done; cat {log}")
    assert "`/rw/config/rc.local` is not run" in alone
    again(whole, "work", f"rm -rf {CONFIG}/* /rw/config/rc.local*")


def test_hostile_settings_keep_no_qube_from_starting(whole: Whole):
    """A pipe, a device, links, a directory, and code where paths should be (QSB-038)."""
    again(
        whole,
        "work",
        f"""
        rm -rf {CONFIG} /rw/config/rc.local.d; mkdir -p {CONFIG} /rw/config/rc.local.d
        mkfifo {CONFIG}/a.conf /rw/config/rc.local.d/a.rc; mkdir {CONFIG}/b.conf
        ln -s /dev/zero {CONFIG}/c.conf; ln -s d.conf {CONFIG}/d.conf
        echo 'touch /run/ran; binds+=( $(touch /run/ran) )' >{CONFIG}/e.conf
        echo "binds+=( '/etc' '/../etc/passwd' '/nowhere' '/usr/lib/qubes/qrexec-agent' )" \\
            >{CONFIG}/f.conf
        head -c 100000 /dev/zero | tr '\\0' '#' >{CONFIG}/g.conf
        printf 'binds+=( "/\\033[2Jx" )' >{CONFIG}/h.conf
        echo "binds+=( '/srv' )" >{CONFIG}/z.conf
        rm -f /rw/config/rc.local; ln -s /nowhere /rw/config/rc.local
        """,
    )
    assert whole.said("work", "readlink /srv; ls /run") == (
        f"{KEPT}/srv\nqubes\nqubes-service\nqubesdb"
    )
    log = whole.said("work", "cat /var/log/qubes/setup.log")
    for file in "abcdefgh":
        assert (f"{file}.conf" in log) is (file not in "fh"), file
    for path in ("/etc", "/../etc/passwd", "/nowhere", "/usr/lib/qubes/qrexec-agent"):
        assert f"`{path}` is not kept" in log
    assert "\033" not in log
    done = whole.inside("work", "/usr/lib/qubes/qubes-setup", user="root")
    assert (done.code, "\033" in done.err) == (1, False)
    again(whole, "work", f"rm -rf {CONFIG}/* /rw/config/rc.local*")
    assert whole.said("work", "readlink /srv; ls /var/log/qubes 2>&1 | wc -l") == "1"


def test_home_and_usr_local_are_kept_and_the_default_user_is_the_qubes_own(whole: Whole):
    """Calls that name no user run as `default_user`; one that is not there is named."""
    again(whole, "work", "echo x | tee /home/user/kept /usr/local/bin/kept /var/gone")
    assert whole.said("work", "cat /home/user/kept /usr/local/bin/kept") == "x\nx"
    assert whole.inside("work", "test -e /var/gone").code == 1
    assert service(whole, "work", "qubes.VMShell", stdin=b"id -un").out == "user\n"
    whole.call("admin.vm.property.Set+default_user", "work", b"root")
    assert service(whole, "work", "qubes.VMShell", stdin=b"id -un").out == "root\n"
    assert whole.said("work", "qubesdb-read /default-user") == "root"
    whole.call("admin.vm.property.Set+default_user", "work", b"nobody-here")
    done = service(whole, "work", "qubes.VMShell", stdin=b"id -un")
    assert (done.code, done.out) == (125, "")
    assert done.err == "error: the called qube has no user `nobody-here`\n"
    whole.call("admin.vm.property.Reset+default_user", "work")


def test_dates_have_their_exact_forms_and_a_container_sets_no_clock(whole: Whole):
    """What would make a shell do something is no date (QSB-038)."""
    date = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"
    plain = service(whole, "work", "qubes.GetDate+").raw
    assert re.fullmatch(rf"{date}\+00:00\n", plain.decode())
    assert len(plain) == 26
    fine = service(whole, "work", "qubes.GetDate+nanoseconds").raw
    assert re.fullmatch(rf"{date},\d{{9}}\+00:00\n", fine.decode())
    assert len(fine) == 36
    assert service(whole, "work", "qubes.GetDate+other").code == 1
    assert service(whole, "work", "qubes.SetDateTime", stdin=plain) == Done(0, "", "")
    off = service(whole, "work", "qubes.SetDateTime", stdin=b"2026-01-01T00:00:00+00:00\n")
    assert off.code == 1
    assert "a container has the machine's clock" in off.err
    for text in (b"", b"$(touch /tmp/x)\n", b"2026-01-01T00:00:00Z; id\n", b"\x1b[2J\n"):
        done = service(whole, "work", "qubes.SetDateTime", stdin=text)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("error: that is no date\n")


def test_a_clock_is_compared_with_that_of_the_clock_qube(whole: Whole):
    """Which is the admin qube where none is named; the way there is policy's to close."""
    finished([str(SHIPPED / "script/install-services"), str(whole.paths.root)])
    assert whole.inside("work", "qvm-sync-clock", user="root") == Done(0, "", "")
    whole.policy("qubes.GetDate * work @anyvm deny\nqubes.GetDate * work @default deny\n")
    refused = whole.inside("work", "qvm-sync-clock", user="root")
    assert refused.code == 1
    assert refused.err.startswith("Request refused\nerror: the clock qube gave no date\n")


def test_a_port_of_a_qube_leads_to_another_one_where_policy_allows(whole: Whole):
    """Through `qvm-connect-tcp` and `qubes.ConnectTCP`; the other port stays closed."""
    whole.policy("qubes.ConnectTCP +5001 work sys-net allow\n")
    for port in (5001, 5002):
        whole.begin("sys-net", f"python3 -c {shlex.quote(SERVER)} {port}")
        whole.said("sys-net", LISTENS.format(port))
    for own, spec in ((5003, "5003:sys-net:5001"), (5002, ":sys-net:5002")):
        whole.begin("work", f"exec qvm-connect-tcp {spec}")
        whole.said("work", LISTENS.format(own))
    talk = f"python3 -c {shlex.quote(CLIENT)}"
    assert whole.said("work", f"{talk} 5003; {talk} 5003") == "HELLO\nHELLO"
    refused = whole.inside("work", f"{talk} 5002")
    assert "HELLO" not in refused.out
    assert whole.audited(service="qubes.ConnectTCP", argument="+5002", decision="deny")
    assert whole.said("work", "grep -c ' 0100007F:138B ' /proc/net/tcp")  # 127.0.0.1 and no other


def test_a_template_announces_its_features_and_reaches_the_updates_proxy(whole: Whole):
    """`qubes.PostInstall` fills the record; requests of apt go through the network qube."""
    whole.start("host")
    done = service(whole, "host", "qubes.PostInstall")
    assert (done.code, done.err) == (0, "")
    told = whole.command("qvm-features", "host").out
    found = dict((*line.split(None, 1), "")[:2] for line in told.splitlines())
    assert {"qrexec": "1", "vmexec": "1", "os": "Linux"}.items() <= found.items()
    assert found["supported-rpc.qubes.PostInstall"] == "1"
    assert found["supported-rpc.qubes.ConnectTCP"] == "1"
    assert found["supported-service.updates-proxy-setup"] == "1"
    for wrong in ("internal", "a b=1", "x=$(id)", "x=\033[2J", "=1"):
        refused = whole.inside("host", f"qvm-features-request {shlex.quote(wrong)}", user="root")
        assert (refused.code, "\033" in refused.err) == (2, False), wrong
    whole.said("host", "qvm-features-request internal=1 os-eol=2030-01-01 --commit", user="root")
    found = whole.command("qvm-features", "host").out
    assert "2030-01-01" in found
    assert "internal" not in found
    whole.begin("sys-net", f"python3 -c {shlex.quote(PROXY)}")
    whole.said("sys-net", LISTENS.format(8082))
    assert whole.said("host", "/usr/lib/qubes/updates-proxy-detect") == "http://127.0.0.1:8082/"
    whole.said("host", LISTENS.format(8082))
    fetch = "/usr/lib/apt/apt-helper download-file http://mirror.invalid/x /tmp/fetched >/dev/null"
    assert whole.said("host", f"{fetch}; cat /tmp/fetched", user="root") == (
        "GET http://mirror.invalid/x HTTP/1.1"
    )
    assert whole.said("work", "/usr/lib/qubes/updates-proxy-detect") == "DIRECT"
    whole.broker.crash()
    whole.broker.start()  # the agent comes back, and its barriers are up as before
    assert whole.said("host", "id -un") == "user"


def test_a_count_of_updates_reaches_the_record(whole: Whole):
    """The template counts what apt would install."""
    fake = "/usr/local/bin/apt-get"
    script = "#!/bin/sh\necho 'Inst a [1] (2)'\necho 'Conf a (2)'\n"
    whole.start("host")
    whole.said("host", f"cat >{fake}; chmod +x {fake}", user="root", stdin=script.encode())
    whole.said("host", "/usr/lib/qubes/upgrades-status-notify", user="root")
    assert whole.call("admin.vm.feature.Get+updates-available", "host") == "1"
    whole.said("host", f"printf '#!/bin/sh\\n' >{fake}", user="root")
    whole.said("host", "/usr/lib/qubes/upgrades-status-notify", user="root")
    assert whole.call("admin.vm.feature.Get+updates-available", "host") == ""


def test_a_network_qube_without_the_proxy_says_so(whole: Whole):
    """The service is on and its program missing: a line in the log, nothing else."""
    whole.call("admin.vm.feature.Set+service.qubes-updates-proxy", "sys-net", b"1")
    whole.call("admin.vm.Shutdown+force+wait", "sys-net")
    whole.start("sys-net")
    log = until(
        lambda: whole.inside("sys-net", "cat /var/log/qubes/setup.log").out, "the log of sys-net"
    )
    if whole.inside("sys-net", "command -v tinyproxy").code:
        assert "tinyproxy is not installed" in log


def at_a_terminal(whole: Whole, *command: str) -> tuple[int, str]:
    """Run a command whose standard error is a terminal; its exit code, and what that shows."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, env=whole.env
    ) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while chunk := os.read(master, 4096):
                shown += chunk
        os.close(master)
        return process.wait(), shown.decode()


def test_who_starts_a_qube_at_a_terminal_learns_that_its_set_up_failed(whole: Whole):
    """A number and a hint; listeners and the daemon's log get it too, and the qube runs."""
    whole.said(
        "work",
        f"""
        mkdir -p {CONFIG}; echo "binds+=( '/nowhere' )" >{CONFIG}/50_user.conf
        printf '%s\\n' '#!/bin/sh' 'exit 3' >/rw/config/rc.local; chmod +x /rw/config/rc.local
        """,
        user="root",
    )
    whole.call("admin.vm.Shutdown+wait", "work")
    heard = whole.client.events(destination="work")
    assert next(heard).name == "connection-established"
    code, shown = at_a_terminal(whole, "qvm-start", "work")
    assert code == 0
    assert shown.splitlines() == [
        "warning: in the set-up of qube `work`, this many things failed: 2",
        "hint: see which: `qvm-run -p work 'cat /var/log/qubes/setup.log'`",
    ]
    failed = next(each for each in heard if each.name == "domain-setup-failed")
    assert failed.arguments == {"failures": "2"}
    heard.close()
    assert "the set-up of a qube had failures" in whole.qubesd.last_words()
    assert whole.call("admin.vm.CurrentState", "work").endswith("power_state=Running")
    whole.said("work", f"rm -r {CONFIG}/* /rw/config/rc.local", user="root")
    whole.call("admin.vm.Shutdown+wait", "work")
    assert at_a_terminal(whole, "qvm-start", "work") == (0, "")
    assert whole.call("caisson.vm.SetUp", "work") == "failures=0"


def test_a_set_up_that_goes_on_delays_nobody_without_a_terminal(whole: Whole):
    """What never ends is not known to have failed; a start does not wait for it."""
    again(
        whole,
        "work",
        "printf '%s\\n' '#!/bin/sh' 'touch /run/begun; exec sleep inf' >/rw/config/rc.local;"
        " chmod +x /rw/config/rc.local",
    )
    whole.said("work", "until test -e /run/begun; do sleep 0.02; done")
    assert whole.call("caisson.vm.SetUp", "work") == ""
    again(whole, "work", "rm /rw/config/rc.local")


def test_a_qube_that_floods_the_admin_qube_is_refused(whole: Whole):
    """After some calls in a row, with a reason; others are heard, and the log tells of it."""
    call = "echo \"$(echo 1 | qrexec-client-vm dom0 qubes.NotifyUpdates | tr '\\0\\n' '  ')\""
    answers = whole.said("work", f"for i in $(seq 40); do {call} & done; wait").splitlines()
    granted = [answer for answer in answers if answer.startswith("0 ")]
    refused = [answer for answer in answers if "qube `work` says too much of itself" in answer]
    assert 20 <= len(granted) < 40
    assert len(granted) + len(refused) == 40
    assert whole.said("sys-net", call).startswith("0")
    assert "a qube says too much of itself" in whole.qubesd.log.read_text()
