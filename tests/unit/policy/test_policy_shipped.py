"""The shipped policy: it loads, and its defaults are the safe ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from caisson.admin.methods import METHODS
from caisson.admin.registry import Scope
from caisson.policy import Decision, PolicySet, Request, SystemInfo, decide, parse_policy
from caisson.store.policy_files import read_policy_directory

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
    return parse_policy(read_policy_directory(SHIPPED))


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
        ("qubes.PdfConvert", "work", "@dispvm", "allow"),
        ("qubes.PdfConvert", "work", "vault", "deny"),
        ("qubes.GetImageRGBA", "work", "vault", "ask"),
        ("qubes.WaitForSession", "work", "vault", "deny"),
        ("policy.EvalSimple", "work", "dom0", "deny"),
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


# Specification sheet `qrexec`, section 6, and the services that it names at its end.
STANDARD = """
Filecopy OpenInVM OpenURL VMShell VMRootShell VMExec VMExecGUI VMRootExec StartApp GetAppmenus
SyncAppMenus GetDate SetDateTime GetRandomizedTime GetImageRGBA PdfConvert ConnectTCP UpdatesProxy
NotifyUpdates FeaturesRequest NotifyTools PostInstall SuspendPre SuspendPost SuspendPreAll
SuspendPostAll Backup Restore RegisterBackupLocation RestoreById SelectFile SelectDirectory
ShowInTerminal InstallUpdatesGUI ResizeDisk DetachPciDevice WaitForSession WaitForRunningSystem
WaitForNetworkUplink SyncNtpClock TemplateSearch TemplateDownload ReceiveUpdates Log Gpg
GpgImportKey ClipboardPaste InputMouse InputKeyboard InputTablet SetMonitorLayout VMAuth
"""


def test_every_standard_service_has_a_default_of_its_own(policy: PolicySet):
    """None is forgotten; what is denied is denied on purpose, and the file says so."""
    assert {f"qubes.{name}" for name in STANDARD.split()} <= {rule.service for rule in policy.rules}


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


def _administered(*files: str) -> PolicySet:
    """The shipped policy with an administrator in some of the include files."""
    text = dict(read_policy_directory(SHIPPED))
    for file in files:
        text[f"include/{file}"] = (
            b"work @adminvm allow\nwork @tag:created-by-work allow target=dom0\n"
            + bytes(text[f"include/{file}"])
        )
    return parse_policy(text)


@pytest.mark.parametrize(
    ("files", "allowed"),
    [
        ((), set()),
        (("admin-local-ro",), {("local", "ro")}),
        (("admin-local-rwx",), {("local", "ro"), ("local", "rwx")}),
        (("admin-global-ro",), {("global", "ro")}),
        (("admin-global-rwx",), {("global", "ro"), ("global", "rwx")}),
        (("admin-policy-ro",), {("policy", "ro")}),
        (("admin-policy-rwx",), {("policy", "ro"), ("policy", "rwx")}),
    ],
)
def test_each_method_of_the_admin_api_is_decided_by_its_include_file(
    files: tuple[str, ...], allowed: set[tuple[str, str]]
):
    """Generated from the registry: no method is left out, none is decided by another file."""
    rules = _administered(*files)
    for method in METHODS.methods.values():
        if method.scope not in {Scope.GLOBAL, Scope.LOCAL, Scope.POLICY}:
            continue
        if method.name in {"policy.RegisterArgument", "policy.EvalSimple", "policy.EvalGUI"}:
            assert type(_decide(rules, method.name, "work", "vault")).__name__ == "Deny"
            assert type(_decide(rules, method.name, "work", "dom0")).__name__ == "Deny"
            continue
        access = "ro" if method.access.value == "ro" else "rwx"
        expected = "Allow" if (method.scope.value, access) in allowed else "Deny"
        assert type(_decide(rules, method.name, "work", "dom0")).__name__ == expected, method.name


def test_what_is_written_from_the_registry_is_up_to_date():
    """Policy files and references follow from the code: `script/reference` writes them."""
    reference = Path(__file__).parents[3] / "script/reference.py"
    done = subprocess.run(
        [sys.executable, reference, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
