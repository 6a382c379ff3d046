"""`caisson policy grant`, `grants` and `revoke` against a daemon: output, errors, exit codes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from admin_lab import Daemon
from admin_world import world_daemon

from caisson.tools.command import UsageError
from caisson.tools.policy.grant import duration
from caisson.tools.policy.grants import left

GRANT = ("caisson", "policy", "grant", "work", "net")
POLICY = """\
my.Denied  * work net    deny
my.Asked   * work net    ask
my.Allowed * work net    allow
"""


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon with a few qubes, and a policy."""
    root = tmp_path / "root"
    root.mkdir()
    async with world_daemon(root) as running:
        for directory in running.paths.policy_dirs:
            directory.mkdir(parents=True, exist_ok=True)
        (running.paths.etc / "policy.d/30-user.policy").write_text(POLICY)
        yield running


async def test_a_grant_tells_what_the_policy_says_and_prints_its_id(daemon: Daemon) -> None:
    """The id on stdout for scripts; on stderr what it overrides, and until when."""
    for service, said in (
        ("my.Denied", "until now the call is denied (30-user.policy:1)"),
        ("my.Asked+a", "until now the call is a question to a person (30-user.policy:2)"),
        ("my.Allowed", "until now the call is allowed already (30-user.policy:3)"),
        ("my.Other+*", "until now a call without an argument is denied (no rule allows it)"),
    ):
        code, out, err = await daemon.command(*GRANT, service, "--for", "10m")
        assert (code, re.fullmatch(r"grant-[0-9a-f]{8}\n", out) is not None) == (0, True)
        first, second = err.splitlines()
        assert first == said
        assert re.fullmatch(r"from now until \d\d:\d\d:\d\d( tomorrow)? it is allowed", second)
    _, out, _ = await daemon.command("caisson", "policy", "grants")
    shown = [re.split(r"  +", line)[1:5] for line in out.splitlines()]
    assert shown == [
        ["SOURCE", "TARGET", "SERVICE", "USER"],
        ["work", "net", "my.Other+*", "-"],
        ["work", "net", "my.Allowed", "-"],
        ["work", "net", "my.Asked+a", "-"],
        ["work", "net", "my.Denied", "-"],
    ]


async def test_a_grant_that_is_refused_tells_nothing_but_why(daemon: Daemon) -> None:
    """What the policy says until now would read as if something had changed."""
    words = ["work", "nett", "my.Denied", "--for", "10m"]
    code, out, err = await daemon.command("caisson", "policy", "grant", *words)
    assert (code, out) == (1, "")
    assert err == "error: no qube `nett`\nhint: did you mean `net`?\n"


async def test_a_grant_under_a_broken_policy_says_that_it_does_not_help(daemon: Daemon) -> None:
    """It is made all the same, for when the policy is mended."""
    (daemon.paths.etc / "policy.d/40-broken.policy").write_text("nonsense\n")
    code, _, err = await daemon.command(*GRANT, "my.A", "--for", "1h")
    assert code == 0
    first, second = err.splitlines()
    assert first.startswith("the policy is broken: every call is denied, granted or not, until")
    assert second.endswith("it is allowed, once the policy is mended")


async def test_grants_are_decided_listed_and_revoked(daemon: Daemon) -> None:
    """What the list shows is what `decide` decides by, until it is revoked."""
    words = ("--for", "2h", "--user", "root", "--quiet")
    code, name, err = await daemon.command(*GRANT, "my.Denied", *words)
    assert (code, err) == (0, "")
    name = name.strip()
    request = '{"service": "my.Denied", "argument": "+", "source": "work", "target": "net"}\n'
    _, out, _ = await daemon.command("caisson", "policy", "decide", answer=request)
    decision = json.loads(out)
    assert (decision["decision"], decision["rule"], decision["user"]) == ("allow", name, "root")
    _, out, _ = await daemon.command("caisson", "policy", "grants", "--json")
    (grant,) = json.loads(out)
    assert (grant["id"], grant["source"], grant["target"]) == (name, "work", "net")
    assert 0 < grant["seconds_left"] <= 7_200
    assert grant["by"] == os.geteuid()
    assert (await daemon.command("caisson", "policy", "revoke", name)) == (0, "", "")
    _, out, _ = await daemon.command("caisson", "policy", "decide", answer=request)
    assert json.loads(out)["rule"] == "30-user.policy:1"
    assert (await daemon.command("caisson", "policy", "grants")) == (
        0,
        "",
        "nothing is granted\n",
    )
    assert (await daemon.command("caisson", "policy", "grants", "-q")) == (0, "", "")
    assert (await daemon.command("caisson", "policy", "grants", "--json")) == (0, "[]\n", "")


async def test_each_of_several_is_revoked_although_another_is_not(daemon: Daemon) -> None:
    """What is not there is an error, and keeps no other grant alive; `--all` revokes the rest."""
    names = []
    for service in ("my.A", "my.B"):
        _, out, _ = await daemon.command(*GRANT, service, "--for", "90s", "--quiet")
        names.append(out.strip())
    revoke = ("caisson", "policy", "revoke")
    code, out, err = await daemon.command(*revoke, "grant-00000000", names[0])
    assert (code, out) == (1, "")
    assert err.startswith("error: there is no grant `grant-00000000`\nhint: ")
    held = json.loads((await daemon.command("caisson", "policy", "grants", "--json"))[1])
    assert [grant["id"] for grant in held] == names[1:]
    assert (await daemon.command(*revoke, "--all"))[0] == 0
    assert (await daemon.command(*revoke))[::2] == (
        2,
        "error: which grants?\nhint: name their ids, or use `--all`\n",
    )
    assert (await daemon.command(*revoke, "--all", names[0]))[::2] == (
        2,
        "error: `--all` takes no ids\nhint: it ends every grant: leave one of both out\n",
    )
    assert (await daemon.command("caisson", "policy", "grants", "--json"))[1] == "[]\n"


async def test_a_grant_whose_qube_is_gone_is_listed_as_void(daemon: Daemon) -> None:
    """By the name that the qube had, until the next grant sweeps it."""
    await daemon.command(*GRANT, "my.A", "--for", "1h", "--quiet")
    await daemon.ok("admin.vm.property.Reset+netvm", "base")
    await daemon.ok("admin.vm.Remove", "net")
    _, out, _ = await daemon.command("caisson", "policy", "grants")
    assert re.split(r"  +", out.splitlines()[1])[1:6] == [
        "work",
        "net",
        "my.A",
        "-",
        "void, removed: net",
    ]


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("work", "net", "admin.vm.List"), 1, "`admin.vm.List` is administration"),
        (("work", "net", "Internal.List"), 1, "`Internal.List` is administration"),
        (("work", "dom0", "qubes.FeaturesRequest"), 1, "what the admin qube serves is"),
        (("work", "@adminvm", "my.A"), 1, "what the admin qube serves is"),
        (("work", "@default", "my.A", "--target", "dom0"), 1, "what the admin qube serves is"),
        (("work", "net", "*"), 1, "a grant for every service is refused"),
        (("dom0", "net", "my.A"), 1, "`dom0` is not a calling qube"),
        (("@anyvm", "net", "my.A"), 1, "qube name `@anyvm` is not valid"),
        (("work", "@tag:mine", "my.A"), 1, "qube name `@tag:mine` is not valid"),
        (("work", "nobody", "my.A"), 1, "no qube `nobody`"),
        (("work", "work", "my.A"), 1, "a qube cannot call itself"),
        (("work", "@default", "my.A"), 1, "a grant says where calls to `@default` go"),
        (("work", "@dispvm:work", "my.A"), 1, "disposables cannot be made from `work`"),
        (("work", "net", "my.A", "--user", "a b"), 1, "user name `a b` is not valid"),
    ],
)
async def test_what_cannot_be_granted_is_refused(
    daemon: Daemon, words: tuple[str, ...], code: int, error: str
) -> None:
    """With the reason; and nothing is granted."""
    found = await daemon.command("caisson", "policy", "grant", *words, "--for", "1h", "--quiet")
    assert found[:2] == (code, "")
    assert found[2].startswith(f"error: {error}"), found[2]
    assert not daemon.paths.grants.exists()


async def test_there_are_no_more_grants_than_a_person_can_oversee(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound counts what holds: a revoked one makes room."""
    monkeypatch.setattr("caisson.admin.methods.grants.MOST_GRANTS", 2)
    payload = b'{"source":"work","target":"net","service":"my.A","seconds":9}'
    first, _ = [await daemon.ok("caisson.policy.Grant", payload=payload) for _ in range(2)]
    assert await daemon.refused("caisson.policy.Grant", payload=payload) == "QubesException"
    await daemon.ok(f"caisson.policy.Revoke+{first}")
    await daemon.ok("caisson.policy.Grant", payload=payload)


async def test_the_daemons_log_tells_who_granted_and_revoked_what(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list forgets what is over; the log does not."""
    payload = b'{"source":"work","target":"@dispvm","service":"my.A","seconds":9}'
    name = await daemon.ok("caisson.policy.Grant", payload=payload)
    await daemon.ok(f"caisson.policy.Revoke+{name}")
    granted, revoked = capsys.readouterr().out.splitlines()
    uuid = daemon.qubes.system.qubes["work"].uuid
    assert f"my.A + uuid:{uuid} @dispvm allow" in granted
    for line, what in ((granted, "granted"), (revoked, "revoked")):
        assert what in line
        assert f"by={os.geteuid()} id={name}" in line


@pytest.mark.parametrize("seconds", ["0", "-1", "86401", "1.5", '"9"', "1e999", "true", "null"])
async def test_the_daemon_itself_bounds_the_duration(daemon: Daemon, seconds: str) -> None:
    """Whatever client asks."""
    payload = f'{{"source":"work","target":"net","service":"my.A","seconds":{seconds}}}'
    assert await daemon.refused("caisson.policy.Grant", payload=payload.encode()) == "ProtocolError"


async def test_malformed_grants_are_told_and_replaced(daemon: Daemon) -> None:
    """Neither a list nor a grant takes them for none in silence; `revoke --all` starts anew."""
    daemon.paths.grants.parent.mkdir()
    daemon.paths.grants.write_text("nonsense")
    for words in (("grants",), ("grant", "work", "net", "my.A", "--for", "1h", "--quiet")):
        code, out, err = await daemon.command("caisson", "policy", *words)
        assert (code, out) == (1, "")
        assert "cannot be read" in err
        assert "revoke --all" in err
    assert (await daemon.command("caisson", "policy", "revoke", "--all"))[0] == 0
    assert (await daemon.command("caisson", "policy", "grants")) == (
        0,
        "",
        "nothing is granted\n",
    )
    assert (await daemon.command("caisson", "policy", "grants", "-q")) == (0, "", "")
    assert (await daemon.command("caisson", "policy", "grants", "--json")) == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7_200), ("24h", 86_400), ("1s", 1)]
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    """The three forms."""
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "10", "m", "10 m", "1h30m", "10M", "-5m", "0s", "25h", "86401s", "9" * 99 + "s"]
)
def test_what_is_no_duration_for_a_grant_is_a_usage_error(text: str) -> None:
    """A bare number most of all: nobody shall guess its unit."""
    with pytest.raises(UsageError):
        duration(text)


def test_the_time_left_is_told_as_people_tell_it() -> None:
    """Two units at most."""
    assert [left(n) for n in (1, 59, 60, 598, 3_600, 86_400)] == [
        "1s",
        "59s",
        "1m00s",
        "9m58s",
        "1h00m",
        "24h00m",
    ]
