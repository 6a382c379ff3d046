"""What the index knows of one snapshot, taken over from the snapshot before."""

from __future__ import annotations

from typing import Any

from caisson.policy.system import SystemInfo
from caisson.policy.view import View


def _qube(*tags: str) -> dict[str, dict[str, Any]]:
    return {"work": {"type": "AppVM", "tags": list(tags), "template_for_dispvms": True}}


def test_tags_that_no_qube_has_any_more_are_forgotten():
    """Each new tag made every decision slower, for good: what is known is copied each time."""
    domains = SystemInfo.from_dict({"dom0": {"type": "AdminVM"}} | _qube("t"))
    view = View(domains)
    known = dict(view._by_token)
    for number in range(300):
        domains = domains.with_changes(_qube(f"t{number}"))
        view = View(domains, view)
        assert f"@tag:t{number}" in view._by_token
        assert len(view._by_token) == len(known)
    assert View(domains.with_changes(_qube("t")), view)._by_token == known
