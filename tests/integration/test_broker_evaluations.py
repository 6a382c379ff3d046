"""`policy.EvalSimple` and `policy.EvalGUI`, called by qubes over a real broker and qubesd."""

from __future__ import annotations

import pytest
from admin_rig import daemon_rig

pytestmark = pytest.mark.root

POLICY = """\
policy.EvalSimple  +my.Paste    asker  @adminvm  allow
policy.EvalSimple  +my.Paste+x  asker  @adminvm  allow
policy.EvalGUI     +my.Paste    gui    @adminvm  allow
my.Paste           *            work   vault     ask
my.Secret          *            work   vault     allow
"""


async def test_a_qube_learns_the_bits_that_the_policy_lets_it_ask_for():
    """By service and argument: what else is allowed it does not learn."""
    async with daemon_rig(POLICY, "asker", "work", "vault") as daemon:

        async def evaluate(about: str, payload: bytes, caller: str = "asker") -> object:
            answer = await daemon.call(caller, "dom0", f"policy.EvalSimple+{about}", payload)
            return answer.verdict if answer.verdict == b"R" else (answer.code, answer.out)

        for about in ("my.Paste", "my.Paste+x"):
            assert await evaluate(about, b"work\0vault") == (0, b"result=allow\n")
            assert await evaluate(about, b"vault\0work") == (0, b"result=deny\n")
        assert await evaluate("my.Paste", b"work\0nobody") == (0, b"result=deny\n")
        assert await evaluate("my.Secret", b"work\0vault") == b"R"
        assert await evaluate("my.Paste+y", b"work\0vault") == b"R"
        assert await evaluate("my.Paste", b"work\0vault", "work") == b"R"
        record = await daemon.rig.audited(service="policy.EvalSimple", code=0)
        assert (record["source"], record["argument"]) == ("asker", "+my.Paste")


@pytest.mark.parametrize(
    "payload",
    [b"", b"work", b"work\0", b"\0vault", b"work\0vault\n", b"work\0vault\0", b"w" * 5000],
)
async def test_a_malformed_question_is_refused(payload: bytes):
    """With a word on stderr and a code, and nothing on stdout."""
    async with daemon_rig(POLICY, "asker") as daemon:
        answer = await daemon.call("asker", "dom0", "policy.EvalSimple+my.Paste", payload)
        assert (answer.code, answer.out) == (1, b"")
        assert answer.err.startswith(b"PolicyAdminProtocolException ")
        assert b"\0" not in answer.err


async def test_a_gui_qube_asks_about_what_it_shows():
    """`guivm-NAME` of both; the tag is set by whoever sets the GUI qube."""
    async with daemon_rig(POLICY, "gui", "work", "vault") as daemon:

        async def evaluate() -> bytes:
            service = "policy.EvalGUI+my.Paste"
            return (await daemon.call("gui", "@adminvm", service, b"work\0vault")).out

        assert await evaluate() == b"result=deny\n"
        for name, verdict in (("work", b"result=deny\n"), ("vault", b"result=allow\n")):
            assert (await daemon.ask("admin.vm.property.Set+guivm", name, b"gui")) == b"0\0"
            assert await evaluate() == verdict
