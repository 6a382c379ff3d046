"""The shipped policy: it loads, and its defaults are the safe ones."""

from pathlib import Path

import pytest

from caisson.policy import Decision, PolicySet, Request, SystemInfo, decide, parse_policy

SHIPPED = Path(__file__).parents[3] / "policy.d"
SYSTEM = SystemInfo.from_dict(
    {
        "dom0": {"type": "AdminVM"},
        "work": {"type": "AppVM", "default_dispvm": "dvm"},
        "vault": {"type": "AppVM", "default_dispvm": "dvm"},
        "anon": {"type": "AppVM", "tags": ["anon-vm"]},
        "template": {"type": "TemplateVM"},
        "sys-net": {"type": "AppVM", "power_state": "Running"},
        "dvm": {"type": "AppVM", "template_for_dispvms": True},
    }
)


@pytest.fixture(scope="module")
def policy() -> PolicySet:
    """The policy as it is installed."""
    return parse_policy({file.name: file.read_bytes() for file in SHIPPED.iterdir()})


def _decide(policy: PolicySet, service: str, source: str, target: str) -> Decision:
    return decide(Request(service, "+", source, target), policy, SYSTEM)


@pytest.mark.parametrize(
    ("service", "source", "target", "expected"),
    [
        ("qubes.Filecopy", "work", "vault", "ask"),
        ("qubes.Filecopy", "work", "dom0", "deny"),
        ("qubes.OpenInVM", "work", "@dispvm", "allow"),
        ("qubes.OpenInVM", "work", "vault", "ask"),
        ("qubes.OpenURL", "work", "@dispvm", "allow"),
        ("qubes.VMShell", "work", "@dispvm", "allow"),
        ("qubes.VMShell", "work", "vault", "deny"),
        ("qubes.VMExec", "work", "vault", "deny"),
        ("qubes.VMRootShell", "work", "@dispvm", "deny"),
        ("qubes.Gpg", "work", "vault", "ask"),
        ("qubes.GetDate", "work", "", "allow"),
        ("qubes.GetDate", "anon", "", "deny"),
        ("qubes.UpdatesProxy", "template", "", "allow"),
        ("qubes.UpdatesProxy", "work", "sys-net", "deny"),
        ("qubes.ConnectTCP", "work", "vault", "deny"),
        ("qubes.Backup", "work", "vault", "deny"),
        ("policy.RegisterArgument", "work", "dom0", "deny"),
        ("admin.vm.List", "work", "dom0", "deny"),
        ("my.GetBTCprice", "work", "vault", "deny"),
    ],
)
def test_default_of_a_standard_service(
    policy: PolicySet, service: str, source: str, target: str, expected: str
):
    """Specification sheet `qrexec`, section 6, column dflt."""
    assert _decide(policy, service, source, target).as_dict()["decision"] == expected


def test_nothing_but_information_reaches_dom0(policy: PolicySet):
    """Only services that hand over data that dom0 distrusts are allowed to it."""
    allowed = {
        rule.service
        for rule in policy.rules
        if str(rule.action) != "deny" and "dom0" in (rule.redirect or rule.target).key
    }
    assert allowed == {
        "qubes.GetDate",
        "qubes.FeaturesRequest",
        "qubes.NotifyUpdates",
        "qubes.NotifyTools",
        "qubes.SyncAppMenus",
    }


def test_no_rule_lets_a_qube_run_commands_in_another(policy: PolicySet):
    """Shells are for disposables only."""
    for service in ("qubes.VMShell", "qubes.VMExec", "qubes.VMExecGUI", "qubes.VMRootExec"):
        for source in ("work", "anon", "template", "dvm"):
            for target in ("vault", "dom0", "@adminvm", "sys-net", "", "nosuch"):
                assert _decide(policy, service, source, target).as_dict()["decision"] == "deny"


def test_user_file_holds_no_rule():
    """A fresh installation decides by the defaults alone."""
    assert parse_policy({"30-user.policy": (SHIPPED / "30-user.policy").read_bytes()}).rules == ()


def test_examples_in_the_user_file_are_valid():
    """What a reader uncomments works."""
    text = (SHIPPED / "30-user.policy").read_text()
    examples = [line[1:] for line in text.splitlines() if line.startswith("#   ")]
    assert len(parse_policy({"a.policy": "\n".join(examples)}).rules) == 3
