"""`caisson policy reach` of a running system: what it asks for is what the daemon tells."""

from __future__ import annotations

import json
from pathlib import Path

from admin_lab import running_daemon

from caisson.paths import Paths


async def test_flows_of_the_running_system_are_known_with_its_wiring(tmp_path: Path) -> None:
    """Networks, templates, bases and tags come from the daemon; rules from the policy in force."""
    policy = Paths(tmp_path).root / "etc/qubes/policy.d"
    policy.mkdir(parents=True)
    (Paths(tmp_path).root / "run/qubes/policy.d").mkdir(parents=True)
    (policy / "30-user.policy").write_text("my.Note * @tag:mine base allow\n")
    async with running_daemon(tmp_path) as daemon:
        await daemon.populate()
        await daemon.ok("admin.vm.tag.Set+mine", "work")
        await daemon.ok("admin.vm.property.Set+provides_network", "base", b"True")
        code, out, err = await daemon.command("caisson", "policy", "reach", "work", "--json")
        assert (code, err) == (0, "")
        told = json.loads(out)
        assert told["complete"] is True
        ways = {
            chain["end"]: [(hop["target"], hop["way"]) for hop in chain["hops"]]
            for chain in told["chains"]
        }
        assert ways == {
            "base": [("base", "call")],
            "@internet": [("base", "call"), ("@internet", "network")],
        }
        await daemon.ok("admin.vm.tag.Remove+mine", "work")
        assert await daemon.command("caisson", "policy", "reach", "work", "--to", "base") == (
            0,
            "nothing gets from work to base\n",
            "",
        )
