"""Calls to qubes on other machines, with real qubes: their relay runs the transport."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from grounds.whole import Whole

pytestmark = pytest.mark.root

POLICY = """\
my.Default  *  caller  @default  allow  target=far
my.Echo     *  caller  far       allow
my.Private  *  far     caller    allow
"""
TRANSPORT = 'echo "$1|$QREXEC_SERVICE_FULL_NAME|$QREXEC_REMOTE_DOMAIN|$(id -un)"; cat; exit 9\n'


@pytest.fixture(scope="module")
def remote(whole: Whole) -> Iterator[Whole]:
    """`caller` and `relay` run; `far` is a qube on another machine behind the relay."""
    try:
        for name in ("caller", "relay"):
            whole.app(name, start=True)
        whole.call("admin.vm.Create.RemoteVM", payload=b"name=far label=gray")
        whole.call("admin.vm.property.Set+relayvm", "far", b"relay")
        whole.call("admin.vm.property.Set+transport_rpc", "far", b"my.Ssh")
        whole.service("relay", "my.Ssh", TRANSPORT)
        whole.policy(POLICY)
        yield whole
    finally:
        for name in ("caller", "far", "relay"):
            whole.discard(name)
        whole.policy("")


def call(whole: Whole, target: str, service: str) -> tuple[int, str]:
    """Call from `caller`, with some input; exit code and output."""
    done = whole.inside("caller", f"qrexec-client-vm {target} {service}", stdin=b"data\n")
    return done.code, done.out


def test_the_transport_is_told_everything_and_carries_the_data(remote: Whole) -> None:
    """Remote qube, service and argument in its argument; the caller; both streams; the code."""
    told = "far+my.Echo+a+b|my.Ssh+far+my.Echo+a+b|caller|user"
    assert call(remote, "far", "my.Echo+a+b") == (9, f"{told}\ndata\n")
    record = remote.audited(service="my.Echo")
    assert (record["target"], record["remote"]) == ("relay", "far")


def test_a_call_that_names_no_target_is_relayed_with_the_real_one(remote: Whole) -> None:
    """`@default` is what the caller said; the transport needs to know where to."""
    told = "far+my.Default|my.Ssh+far+my.Default|caller|user"
    for target in ("@default", "''", "unknown"):
        assert call(remote, target, "my.Default") == (9, f"{told}\ndata\n")


def test_a_halted_relay_is_started_for_the_call(remote: Whole) -> None:
    """As every target is."""
    remote.call("admin.vm.property.Set+transport_rpc", "far", b"my.Kept")
    remote.service("relay", "my.Kept", 'echo "$1"\n', where="/usr/local/etc/qubes-rpc")
    remote.shut_down("relay")
    assert call(remote, "far", "my.Echo") == (0, "far+my.Echo\n")
    assert remote.states()["relay"] == "Running"
    remote.call("admin.vm.property.Set+transport_rpc", "far", b"my.Ssh")


def test_programs_that_connect_themselves_are_told_the_first_leg(remote: Whole) -> None:
    """`qrexec-policy-exec` asks the broker of a whole instance, where upstream programs look."""
    done = remote.command("qrexec-policy-exec", "--", "caller", "far", "my.Echo+a")
    assert (done.code, done.err) == (0, "")
    assert {"target=relay", "service=my.Ssh+far+my.Echo+a"} <= set(done.out.splitlines())
    assert remote.command("qrexec-policy-exec", "--", "relay", "far", "my.Echo").code == 1
    assert remote.audited(ended="decided")["client_uid"] == 0


def test_a_relay_does_not_pass_for_its_remote_qube(remote: Whole) -> None:
    """What the remote qube may do, its relay may not do in its own name."""
    done = remote.inside("relay", "qrexec-client-vm caller my.Private")
    assert (done.code, done.err) == (126, "Request refused\n")
