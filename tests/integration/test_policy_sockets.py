"""The sockets for programs that connect qubes themselves, served by the broker's process."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import stat

import pytest
from broker_rig import Rig, broker_rig, exchange, policy_query, prompt_agent, until

from caisson.qrexec.link import address

pytestmark = pytest.mark.root

POLICY = """\
my.Allowed  *  work   @anyvm    allow
my.Told     *  work   vault     allow  notify=yes
my.Denied   *  work   vault     deny   notify=no
my.Asked    *  work   vault     ask
my.Asked    *  work   other     ask
my.Default  *  work   @default  ask    default_target=vault
my.Far      *  work   far       allow
my.Speaks   *  far    vault     allow
my.Paste    *  work   vault     ask
my.Away     *  work   vault     allow  target=other
"""


async def ask(rig: Rig, service: str, target: str = "vault", **more: str) -> dict[str, str]:
    """The answer's values."""
    reply = await exchange(rig.paths.policy_socket, policy_query(service, target, **more))
    return dict(line.split("=", 1) for line in reply.decode().splitlines())


async def evaluate(
    rig: Rig, kind: str, service: str, payload: bytes, caller: str = "dom0"
) -> bytes:
    """What an evaluation service answers, reached as `/etc/qubes-rpc` names it."""
    head = f"policy.{kind}+{service} {caller} name dom0\0".encode()
    return await exchange(rig.paths.services / f"policy.{kind}", head + payload, end=True)


@contextlib.asynccontextmanager
async def system(policy: str = POLICY):
    """A broker that knows some qubes, none of which runs."""
    async with broker_rig(policy) as rig:
        await rig.add("work", default_dispvm="base", tags=("guivm-gui",))
        await rig.add("vault", tags=("guivm-gui",))
        await rig.add("other", state="Halted")
        await rig.add("base", template_for_dispvms=True)
        await rig.add("relay")
        await rig.add("far", type="RemoteVM", relayvm="relay", transport_rpc="my.Ssh")
        yield rig


async def test_an_allowed_call_is_described_in_full():
    """User, target, its uuid, autostart, and what was asked for, as clients read it."""
    async with system() as rig:
        assert await ask(rig, "my.Allowed+a") == {
            "user": "DEFAULT",
            "result": "allow",
            "target": "vault",
            "target_uuid": f"uuid:{rig.domains['vault']['uuid']}",
            "autostart": "True",
            "requested_target": "vault",
        }
        disposable = await ask(rig, "my.Allowed", "@dispvm")
        assert disposable["target"] == "@dispvm:base"
        assert disposable["target_uuid"] == f"@dispvm:uuid:{rig.domains['base']['uuid']}"
        assert disposable["requested_target"] == "@dispvm"
        record = await rig.audited(ended="decided", target="vault")
        assert (record["decision"], record["client_uid"]) == ("allow", os.getuid())
        assert (record["service"], record["argument"]) == ("my.Allowed", "+a")


async def test_a_denied_call_is_one_line():
    """Whatever the reason: the asker learns no more."""
    async with system() as rig:
        for service, target, more in (
            ("my.Denied", "vault", {}),
            ("my.Nothing", "vault", {}),
            ("my.Allowed", "@tag:x", {}),
            ("my.Allowed", "vault", {"requested_source": "far"}),
            ("my.Allowed", "vault", {"source": "nobody"}),
        ):
            reply = await exchange(rig.paths.policy_socket, policy_query(service, target, **more))
            assert reply == b"result=deny\n"
        assert (await rig.audited(service="my.Denied"))["ended"] == "denied"


async def test_a_qube_on_another_machine_is_reached_through_its_relay():
    """The answer is the first leg; a relay may ask in the name of its remote qube."""
    async with system() as rig:
        answer = await ask(rig, "my.Far+x", "far")
        assert (answer["target"], answer["service"]) == ("relay", "my.Ssh+far+my.Far+x")
        assert (answer["requested_target"], answer["user"]) == ("far", "DEFAULT")
        assert answer["target_uuid"] == f"uuid:{rig.domains['relay']['uuid']}"
        speaks = await ask(rig, "my.Speaks", source="relay", requested_source="far")
        assert (speaks["result"], speaks["policy_source"]) == ("allow", "far")
        assert (await ask(rig, "my.Speaks", source="relay"))["result"] == "deny"
        assert (await rig.audited(requested_source="far"))["source"] == "relay"


async def test_a_person_is_asked_and_their_pick_is_the_target():
    """The question is that of a call; a refusal is a denial."""
    async with system() as rig:
        async with prompt_agent(rig, lambda _: b"allow:other") as questions:
            assert (await ask(rig, "my.Asked"))["target"] == "other"
            assert (questions[0]["source"], questions[0]["targets"]) == ("work", ["other", "vault"])
        async with prompt_agent(rig, lambda _: b"deny"):
            assert await ask(rig, "my.Asked") == {"result": "deny"}
        assert (await rig.audited(service="my.Asked", ended="decided"))["answered_by"] == "uid 0"


async def test_a_bare_evaluation_asks_and_tells_nobody():
    """What only a person could allow is not allowed then."""
    policy = POLICY.replace("notify=no", "notify=yes")
    async with system(policy) as rig, prompt_agent(rig, lambda _: b"allow:vault") as questions:
        for service, result in (("my.Asked", "deny"), ("my.Denied", "deny"), ("my.Told", "allow")):
            assert (await ask(rig, service, just_evaluate="yes"))["result"] == result
        assert (await ask(rig, "my.Asked"))["result"] == "allow"
        assert len(questions) == 1
        assert [record["service"] for record in rig.audit()] == ["my.Asked"]


async def test_a_yes_can_be_assumed_for_what_may_be_picked():
    """What was asked for if it is offered, else what the policy preselects, else nothing."""
    async with system() as rig:
        yes = {"assume_yes_for_ask": "yes"}
        assert (await ask(rig, "my.Asked", "vault", **yes))["target"] == "vault"
        assert (await ask(rig, "my.Default", "", **yes))["result"] == "deny"
        rig.policy(POLICY + "my.Default * work vault ask\n")
        assert (await ask(rig, "my.Default", "", **yes))["target"] == "vault"
        assert (await ask(rig, "my.Denied", "vault", **yes))["result"] == "deny"


async def test_who_leaves_while_a_person_is_asked_takes_the_question_back():
    """The prompt agent is hung up on, and nothing was decided."""
    async with system() as rig, prompt_agent(rig, lambda _: None) as questions:
        _, writer = await asyncio.open_unix_connection(address(rig.paths.policy_socket))
        writer.write(policy_query("my.Asked"))
        await until(lambda: len(questions) == 1)
        writer.close()
        record = await rig.audited(service="my.Asked")
        assert (record["decision"], record["ended"]) == ("refuse", "caller-gone")


async def test_who_half_closes_still_gets_the_answer():
    """Upstream's daemon may say that it is done writing before a person has answered."""
    async with system() as rig, prompt_agent(rig, lambda _: b"allow:vault"):
        reply = await exchange(rig.paths.policy_socket, policy_query("my.Asked"), end=True)
        assert b"target=vault\n" in reply


async def test_nothing_is_decided_without_qubesd():
    """The broker's snapshot may be old then: a denial, and the log says why."""
    async with system() as rig:
        await rig.link.close()
        decided, evaluated = await asyncio.gather(
            exchange(rig.paths.policy_socket, policy_query("my.Allowed")),
            evaluate(rig, "EvalSimple", "my.Allowed", b"work\0vault"),
        )
        assert (decided, evaluated) == (b"result=deny\n", b"")
        assert (await rig.audited(service="my.Allowed"))["reason"] == "qubesd is not running"


async def test_a_changed_system_counts_for_the_next_decision():
    """As for calls: a push returns when nobody is decided on the old state any more."""
    async with system("my.Tagged * work @tag:open allow\n") as rig:
        for turn in range(10):
            tags = ("open",) if turn % 2 else ()
            await rig.add("vault", tags=tags)
            assert (await ask(rig, "my.Tagged"))["result"] == ("allow" if tags else "deny")


async def test_programs_find_the_sockets_where_they_look():
    """Links that only root can change, to sockets that root and the group `qubes` may use."""
    async with system() as rig:
        for link in (
            rig.paths.policy_socket,
            rig.paths.services / "policy.EvalSimple",
            rig.paths.services / "policy.EvalGUI",
        ):
            assert link.is_symlink()
            assert link.parent.stat().st_uid == 0
            found = link.stat()
            assert stat.S_ISSOCK(found.st_mode)
            assert stat.S_IMODE(found.st_mode) == 0o660
            with contextlib.suppress(KeyError):
                assert found.st_gid == grp.getgrnam("qubes").gr_gid


async def test_what_is_not_ours_stays_where_programs_look():
    """Another daemon's socket is not replaced when qubesd starts."""
    async with system() as rig:
        rig.paths.policy_socket.unlink()
        rig.paths.policy_socket.write_text("somebody else's")
        (rig.paths.services / "policy.EvalGUI").unlink()
        (rig.paths.services / "policy.EvalGUI").symlink_to("/nowhere")
        await rig.link.close()
        rig.link = rig.make_link()
        await rig.link.start()
        assert rig.paths.policy_socket.read_text() == "somebody else's"
        assert (rig.paths.services / "policy.EvalGUI").is_socket()


async def test_links_that_cannot_be_laid_stop_nothing():
    """As where `/etc` cannot be written: the other link is there, and qubesd serves."""
    async with system() as rig:
        for name in ("policy.EvalSimple", "policy.EvalGUI"):
            (rig.paths.services / name).unlink()
        rig.paths.services.rmdir()
        rig.paths.services.write_text("no directory")
        rig.paths.policy_socket.unlink()
        await rig.link.close()
        rig.link = rig.make_link()
        await rig.link.start()
        await rig.link.push(rig.domains)
        await rig.ready()
        assert (await ask(rig, "my.Allowed"))["result"] == "allow"


async def test_an_evaluation_is_one_bit():
    """An ask counts as a yes where the target may be picked; a call that goes elsewhere is none."""
    async with system() as rig:
        for service, target, verdict in (
            ("my.Allowed", b"vault", b"allow"),
            ("my.Allowed+x", b"@dispvm", b"allow"),
            ("my.Paste", b"vault", b"allow"),
            ("my.Paste", b"other", b"deny"),
            ("my.Denied", b"vault", b"deny"),
            ("my.Away", b"vault", b"deny"),
            ("my.Allowed", b"nobody", b"deny"),
        ):
            reply = await evaluate(rig, "EvalSimple", service, b"work\0" + target)
            assert reply == b"result=%s\n" % verdict, (service, target)
        assert not rig.paths.audit.exists() or rig.audit() == []


async def test_a_gui_qube_may_ask_about_what_it_shows():
    """Both qubes need its tag: windows of others are none of its business."""
    async with system() as rig:
        assert (
            await evaluate(rig, "EvalGUI", "my.Paste", b"work\0vault", "gui") == b"result=allow\n"
        )
        assert await evaluate(rig, "EvalGUI", "my.Paste", b"work\0vault") == b"result=deny\n"
        await rig.add("vault")
        assert await evaluate(rig, "EvalGUI", "my.Paste", b"work\0vault", "gui") == b"result=deny\n"
