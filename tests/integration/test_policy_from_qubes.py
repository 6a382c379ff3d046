"""The policy services from inside real qubes, as an unmodified client calls them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from grounds.processes import Done
from grounds.whole import Whole

pytestmark = pytest.mark.root

INCLUDED = {
    "include/admin-policy-rwx": "writer @adminvm allow\n",
    "include/admin-policy-ro": "reader @adminvm allow\n!include include/admin-policy-rwx\n",
}
REFUSED = (126, b"", "Request refused\n")


@pytest.fixture(scope="module")
def delegated(whole: Whole) -> Iterator[Whole]:
    """`writer` may write the policy, `reader` may read it; both run."""
    folder = whole.paths.etc / "policy.d"
    before = {name: (folder / name).read_text() for name in INCLUDED}
    try:
        whole.app("writer", start=True)
        whole.app("reader", start=True)
        for name, text in INCLUDED.items():
            whole.policy(text, name)
        yield whole
    finally:
        for name, text in before.items():
            whole.policy(text, name)
        (folder / "50-web.policy").unlink(missing_ok=True)
        for name in ("writer", "reader"):
            whole.discard(name)


def call(whole: Whole, qube: str, service: str, payload: bytes = b"") -> Done:
    """Call a service of the admin qube."""
    return whole.inside(qube, f"exec qrexec-client-vm dom0 {service}", stdin=payload)


def said(done: Done) -> tuple[int, bytes, str]:
    """Exit code, standard output, standard error."""
    return done.code, done.raw, done.err


def test_a_qube_that_may_write_policy_gives_and_takes_a_right(delegated: Whole):
    """Lists, reads and replaces with tokens; each change counts for the very next call."""
    folder = delegated.paths.etc / "policy.d"
    names = sorted(path.name.removesuffix(".policy") for path in folder.glob("*.policy"))
    listed = call(delegated, "writer", "policy.List")
    assert said(listed) == (0, "".join(f"{name}\n" for name in names).encode(), "")
    user = (folder / "30-user.policy").read_bytes()
    token = f"sha256:{hashlib.sha256(user).hexdigest()}\n".encode()
    assert said(call(delegated, "writer", "policy.Get+30-user")) == (0, token + user, "")

    rule = b"my.Web * writer reader allow\n"
    delegated.service("reader", "my.Web", "#!/bin/sh\necho served\n")
    ask = "exec qrexec-client-vm reader my.Web </dev/null"
    assert said(delegated.inside("writer", ask)) == REFUSED
    made = call(delegated, "writer", "policy.Replace+50-web", b"new\n" + rule)
    assert said(made) == (0, b"", "")
    assert said(delegated.inside("writer", ask)) == (0, b"served\n", "")
    assert said(call(delegated, "writer", "policy.GetFiles+my.Web")) == (0, b"50-web\n", "")
    gone = f"sha256:{hashlib.sha256(rule).hexdigest()}".encode()
    assert said(call(delegated, "writer", "policy.Remove+50-web", gone)) == (0, b"", "")
    assert said(delegated.inside("writer", ask)) == REFUSED
    record = delegated.audited(service="policy.Replace", source="writer")
    wanted = {"argument": "+50-web", "target": "dom0", "rule": "admin-policy-rwx:1", "code": 0}
    assert {key: record[key] for key in wanted} == wanted


def test_refusals_come_with_exit_code_and_class(delegated: Whole):
    """1 and the class on standard error, which the policy's own refusal does not look like."""
    for service, payload, name in (
        ("policy.Replace+30-user", b"new\n", "Token"),
        ("policy.Replace+50-web", b"any\nnonsense\n", "Syntax"),
        ("policy.include.Remove+admin-local-ro", b"any", "Syntax"),
        ("policy.Get+50-web", b"", "FileNotFound"),
        ("policy.Get+../../shadow", b"", ""),
    ):
        done = call(delegated, "writer", service, payload)
        if not name:
            assert done.code != 0
            continue
        assert (done.code, done.raw) == (1, b"")
        assert done.err.startswith(f"PolicyAdmin{name}Exception ")


def test_a_qube_that_may_read_does_not_write(delegated: Whole):
    """Nor does one that may do neither, and a right over qubes is none over the policy."""
    before = (delegated.paths.etc / "policy.d/30-user.policy").read_bytes()
    assert call(delegated, "reader", "policy.Get+30-user").code == 0
    for service in ("policy.Replace", "policy.Remove", "policy.include.Replace"):
        assert said(call(delegated, "reader", f"{service}+30-user", b"any\n")) == REFUSED
    refused = call(delegated, "reader", "policy.RegisterArgument+my.Web", b"key")
    assert said(refused) == REFUSED
    assert (delegated.paths.etc / "policy.d/30-user.policy").read_bytes() == before


def test_the_commands_work_on_the_same_files_in_the_admin_qube(delegated: Whole):
    """What a person writes there, the qube reads."""
    done = delegated.command("qubes-policy", "-r", "50-web", stdin=b"# Hi.\n")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert call(delegated, "reader", "policy.Get+50-web").raw.endswith(b"\n# Hi.\n")
    assert delegated.command("qubes-policy", "-d", "50-web").code == 0
    assert "50-web" not in delegated.command("qubes-policy", "-l").out
