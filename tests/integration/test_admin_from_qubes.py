"""The Admin API from inside a real qube, as the policy lets it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from grounds.processes import PATIENCE
from grounds.whole import Whole, whole_instance

pytestmark = pytest.mark.root

POLICY = """\
admin.vm.List           *  mgmt  dom0           allow
admin.vm.List           *  mgmt  @anyvm         allow  target=dom0
admin.Events            *  mgmt  @adminvm       allow
admin.Events            *  mgmt  @anyvm         allow  target=dom0
admin.vm.CurrentState   *  mgmt  @tag:managed   allow  target=dom0
admin.vm.feature.Set    *  mgmt  @tag:managed   allow  target=dom0
admin.vm.Start          *  mgmt  @tag:managed   allow  target=dom0
admin.vm.Kill           *  mgmt  @tag:managed   allow  target=dom0
"""
CONNECTED = b"1\0\0connection-established\0\0"


@pytest.fixture(scope="module")
def managed() -> Iterator[Whole]:
    """`mgmt` runs; `work` is its to manage, `vault` is not."""
    with whole_instance() as whole:
        whole.app("mgmt", start=True)
        whole.app("work")
        whole.app("vault")
        whole.call("admin.vm.tag.Set+managed", "work")
        whole.policy(POLICY)
        yield whole


def test_a_management_qube_sees_and_does_what_the_policy_names(managed: Whole) -> None:
    """The same frames as through the socket, on the qube it asked for, and nothing on another."""

    def call(target: str, service: str, payload: bytes = b"") -> tuple[int, bytes, str]:
        done = managed.inside("mgmt", f"qrexec-client-vm {target} {service}", stdin=payload)
        return done.code, done.raw, done.err

    listed = managed.client.call("admin.vm.List")
    for target in ("dom0", "@adminvm"):
        assert call(target, "admin.vm.List") == (0, b"0\0" + listed, "")
    assert call("work", "admin.vm.feature.Set+f", b"a b") == (0, b"0\0", "")
    assert managed.call("admin.vm.feature.Get+f", "work") == "a b"
    assert call("work", "admin.vm.Start") == (0, b"0\0", "")
    assert managed.states()["work"] == "Running"
    code, frame, _ = call("work", "admin.vm.CurrentState")
    assert code == 0
    assert frame.endswith(b"power_state=Running")
    assert call("work", "admin.vm.Kill") == (0, b"0\0", "")
    assert managed.states()["work"] == "Halted"

    refused = (126, b"", "Request refused\n")
    for target, service in (
        ("vault", "admin.vm.Start"),
        ("vault", "admin.vm.CurrentState"),
        ("work", "admin.vm.Remove"),
        ("dom0", "admin.vm.Create.AppVM"),
        ("dom0", "internal.GetSystemInfo"),
    ):
        assert call(target, service) == refused, service
    assert managed.states()["vault"] == "Halted"
    record = managed.audited(service="admin.vm.Kill", source="mgmt")
    wanted = {"requested": "work", "target": "dom0", "rule": "30-user.policy:8", "code": 0}
    assert {key: record[key] for key in wanted} == wanted


def test_an_event_stream_ends_with_its_daemon_and_begins_anew(managed: Whole) -> None:
    """A restart of qubesd is told with 255; the qube runs on and connects again."""
    for ended in (True, False):
        stream = managed.begin(
            "mgmt", "echo $$; exec qrexec-client-vm dom0 admin.Events </dev/null"
        )
        assert stream.stdout is not None
        client = int(stream.stdout.readline())
        assert stream.stdout.read(len(CONNECTED)) == CONNECTED
        managed.call("admin.vm.tag.Set+seen", "vault")
        event = b"1\0vault\0domain-tag-add:seen\0tag\0seen\0\0"
        assert stream.stdout.read(len(event)) == event
        managed.call("admin.vm.tag.Remove+seen", "vault")
        if ended:
            managed.qubesd.crash()
            assert stream.wait(PATIENCE) == 255
            managed.qubesd.launch()
            managed.qubesd.wait()
        else:
            managed.said("mgmt", f"kill {client}")
            assert managed.audited(service="admin.Events", ended="caller-gone")
