"""Services of the admin qube with real qubes: a whole instance, as it is installed."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from grounds.processes import until
from grounds.whole import Whole

from caisson.paths import SHIPPED

pytestmark = pytest.mark.root

POLICY = """\
my.Where                 *  caller  @adminvm  allow
qubes.GetRandomizedTime  *  caller  @adminvm  allow
qubes.ReceiveUpdates     *  caller  @adminvm  allow
my.Where                 *  far     @adminvm  allow
"""
CLOCK = "2001-02-03T04:05:06+00:00"
HOSTILE_CLOCK = f"""\
cat >/tmp/heard
echo "$QREXEC_REMOTE_DOMAIN" >/tmp/asks
cat /tmp/answer 2>/dev/null || echo {CLOCK}
echo secret >&2
"""


@pytest.fixture(scope="module")
def served(whole: Whole) -> Iterator[Whole]:
    """The shipped services are installed, and one of ours; `caller` and `clock` run."""
    subprocess.run([SHIPPED / "script/install-services", whole.paths.root], check=True)
    service = whole.paths.services / "my.Where"
    service.write_text('#!/bin/sh\necho "$QREXEC_REMOTE_DOMAIN $1 $(id -un)"; cat; exit 9\n')
    service.chmod(0o755)
    try:
        for name in ("caller", "clock"):
            whole.app(name, start=True)
        whole.service("clock", "qubes.GetDate", HOSTILE_CLOCK)
        whole.policy(POLICY)
        yield whole
    finally:
        whole.call("admin.property.Reset+clockvm")
        whole.call("admin.property.Reset+updatevm")
        for name in ("far", "caller", "clock"):
            whole.discard(name)
        whole.policy("")


def test_a_qube_calls_a_service_of_the_admin_qube(served: Whole) -> None:
    """Name, argument, data and exit code; the audit tells of it as of any call."""
    done = served.inside("caller", "qrexec-client-vm dom0 my.Where+a", stdin=b"data\n")
    assert (done.code, done.out, done.err) == (9, "caller a qubes-rpc\ndata\n", "")
    assert served.inside("caller", "qrexec-client-vm dom0 my.Absent").code == 126
    record = served.audited(service="my.Where", source="caller")
    assert (record["target"], record["code"]) == ("dom0", 9)


def test_the_admin_qube_tells_the_time(served: Whole) -> None:
    """To the second and to the nanosecond, and one that is off on purpose (sheet, section 6)."""
    before = datetime.now(UTC).replace(microsecond=0)
    text = served.said("caller", "qrexec-client-vm dom0 qubes.GetDate")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", text)
    assert before <= datetime.fromisoformat(text) <= datetime.now(UTC)
    text = served.said("caller", "qrexec-client-vm @default qubes.GetDate+nanoseconds")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{9}\+00:00", text)
    assert served.inside("caller", "qrexec-client-vm dom0 qubes.GetDate+x").code == 1
    text = served.said("caller", "qrexec-client-vm dom0 qubes.GetRandomizedTime")
    assert re.fullmatch(r"\d{10}\.\d{9}", text)
    assert abs(float(text) - time.time()) < 190


def test_the_clock_qube_tells_it_where_there_is_one(served: Whole) -> None:
    """To others than itself; in the admin qube's name, and nothing but the time."""
    served.call("admin.property.Set+clockvm", payload=b"clock")
    ask = "qrexec-client-vm dom0 qubes.GetDate"
    done = served.inside("caller", ask, stdin=b"secret" * 100_000)
    assert (done.code, done.out, done.err) == (0, f"{CLOCK}\n", "")
    assert served.said("clock", "cat /tmp/heard /tmp/asks") == "dom0"
    served.said("clock", "echo secret >/tmp/answer")
    done = served.inside("caller", ask)
    assert (done.code, done.out, done.err) == (125, "", "")
    served.said("clock", "rm /tmp/answer")
    record = served.audited(service="qubes.GetDate", target="clock")
    assert (record["source"], record["redirected_from"]) == ("caller", "dom0")
    assert served.said("clock", ask) != CLOCK
    served.shut_down("clock")
    assert served.said("caller", ask) != CLOCK
    assert served.states()["clock"] == "Halted"


def test_a_relay_reaches_the_admin_qube_in_its_remote_qube_s_name(served: Whole) -> None:
    """With the client's own option; any other name is refused."""
    served.call("admin.vm.Create.RemoteVM", payload=b"name=far label=gray")
    served.call("admin.vm.property.Set+relayvm", "far", b"caller")
    done = served.inside("caller", "qrexec-client-vm --source-qube=far dom0 my.Where+b")
    assert (done.code, done.out) == (9, "far b qubes-rpc\n")
    for name in ("clock", "dom0", "nobody"):
        done = served.inside("caller", f"qrexec-client-vm --source-qube={name} dom0 my.Where")
        assert (done.code, done.err) == (126, "Request refused\n")
    record = served.audited(requested_source="far")
    assert (record["source"], record["decision"]) == ("caller", "allow")


def test_only_the_qube_of_updatevm_brings_updates(served: Whole) -> None:
    """Nothing is unpacked for another one, whatever the policy says."""
    bring = "qrexec-client-vm dom0 qubes.ReceiveUpdates"
    assert served.inside("caller", bring).code == 126
    assert not served.paths.updates.exists()
    served.call("admin.property.Set+updatevm", payload=b"caller")
    assert served.inside("caller", bring).code not in {0, 126}
    until(lambda: list(served.paths.incoming_updates.iterdir()) == [], "leftovers are removed")
    assert list(served.paths.packages.iterdir()) == []
    send = f"{bring} /usr/lib/qubes/qfile-agent"
    made = "cd /tmp && printf new >a_1.deb && printf newer >b-2.rpm && printf x >c.txt"
    served.said("caller", f"{made} && {send} a_1.deb b-2.rpm")
    (transfer,) = (served.paths.packages / "caller").iterdir()
    kept = {path.name: path.read_text() for path in transfer.iterdir()}
    assert kept == {"a_1.deb": "new", "b-2.rpm": "newer"}
    assert served.inside("caller", f"cd /tmp && {send} a_1.deb c.txt").code != 0
    assert list((served.paths.packages / "caller").iterdir()) == [transfer]
