"""The story that Caisson is known by, from end to end: real qubes, real network, real policy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from grounds.processes import PATIENCE, machine
from grounds.whole import Whole

from caisson.paths import SHIPPED

pytestmark = pytest.mark.root

PRICE = "64021.50"
URL = "http://10.139.2.1:8000/"
POLICY = "my.GetBTCprice * wallet @anyvm ask\nmy.GetBTCprice * @anyvm @anyvm deny\n"
CURL = f"curl --silent --show-error --max-time 10 {URL}"


@pytest.fixture(scope="module")
def story(whole: Whole) -> Iterator[Whole]:
    """The qubes of the story, made with the commands that a person types."""
    for argv in (
        "qvm-create sys-net -l red --property provides_network=True --property netvm=",
        f"qvm-features sys-net net.uplink netns:{whole.netns()}",
        "qvm-create sys-firewall -l green --property provides_network=True",
        "qvm-prefs sys-firewall netvm sys-net",
        "qvm-create untrusted -l red --property netvm=sys-firewall",
        "qvm-create wallet -l blue --property netvm=",
        "qvm-start untrusted wallet",
    ):
        done = whole.command(*argv.split())
        assert done.code == 0, done.err
    server = machine("ip", "netns", "exec", whole.outside, sys.executable)
    words = ["script/price_server.py", "0.0.0.0", "8000", PRICE]
    outside = whole.spawn([*server, *words], cwd=SHIPPED)
    whole.service("untrusted", "my.GetBTCprice", f"exec {CURL} --retry 50 --retry-connrefused\n")
    whole.policy(POLICY)
    yield whole
    outside.kill()
    outside.wait()
    assert whole.command("qvm-kill", "wallet", "untrusted", "sys-firewall", "sys-net").code == 0
    assert whole.command("qvm-remove", "-f", "wallet", "untrusted").code == 0
    assert whole.command("qvm-remove", "-f", "sys-firewall").code == 0
    assert whole.command("qvm-remove", "-f", "sys-net").code == 0


def test_starting_a_qube_starts_its_chain_of_network_qubes(story: Whole) -> None:
    """Nobody started sys-net and sys-firewall; they run, since `untrusted` needs them."""
    table = story.command("qvm-ls", "--raw-data", "--fields", "name,state,netvm").out
    assert "sys-net|Running|-\n" in table
    assert "sys-firewall|Running|sys-net\n" in table
    assert "untrusted|Running|sys-firewall\n" in table
    assert "wallet|Running|-\n" in table


def test_a_person_lets_the_offline_wallet_ask_and_the_price_comes_back(story: Whole) -> None:
    """The target is the person's choice; the wallet named none, and the audit names the rule."""
    with story.prompt("untrusted"):
        done = story.command(
            "qvm-run", "--pass-io", "wallet", "qrexec-client-vm @default my.GetBTCprice"
        )
    assert (done.code, done.out, done.err) == (0, f"{PRICE}\n", "")
    record = story.audited(source="wallet", service="my.GetBTCprice", ended="exited")
    assert record["decision"] == "allow"
    assert record["requested"] in {"", "@default"}
    assert record["target"] == "untrusted"
    assert record["rule"] == "30-user.policy:1"
    assert record["answered_by"] == "uid 0"
    assert record["code"] == 0


def test_the_prompt_offers_every_target_and_the_person_may_refuse(story: Whole) -> None:
    """A refusal looks to the caller like any other, and is audited with who refused."""
    with story.prompt(None) as person:
        done = story.inside("wallet", "qrexec-client-vm untrusted my.GetBTCprice")
    assert (done.code, done.out, done.err) == (126, "", "Request refused\n")
    assert person.stdout is not None
    shown = person.stdout.read().decode()
    assert "wallet" in shown
    assert "my.GetBTCprice" in shown
    for target in ("sys-net", "sys-firewall", "untrusted"):
        assert target in shown
    record = story.audited(source="wallet", code=126, answered_by="uid 0")
    assert record["decision"] == "deny"
    assert record["rule"] == "30-user.policy:1"


def test_without_anybody_to_ask_the_answer_is_no(story: Whole) -> None:
    """No prompt agent runs: the call is refused, not left waiting and not allowed."""
    done = story.inside("wallet", "qrexec-client-vm untrusted my.GetBTCprice")
    assert (done.code, done.out, done.err) == (126, "", "Request refused\n")


def test_the_wallet_has_nothing_but_loopback(story: Whole) -> None:
    """No interface, no route on either protocol, no resolver; so curl fails at once."""
    assert story.said("wallet", "ls /sys/class/net") == "lo"
    assert story.said("wallet", "tail -n +2 /proc/net/route") == ""
    assert story.said("wallet", "grep -v ' lo$' /proc/net/ipv6_route || true") == ""
    assert story.said("wallet", "cat /etc/resolv.conf") == ""
    assert story.inside("wallet", CURL).code == 7
    assert story.inside("wallet", "curl --silent http://price.example/").code == 6


def test_the_untrusted_qube_reaches_the_server_by_itself(story: Whole) -> None:
    """The control of the test above: the same line works where there is a network."""
    assert story.said("untrusted", CURL) == PRICE
    assert sorted(story.said("untrusted", "ls /sys/class/net").split()) == ["eth0", "lo"]


def test_untrusted_may_not_call_the_wallet(story: Whole) -> None:
    """Refused with exit code 126 and one line, audited with the rule that said so."""
    done = story.command(
        "qvm-run", "--pass-io", "untrusted", "qrexec-client-vm wallet my.GetBTCprice"
    )
    assert (done.code, done.out, done.err) == (126, "", "Request refused\n")
    record = story.audited(source="untrusted", service="my.GetBTCprice")
    assert record["decision"] == "deny"
    assert record["requested"] == "wallet"
    assert record["rule"] == "30-user.policy:2"
    assert record["code"] == 126


def test_nothing_else_passes_in_either_direction(story: Whole) -> None:
    """No rule for a service is a refusal, whoever asks whom."""
    for source, target in (("wallet", "untrusted"), ("untrusted", "wallet"), ("sys-net", "wallet")):
        done = story.inside(source, f"qrexec-client-vm {target} my.Other")
        assert (done.code, done.err) == (126, "Request refused\n")
        assert story.audited(source=source, service="my.Other")["rule"] is None


def test_script_demo_plays_the_story() -> None:
    """`script/demo --yes` ends well, tells the price, and leaves nothing behind."""
    before = set(subprocess.check_output(machine("ip", "netns", "list"), text=True).splitlines())
    done = subprocess.run(
        machine("script/demo", "--yes"),
        cwd=SHIPPED,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"\n{PRICE}\n" in done.stdout
    assert "Request refused\n(exit code 126)\n" in done.stdout
    assert "The story took " in done.stdout
    root = done.stdout.partition("cat /var/tmp/")[2].partition("/")[0]
    assert root.startswith("caisson-demo.")
    assert not Path("/var/tmp", root).exists()
    after = set(subprocess.check_output(machine("ip", "netns", "list"), text=True).splitlines())
    assert not {line for line in after - before if "caisson-demo" in line}
