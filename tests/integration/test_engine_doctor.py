"""What the engine finds when it examines a machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from grounds.engine import Ground

from caisson.engines import OciEngine
from caisson.engines.oci import kernel

pytestmark = pytest.mark.root


async def test_the_doctor_examines_this_machine(ground: Ground):
    """Every check is made; what fails has a remedy; a check leaves nothing."""
    findings = await ground.engine.doctor()
    assert len({finding.name for finding in findings}) == len(findings)
    assert all(finding.detail for finding in findings)
    assert all(finding.remedy for finding in findings if not finding.ok)
    assert {f.name: f.ok for f in findings}["user namespaces"]
    assert ground.remains() == []


async def test_the_doctor_names_an_overlay_below_the_state(ground: Ground, tmp_path: Path):
    """A state directory on an overlay is found before the first start fails."""
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    data = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    merged = tmp_path / "merged"
    kernel.mount("overlay", str(merged), "overlay", kernel.NO_FLAGS, data)
    engine = OciEngine(replace(ground.paths, root=merged), spares=0)
    try:
        findings = {finding.name: finding for finding in await engine.doctor()}
    finally:
        await engine.close()
        kernel.detach(str(merged))
    assert not findings["state directory"].ok
    assert "overlay" in findings["state directory"].detail
    assert findings["state directory"].remedy
