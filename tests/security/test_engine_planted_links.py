"""Attacks by trees that a qube wrote: links and files where the next start mounts.

Every script runs as the first process of a real qube, as its root, with everything that a qube
may do; what it prints is what the attacker got.
"""

from __future__ import annotations

import pytest
from grounds.engine import Ground

from caisson.engines import Bind, Tree
from caisson.errors import EngineError

pytestmark = pytest.mark.root


@pytest.mark.parametrize("point", ["dev", "proc", "sys", "run", "tmp", "rw", "home"])
@pytest.mark.parametrize("kind", ["absolute", "climbing", "file"])
async def test_a_link_for_a_mount_point_ends_the_start(ground: Ground, point: str, kind: str):
    """A template with a link or a file at a mount point: runc CVE-2025-31133 and -52881."""
    victim = ground.paths.root / "victim"
    victim.mkdir()
    layer = ground.base_layer()
    place = ground.tree(layer) / point
    place.rmdir()
    if kind == "absolute":
        place.symlink_to(victim)
    elif kind == "climbing":
        place.symlink_to(f"../../../../../../../../../../../..{victim}")
    else:
        place.write_text("a file")
    with pytest.raises(EngineError, match=f"`/{point}` in the qube is not a directory"):
        await ground.start(root=Tree("/", (layer,), ground.layer(writable=True)))
    assert list(victim.iterdir()) == []
    assert await ground.left() == []


@pytest.mark.parametrize("point", ["home", "home/user", "usrlocal"])
async def test_a_link_in_the_private_volume_is_not_followed(ground: Ground, point: str):
    """A qube that replaces its home with a link gets nothing of the host bound there."""
    victim = ground.paths.root / "victim"
    (victim / "user").mkdir(parents=True)
    layer = ground.layer()
    place = ground.tree(layer) / point
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(victim)
    with pytest.raises(EngineError, match=f"`/rw/{point}` in the qube is not a directory"):
        await ground.start(private=Tree("/rw", (layer,), ground.layer(writable=True)))
    assert victim.stat().st_uid == 0
    assert [path.name for path in victim.iterdir()] == ["user"]
    assert (victim / "user").stat().st_uid == 0
    assert await ground.left() == []


async def test_a_link_above_our_files_ends_the_start(ground: Ground):
    """A directory template whose `/usr/lib` leads elsewhere: nothing is mounted there."""
    layer = ground.base_layer()
    (ground.tree(layer) / "usr/lib").symlink_to("/etc")
    with pytest.raises(EngineError, match="`/usr/lib` in the qube is not a directory"):
        await ground.start(root=Tree("/", (layer,), ground.layer(writable=True)), host_usr=False)
    assert await ground.left() == []
    assert not [path for path in (ground.tree(layer) / "etc").rglob("*") if "qubes" in path.name]


async def test_mount_points_are_made_in_the_qubes_own_layer_only(ground: Ground):
    """A missing mount point appears in the writable layer, owned by the qube: CVE-2024-45310."""
    layer = ground.base_layer()
    (ground.tree(layer) / "srv").rmdir()
    upper = ground.layer(writable=True)
    shared = ground.paths.root / "shared"
    shared.mkdir()
    lines = await ground.run(
        "say(os.stat('/srv').st_uid, os.listdir('/srv'))",
        root=Tree("/", (layer,), upper),
        binds=(Bind(shared, "/srv/deep/shared"),),
    )
    assert lines == ["0 ['deep']"]
    assert (ground.tree(upper) / "srv/deep/shared").stat().st_uid == 0
    assert not (ground.tree(layer) / "srv").exists()
    assert list(shared.iterdir()) == []
