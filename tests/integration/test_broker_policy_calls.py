"""The policy services (sheet `qrexec`, section 4.4) over a real broker: bytes, errors, rights."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from admin_rig import Answer, Daemon, daemon_rig
from broker_rig import prompt_agent, until

from caisson.admin.registry import METHODS, Scope
from caisson.qrexec.admin_messages import POLICY_SERVICES
from caisson.store import policy_directory
from caisson.store.policy_store import LARGEST

pytestmark = pytest.mark.root

CANARY = "canary-2c9e"
POLICY = f"""\
policy.List             *     mgmt  @adminvm  allow
policy.Get              *     mgmt  @adminvm  allow
policy.include.List     *     mgmt  @adminvm  allow
policy.include.Get      *     mgmt  @adminvm  allow
policy.GetFiles         *     mgmt  @adminvm  allow
policy.Replace          *     mgmt  @adminvm  allow
policy.include.Replace  *     mgmt  @adminvm  allow
policy.Remove           *     mgmt  @adminvm  allow
policy.include.Remove   *     mgmt  @adminvm  allow
policy.List             *     ro    @adminvm  allow
policy.Get              *     ro    @adminvm  allow
policy.Replace          +40-web one @adminvm  allow
policy.Replace          *     asked @adminvm  ask target=dom0
policy.RegisterArgument +my.Back key work     allow target=dom0
policy.Nothing          *     mgmt  @adminvm  allow
secret.Service          *     {CANARY} @anyvm deny
"""


def token(content: bytes) -> bytes:
    """What stands for a content."""
    return b"sha256:" + hashlib.sha256(content).hexdigest().encode()


def folder(daemon: Daemon) -> Path:
    """Where the files are."""
    return daemon.rig.paths.etc / "policy.d"


@asynccontextmanager
async def served(*names: str) -> AsyncIterator[Daemon]:
    """Both daemons, with an included file."""
    async with daemon_rig(POLICY, "mgmt", *names) as daemon:
        (folder(daemon) / "include").mkdir(exist_ok=True)
        (folder(daemon) / "include/web").write_bytes(b"work @default ask\n")
        yield daemon


def said(answer: Answer) -> tuple[int, bytes, bytes]:
    """Exit code, standard output, standard error."""
    return answer.code, answer.out, answer.err


def refused(answer: Answer, name: str) -> str:
    """The text of a refusal: `CLASS MESSAGE` on standard error, nothing else, exit code 1."""
    assert (answer.code, answer.out) == (1, b""), answer
    kind, _, text = answer.err.decode().partition(" ")
    assert kind == f"PolicyAdmin{name}Exception", answer.err
    assert text.endswith("\n")
    assert text.replace("\n", "").isprintable()
    return text


def test_the_broker_hands_over_just_the_services_that_exist():
    """What qubesd answers without a frame is what it declares as such."""
    declared = {name for name, each in METHODS.methods.items() if each.scope is Scope.POLICY}
    assert declared == POLICY_SERVICES


async def test_files_are_listed_read_replaced_and_removed():
    """The bytes of each answer; by name and by keyword, as an unmodified client calls."""
    async with served() as daemon:

        async def call(service: str, payload: bytes = b"", target: str = "dom0") -> object:
            return said(await daemon.call("mgmt", target, service, payload))

        user, web = POLICY.encode(), b"work @default ask\n"
        for target in ("dom0", "@adminvm"):
            assert await call("policy.List", target=target) == (0, b"30-user\n", b"")
        assert await call("policy.include.List") == (0, b"web\n", b"")
        assert await call("policy.Get+30-user") == (0, token(user) + b"\n" + user, b"")
        assert await call("policy.include.Get+web") == (0, token(web) + b"\n" + web, b"")
        assert await call("policy.GetFiles+policy.List") == (0, b"30-user\n", b"")
        new = b"my.X * work @anyvm deny\r\n# \xc3\xa9\n"
        assert await call("policy.Replace+40-web", b"new\n" + new) == (0, b"", b"")
        assert (folder(daemon) / "40-web.policy").read_bytes() == new
        assert await call("policy.Get+40-web") == (0, token(new) + b"\n" + new, b"")
        assert await call("policy.Replace+40-web", token(new) + b"\n") == (0, b"", b"")
        assert await call("policy.Get+40-web") == (0, token(b"") + b"\n", b"")
        assert await call("policy.Remove+40-web", token(b"")) == (0, b"", b"")
        assert await call("policy.include.Replace+web", b"any\nwork vault ask\n") == (0, b"", b"")
        assert await call("policy.include.Remove+web", b"any") == (0, b"", b"")
        assert await call("policy.List") == (0, b"30-user\n", b"")
        assert await call("policy.include.List") == (0, b"", b"")


REFUSALS = [
    ("policy.List+x", b"", "Protocol"),
    ("policy.List", b"x", "Protocol"),
    ("policy.include.List", b"\0", "Protocol"),
    ("policy.Get", b"", "Protocol"),
    ("policy.Get+30-user", b"x", "Protocol"),
    ("policy.Get+a.b", b"", "InvalidFileName"),
    ("policy.Get+30-user.policy", b"", "InvalidFileName"),
    ("policy.Get+..", b"", "InvalidFileName"),
    ("policy.include.Get+a+b", b"", "InvalidFileName"),
    ("policy.Get+none", b"", "FileNotFound"),
    ("policy.include.Get+30-user", b"", "FileNotFound"),
    ("policy.Get+31-link", b"", "InvalidFilePath"),
    ("policy.Replace+31-link", b"any\n", "InvalidFilePath"),
    ("policy.GetFiles", b"", "Protocol"),
    ("policy.GetFiles+a+b", b"", "Protocol"),
    ("policy.GetFiles+my.X", b"x", "Protocol"),
    ("policy.Replace", b"any\n", "Protocol"),
    ("policy.Replace+40-web", b"", "Protocol"),
    ("policy.Replace+40-web", b"any", "Protocol"),
    ("policy.Replace+40-web", b"\n", "Token"),
    ("policy.Replace+40-web", b"x" * 5000 + b"\n", "Token"),
    ("policy.Replace+30-user", b"new\n", "Token"),
    ("policy.Replace+30-user", token(b"") + b"\n", "Token"),
    ("policy.Replace+40-web", b"any\nnonsense\n", "Syntax"),
    ("policy.Replace+40-web", b"any\n!include include/none\n", "Syntax"),
    ("policy.Replace+40-Web", b"any\n", "InvalidFileName"),
    ("policy.Remove+30-user", b"", "Protocol"),
    ("policy.Remove+30-user", b"any\n", "Token"),
    ("policy.Remove+30-user", token(b""), "Token"),
    ("policy.Remove+none", b"any", "FileNotFound"),
    ("policy.include.Remove+none", b"any", "FileNotFound"),
]


async def test_refusals_have_their_classes():
    """Section 4.4; nothing is changed, and no error tells what another file says."""
    async with served() as daemon:
        outside = daemon.rig.paths.root / "outside"
        outside.write_text(f"{CANARY} * * * deny\n")
        (folder(daemon) / "31-link.policy").symlink_to(outside)
        for service, payload, name in REFUSALS:
            text = refused(await daemon.call("mgmt", "dom0", service, payload), name)
            assert CANARY not in text
        assert (folder(daemon) / "30-user.policy").read_text() == POLICY
        assert not (folder(daemon) / "40-web.policy").exists()


async def test_the_longest_file_comes_through_and_a_longer_one_does_not():
    """1 MiB, more than a request of the Admin API may have otherwise, in the admin qube too."""
    longest = b"#" * LARGEST
    async with served() as daemon:
        for target, ask in (("40-a", False), ("40-b", True)):
            for content, passes in ((longest, True), (longest + b"#", False)):
                service, payload = f"policy.Replace+{target}", b"any\n" + content
                if ask:
                    reply = await daemon.ask(service, payload=payload)
                    assert (reply == b"0\0") == passes, reply[:100]
                    assert passes or reply.startswith(b"2\0PolicyAdminProtocolException\0")
                elif passes:
                    assert (await daemon.call("mgmt", "dom0", service, payload)).code == 0
                else:
                    refused(await daemon.call("mgmt", "dom0", service, payload), "Protocol")
            assert (folder(daemon) / f"{target}.policy").read_bytes() == longest
        huge = await daemon.call("mgmt", "dom0", "policy.Replace+40-c", b"any\n" + longest * 2)
        assert "longer than" in refused(huge, "Protocol")


async def test_a_file_that_run_hides_is_read_with_a_warning():
    """The answer has its bytes; what a person must know stands on standard error."""
    async with served() as daemon:
        over = daemon.rig.paths.run / "policy.d/40-web.policy"
        over.write_text("my.X * * * deny\n")
        for service, payload, out in (
            ("policy.Replace+40-web", b"any\n", b""),
            ("policy.Get+40-web", b"", token(b"") + b"\n"),
            ("policy.Remove+40-web", b"any", b""),
        ):
            code, content, told = said(await daemon.call("mgmt", "dom0", service, payload))
            assert (code, content) == (0, out)
            assert told.startswith(b"warning: `/run/qubes/policy.d/40-web.policy` takes the place")


async def test_a_change_counts_for_the_very_next_call():
    """In the broker and in qubesd, without a restart of either."""
    grant = b"admin.vm.List * mgmt @adminvm allow\n"
    async with served() as daemon:
        for _ in range(5):
            assert (await daemon.call("mgmt", "dom0", "admin.vm.List")).verdict == b"R"
            made = await daemon.call("mgmt", "dom0", "policy.Replace+20-now", b"new\n" + grant)
            assert said(made) == (0, b"", b"")
            assert (await daemon.call("mgmt", "dom0", "admin.vm.List")).code == 0
            gone = await daemon.call("mgmt", "dom0", "policy.Remove+20-now", token(grant))
            assert said(gone) == (0, b"", b"")


async def test_the_right_of_each_service_is_its_own():
    """To read is not to write, one file is not another one, and no rule is no right."""
    async with served("ro", "one", "nobody") as daemon:

        async def verdict(source: str, service: str, payload: bytes = b"") -> bytes:
            return (await daemon.call(source, "dom0", service, payload)).verdict

        for service in sorted(POLICY_SERVICES):
            for argument in ("", "+30-user"):
                assert await verdict("nobody", f"{service}{argument}", b"any") == b"R"
        assert await verdict("ro", "policy.List") == b"X0"
        assert await verdict("ro", "policy.Get+30-user") == b"X0"
        for service in ("Replace", "Remove", "include.Replace", "include.Remove", "include.Get"):
            assert await verdict("ro", f"policy.{service}+30-user", b"any\n") == b"R"
        assert await verdict("one", "policy.Replace+40-web", b"any\n") == b"X0"
        assert await verdict("one", "policy.Replace+30-user", b"any\n") == b"R"
        assert await verdict("one", "policy.Get+40-web") == b"R"
        # Exact names only: what begins alike is no service of the admin qube.
        assert (await verdict("mgmt", "policy.Nothing")) == b"X127"
        assert (folder(daemon) / "30-user.policy").read_text() == POLICY


async def test_who_may_write_one_file_learns_nothing_of_the_others():
    """QSB-099: a secret rule is in no answer and in no error of a qube that may not read it."""
    async with served("one") as daemon:
        secret = folder(daemon) / "include/secret"
        secret.write_text(f"{CANARY} {CANARY}\n")
        other = folder(daemon) / "50-other.policy"
        for included in ("include/secret", str(secret), "30-user.policy", "/etc/shadow"):
            payload = f"any\n!include {included}\n!include-service x * {included}\n".encode()
            answer = await daemon.call("one", "dom0", "policy.Replace+40-web", payload)
            assert CANARY not in refused(answer, "Syntax")
        # The policy breaks between the decision and the change.
        other.write_text(f"{CANARY}\n")
        answer = await daemon.call("one", "dom0", "policy.Replace+40-web", b"any\n")
        assert answer.verdict == b"R"


async def test_a_person_may_be_asked_before_a_file_is_replaced():
    """After `ask` the call is served as after `allow`; without an answer nothing happens."""
    async with served("asked") as daemon:
        async with prompt_agent(daemon.rig, lambda _: b"allow:dom0") as questions:
            done = await daemon.call("asked", "dom0", "policy.Replace+40-web", b"any\n# Hi.\n")
        assert said(done) == (0, b"", b"")
        assert [q["service"] for q in questions] == ["policy.Replace"]
        async with prompt_agent(daemon.rig, lambda _: b"deny"):
            denied = await daemon.call("asked", "dom0", "policy.Replace+40-web", b"any\n")
        assert denied.verdict == b"R"
        assert (folder(daemon) / "40-web.policy").read_bytes() == b"# Hi.\n"


async def test_a_qube_registers_an_argument_and_may_be_called_back_with_it():
    """Section 4.4: `SVC +ARG requested_target caller allow`, and no other argument."""
    async with served("key", "work") as daemon:
        back = await daemon.rig.agent("key")
        serving = asyncio.create_task(back.serve(lambda _: 0))

        async def register(
            argument: bytes, target: str = "work", service: str = "my.Back"
        ) -> Answer:
            return await daemon.call("key", target, f"policy.RegisterArgument+{service}", argument)

        assert (await daemon.call("work", "key", "my.Back+key-1")).verdict == b"R"
        for _ in range(2):
            assert said(await register(b"key-1")) == (0, b"", b"")
        registered = (folder(daemon) / "60-registered-arguments.policy").read_text()
        assert registered.splitlines()[1:] == ["my.Back +key-1 work key allow"]
        assert (await daemon.call("work", "key", "my.Back+key-1")).code == 0
        assert (await daemon.call("work", "key", "my.Back+key-2")).verdict == b"R"
        assert (await daemon.call("mgmt", "key", "my.Back+key-1")).verdict == b"R"
        assert (await register(b"key-2", target="mgmt")).verdict == b"R"
        assert (await register(b"key-2", target="dom0")).verdict == b"R"
        assert (await register(b"key-2", service="my.Other")).verdict == b"R"
        for bad in (b"", b"x" * 65, b"a+b", b"a\n", b"a b", b"\0", b"*", b"a\nx * * * allow"):
            refused(await register(bad), "Protocol")
        assert said(await register(b"x" * 64)) == (0, b"", b"")
        serving.cancel()


async def test_many_arguments_registered_at_once_are_all_registered():
    """Each call adds its own rule, and none is lost."""
    async with served("key", "work") as daemon:
        answers = await asyncio.gather(
            *(
                daemon.call("key", "work", "policy.RegisterArgument+my.Back", f"k{n}".encode())
                for n in range(12)
            )
        )
        assert [answer.code for answer in answers] == [0] * 12
        text = (folder(daemon) / "60-registered-arguments.policy").read_text()
        assert {line.split()[1] for line in text.splitlines()[1:]} == {f"+k{n}" for n in range(12)}


async def test_who_changed_what_is_written_down(capsys: pytest.CaptureFixture[str]):
    """The daemon's log names the qube, the file and both hashes; the audit log has the call."""
    async with served() as daemon:
        new = b"# New.\n"
        await daemon.call("mgmt", "dom0", "policy.Replace+40-web", b"new\n" + new)
        logged = next(line for line in capsys.readouterr().out.splitlines() if "40-web" in line)
        for word in ("mgmt", "policy.Replace", "old=new", f"new={token(new).decode()}"):
            assert word in logged
        record = await daemon.rig.audited(service="policy.Replace")
        wanted = {"source": "mgmt", "argument": "+40-web", "target": "dom0", "code": 0}
        assert {key: record[key] for key in wanted} == wanted


async def test_a_right_that_one_change_withdraws_is_gone_for_the_next_that_waited():
    """Of two changes at once the first takes the right away: the second is not made."""
    without = POLICY.replace("policy.Replace          *     mgmt", "policy.Replace  *  nobody")
    async with served() as daemon:
        services = daemon.piped._responder._services
        async with services.policy_writing:
            first = await daemon.begin("mgmt", "dom0", "policy.Replace+30-user")
            await first.write(b"any\n" + without.encode())
            await until(lambda: len(services.policy_writing._waiters or ()) == 1)
            second = await daemon.begin("mgmt", "dom0", "policy.Replace+40-web")
            await second.write(b"any\n")
            await until(lambda: len(services.policy_writing._waiters or ()) == 2)
        assert (await first.finish()).code == 0
        late = await second.finish()
        assert (late.code, late.out) == (1, b"")
        assert late.err.startswith(b"PermissionDenied ")
        assert not (folder(daemon) / "40-web.policy").exists()


async def test_a_bug_of_ours_is_told_apart_from_a_refusal(monkeypatch: pytest.MonkeyPatch):
    """Exit code 2; the daemon goes on, and says what a report needs, not what it was doing."""
    async with served() as daemon:
        monkeypatch.setattr(policy_directory, "SUFFIX", None)
        code, out, err = said(await daemon.call("mgmt", "dom0", "policy.List"))
        assert (code, out) == (2, b"")
        assert err.startswith(b"QubesException internal error: TypeError in `policy.List`\n")
        monkeypatch.undo()
        assert said(await daemon.call("mgmt", "dom0", "policy.List")) == (0, b"30-user\n", b"")
