"""Attacks on services of the admin qube: by their callers, by other users, by a broker gone bad."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
from pathlib import Path

import pytest
from broker_rig import PATIENCE, as_broker
from dom0_rig import ServiceRig, service_rig

from caisson.qrexec.admin_messages import Handover, encode, read_done
from caisson.qrexec.calls import Pipes
from caisson.qrexec.link import address

pytestmark = pytest.mark.root

POLICY = """\
my.Service  +good  mallory  @adminvm  allow
my.Asked    *      mallory  @adminvm  ask
my.Free     *      @anyvm   @adminvm  allow
*           *      @anyvm   @adminvm  deny
"""
NOBODY = pwd.getpwnam("nobody")


async def test_a_name_with_other_characters_reaches_nobody():
    """No separator, blank or escape gets to the policy, let alone to a directory."""
    async with service_rig("* * @anyvm @adminvm allow\n", "mallory") as admin:
        admin.lay("my.Service", "echo reached")
        for service in (
            "../x",
            "my.Service/../my.Service",
            "/etc/passwd",
            "my.Service+../../x",
            "my.Service+a b",
            "my.Service+%2e",
            "my.Service\n",
            "+x",
            "",
        ):
            client = await admin.rig.call("mallory", "dom0", service)
            assert (await client.receive())[0] == b"R", service
        assert admin.log == []


async def test_what_others_than_root_could_change_is_not_run():
    """The call fails with 125, and the log names the path; `test_service_places` has each way."""
    async with service_rig(POLICY, "mallory") as admin:
        admin.lay("my.Service", "echo fine")
        assert await admin.out("my.Service+good", "mallory") == b"fine\n"
        for arrange in (lambda p: os.chown(p, NOBODY.pw_uid, 0), lambda p: p.chmod(0o775)):
            path = admin.lay("my.Free", "echo reached")
            arrange(path)
            answer = await admin.call("mallory", "dom0", "my.Free")
            assert (answer.verdict, answer.out) == (b"X125", b"")
            assert str(path) in admin.told("a service is not served")[-1]["reason"]
            os.chown(path, 0, 0)


class Broker:
    """A broker that was taken over: it speaks to qubesd as it likes, as its user."""

    def __init__(self, admin: ServiceRig) -> None:
        self._path = admin.rig.paths.admin_calls

    async def hand_over(self, **told: object) -> tuple[int, bytes]:
        """Hand a call over; gives its exit code, 256 for none, and what came out."""
        whole = {"target_type": "name", "requested": "dom0", "id": 1} | told
        pipes = Pipes.make()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            with as_broker():
                sock.connect(address(self._path))
            socket.send_fds(sock, [encode(Handover(**whole))], pipes.service)  # type: ignore[arg-type]
            for descriptor in (*pipes.service, pipes.caller[0]):
                os.close(descriptor)
            sock.settimeout(PATIENCE)
            answer = await asyncio.to_thread(sock.recv, 1000)
            out = await asyncio.to_thread(os.read, pipes.caller[1], 1000)
            os.close(pipes.caller[1])
            os.close(pipes.caller[2])
        return read_done(answer).code if answer else 256, out


FORGED = [
    ({"service": "my.Service", "argument": "+good", "source": "mallory"}, 0),
    ({"service": "my.Service", "argument": "+evil", "source": "mallory"}, 126),
    ({"service": "my.Service", "argument": "+good+", "source": "mallory"}, 126),
    ({"service": "my.Service", "argument": "+", "source": "mallory"}, 126),
    ({"service": "my.Service", "argument": "+good", "source": "work"}, 126),
    ({"service": "my.Service", "argument": "+good", "source": "nobody"}, 126),
    ({"service": "my.Service", "argument": "+good", "source": "dom0"}, 256),
    ({"service": "my.Service", "argument": "good", "source": "mallory"}, 256),
    ({"service": "my.Service", "argument": "+../x", "source": "mallory"}, 256),
    ({"service": "my.Service\n", "argument": "+good", "source": "mallory"}, 256),
    ({"service": "my.Service+good", "argument": "+", "source": "mallory"}, 256),
    ({"service": "../my.Service", "argument": "+good", "source": "mallory"}, 256),
]


async def test_a_broker_gone_bad_gets_no_more_than_the_policy_gives():
    """QSB-038: qubesd judges again, by the very bytes that the service would be started with."""
    async with service_rig(POLICY, "mallory", "work") as admin:
        admin.lay("my.Service", "echo reached")
        for told, code in FORGED:
            expected = (code, b"reached\n" if code == 0 else b"")
            assert await Broker(admin).hand_over(**told) == expected, told


async def test_arguments_are_the_same_bytes_everywhere():
    """QSB-038: no option, no pattern and no path is made of what stands behind the `+`."""
    async with service_rig(POLICY, "mallory") as admin:
        admin.lay("my.Free", 'printf "%s" "${1-}" "=$QREXEC_SERVICE_ARGUMENT"')
        for argument in ("--help", "-n", "..", "+", "++a+", "-user+root", ".", "a" * 3000):
            out = await admin.out(f"my.Free+{argument}", "mallory")
            assert out == f"{argument}={argument}".encode()
            record = await admin.rig.audited(service="my.Free", argument=f"+{argument}"[:2048])
            assert record["code"] == 0


async def test_a_bare_name_of_a_program_is_no_service(tmp_path: Path):
    """Nothing is looked for on `PATH` or in the directory that qubesd stands in."""
    async with service_rig("* * @anyvm @adminvm allow\n", "mallory") as admin:
        for name in ("sh", "id", "qrexec-run-service", "passwd"):
            assert (await admin.call("mallory", "dom0", name)).verdict == b"X127"
