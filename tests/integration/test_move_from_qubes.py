"""A system of Qubes OS moves over, and back: commands, daemon, and a kill in the middle."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from admin_lab import running_daemon
from grounds.whole import Whole
from patience import PATIENCE

from caisson.daemons.offline import take_over
from caisson.model import System
from caisson.model.volumes import PRIVATE
from caisson.paths import Paths
from caisson.storage import Pool
from caisson.storage.volumes import layers_of
from caisson.store import Store, only_one
from caisson.store.qubes_xml_plan import plan
from caisson.store.qubes_xml_read import read
from caisson.store.qubes_xml_write import describe, write

TESTS = Path(__file__).parent.parent
GOLDEN = TESTS / "unit/store/data/qubes.xml"
IMPORTER = TESTS / "grounds/importer.py"
CAISSON = Path(sys.executable).parent / "caisson"


def caisson(root: Path, *argv: object, stdin: bytes = b"") -> tuple[int, str, str]:
    """Run `caisson` on an instance."""
    done = subprocess.run(
        [CAISSON, "--root", root, *map(str, argv)],
        input=stdin,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def kept(root: Path) -> System:
    """What an instance holds."""
    system = System()
    with Store.open(Paths(root).database) as store:
        system.load(store.load())
    return system


def made() -> bytes:
    """What the golden file becomes, as a file."""
    return write(describe(plan(read(GOLDEN.read_bytes()), lambda _: False).system))


@pytest.mark.root
class TestWithoutDaemon:
    """Commands on an instance that no daemon serves."""

    def test_system_moves_over_and_back(self, tmp_path: Path):
        """Every line that is left out is told; what is exported, a second instance imports."""
        one, other = tmp_path / "one", tmp_path / "other"
        code, out, err = caisson(one, "import-qubes-xml", GOLDEN)
        assert (code, out) == (0, "imported 13 qubes, 20 items left out\n")
        assert len(err.splitlines()) == 20
        assert all(line.startswith("left out: ") for line in err.splitlines())
        code, out, err = caisson(one, "export-qubes-xml")
        assert (code, err) == (0, "")
        assert out.encode() == made()
        assert caisson(one, "export-qubes-xml", tmp_path / "out.xml")[0] == 0
        assert (tmp_path / "out.xml").read_text() == out
        code, _, err = caisson(other, "import-qubes-xml", "-", stdin=out.encode())
        assert code == 0
        assert "content" in err
        assert write(describe(kept(other))) == out.encode()

    def test_every_private_volume_has_its_first_layer(self, tmp_path: Path):
        """One sealed layer serves all of them; nothing else is in the pool."""
        caisson(tmp_path, "import-qubes-xml", GOLDEN)
        pool = Pool(Paths(tmp_path).pool)
        volumes = [v for q in kept(tmp_path).qubes.values() for v in q.volumes.values()]
        own = [v for v in volumes if v.name == PRIVATE and not v.snap_on_start]
        assert len(own) == 11
        (layer,) = pool.layers()
        assert all(volume.layers == (layer,) for volume in own)
        assert layers_of(v for v in volumes if v not in own) == set()
        assert pool.is_sealed(layer)
        assert (pool.path(layer) / "d/home/user").stat().st_uid == 1000

    def test_dry_run_tells_and_changes_nothing(self, tmp_path: Path):
        """Not even a directory is made."""
        root = tmp_path / "none"
        code, out, err = caisson(root, "import-qubes-xml", "--dry-run", "--json", GOLDEN)
        assert code == 0
        told = json.loads(out)
        assert told["written"] is False
        assert len(told["qubes"]) == 13
        assert len(told["left_out"]) == len(err.splitlines())
        assert told["left_out"][0] == {
            "kind": "pool",
            "what": "pool `vm-pool` with driver `lvm_thin`",
            "line": 17,
        }
        assert not root.exists()

    def test_strict_takes_all_or_nothing(self, tmp_path: Path):
        """Anything left out is an error; a system that fits is taken over."""
        code, out, err = caisson(tmp_path / "a", "import-qubes-xml", "--strict", GOLDEN)
        assert (code, out) == (1, "")
        assert "error: 20 items" in err
        assert not (tmp_path / "a").exists()
        empty = write(describe(System()))
        code, out, err = caisson(tmp_path / "b", "import-qubes-xml", "--strict", "-", stdin=empty)
        assert (code, out, err) == (0, "imported 0 qubes\n", "")

    def test_instance_that_has_qubes_is_left_alone(self, tmp_path: Path):
        """An import is no merge."""
        caisson(tmp_path, "import-qubes-xml", GOLDEN)
        layers = Pool(Paths(tmp_path).pool).layers()
        code, out, err = caisson(tmp_path, "--quiet", "import-qubes-xml", GOLDEN)
        assert (code, out) == (1, "")
        assert err.startswith("error: the instance at")
        assert "hint: " in err
        assert write(describe(kept(tmp_path))) == made()
        assert Pool(Paths(tmp_path).pool).layers() == layers

    def test_malformed_file_changes_nothing(self, tmp_path: Path):
        """One error, with file and line."""
        bad = tmp_path / "bad.xml"
        bad.write_bytes(GOLDEN.read_bytes().replace(b">4711<", b">x<"))
        code, out, err = caisson(tmp_path / "root", "import-qubes-xml", bad)
        assert (code, out) == (1, "")
        where = f"`{bad}`, line 138: property `dispid` of qube `disp4711`"
        assert err.startswith(f"error: {where}: `x` is not a number\nhint: ")
        assert not (tmp_path / "root").exists()

    @pytest.mark.parametrize("act", [("import-qubes-xml", GOLDEN), ("export-qubes-xml",)])
    def test_instance_in_use_is_refused(self, tmp_path: Path, act: tuple[object, ...]):
        """The lock is the daemon's own."""
        take_over(Paths(tmp_path), plan(read(made()), lambda _: False).change)
        with only_one(Paths(tmp_path)):
            code, out, err = caisson(tmp_path, *act)
        assert (code, out) == (1, "")
        assert "another daemon serves" in err
        assert "hint: stop it first" in err

    def test_export_needs_an_instance(self, tmp_path: Path):
        """None is made by looking."""
        code, out, err = caisson(tmp_path / "none", "export-qubes-xml")
        assert (code, out) == (1, "")
        assert "no instance" in err
        assert not (tmp_path / "none").exists()

    def test_killed_import_leaves_nothing_or_the_whole(self, tmp_path: Path):
        """Between any two steps of the database: the old state or the new one, never a half."""

        def run(root: Path, last: int) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, IMPORTER, root, GOLDEN, str(last)],
                stdout=subprocess.PIPE,
                text=True,
                cwd=TESTS.parent,
                timeout=PATIENCE,
                check=False,
            )

        total = int(run(tmp_path / "whole", 0).stdout)
        assert write(describe(kept(tmp_path / "whole"))) == made()
        rng = random.Random(0)
        retried = 0
        kills = [rng.randrange(1, total) for _ in range(4)]
        for number, last in enumerate((*kills, total - rng.randrange(40), total)):
            root = tmp_path / str(number)
            assert run(root, last).returncode == -9
            system = kept(root)
            if len(system.qubes) == 1:
                assert write(describe(system)) == write(describe(System()))
                take_over(Paths(root), plan(read(GOLDEN.read_bytes()), lambda _: False).change)
                system = kept(root)
                retried += 1
            assert write(describe(system)) == made()
            states = [v for q in system.qubes.values() for v in q.volumes.values()]
            assert layers_of(states) <= Pool(Paths(root).pool).layers()
        assert retried


async def test_running_daemon_exports(tmp_path: Path):
    """The daemon is asked; its answer is what another instance can import."""
    async with running_daemon(tmp_path) as daemon:
        await daemon.populate()
        await daemon.ok("admin.vm.feature.Set+x-note", "work", b"<&>'\"]]>")
        code, out, err = await daemon.command("caisson", "export-qubes-xml")
        assert (code, err) == (0, "")
        assert out == await daemon.ok("caisson.system.Export")
        assert await daemon.refused("caisson.system.Export", "work") == "ProtocolError"
        # It is no service that a policy could open to another qube.
        reply = await daemon.ask("caisson.system.Export", source="work")
        assert reply.startswith(b"2\0ProtocolError\0")
        system = plan(read(out.encode()), lambda _: False).system
        assert write(describe(system)) == write(describe(daemon.qubes.system)) == out.encode()
        assert system.qube("work").features == {"x-note": "<&>'\"]]>"}


@pytest.fixture(scope="module")
def moved() -> Iterator[Whole]:
    """An instance with daemons that took over a system while they did not run."""
    whole = Whole()
    try:
        assert whole.command("caisson", "import-qubes-xml", str(GOLDEN)).code == 0
        whole.up()
        yield whole
    finally:
        whole.remove()


@pytest.mark.root
def test_imported_qube_starts_once_its_template_has_content(moved: Whole):
    """Until then the error is that of any template without content."""
    refused = moved.command("qvm-start", "vault")
    assert refused.code == 1
    assert "volume `root` has no content yet" in refused.err
    moved.template()
    moved.call("admin.vm.property.Set+template", "vault", b"host")
    moved.start("vault")
    assert moved.said("vault", "cat /etc/hostname; echo kept >note; ls ~/.bashrc").endswith(
        "/home/user/.bashrc"
    )
    moved.shut_down("vault")
    moved.start("vault")
    assert moved.said("vault", "cat note") == "kept"
    moved.shut_down("vault")
    # The first layer is everybody's: what one qube writes is its own.
    moved.call("admin.vm.property.Set+template", "sys-usb", b"host")
    moved.start("sys-usb")
    assert moved.said("sys-usb", "ls") == ""
    moved.shut_down("sys-usb")


async def test_qubes_with_dots_in_their_names_move_with_their_tags(tmp_path: Path):
    """What the system tags by such a name is a tag: policies match it, `dom0` removes it."""
    create = "admin.vm.Create.AppVM * a.b @adminvm allow\n"
    by_tag = "admin.vm.Remove * a.b @tag:created-by-a.b allow target=dom0\n"
    async with running_daemon(tmp_path, policy=create + by_tag) as daemon:
        await daemon.populate()
        for name, origin in (("a.b", "dom0"), ("made", "a.b"), ("gone", "a.b")):
            payload = f"name={name} label=red".encode()
            reply = await daemon.ask("admin.vm.Create.AppVM", "dom0", payload, source=origin)
            assert reply == b"0\0"
        await daemon.ok("admin.vm.property.Set+guivm", "made", b"a.b")
        assert await daemon.ask("admin.vm.Remove", "gone", source="a.b") == b"0\0"
        code, out, err = await daemon.command("caisson", "export-qubes-xml")
        assert (code, err) == (0, "")
        system = plan(read(out.encode()), lambda _: False).system
        assert {"created-by-a.b", "guivm-a.b"} <= system.qube("made").tags
        assert write(describe(system)) == out.encode()
        assert (await daemon.command("qvm-tags", "made", "del", "created-by-a.b"))[0] == 0
        assert "created-by-a.b" not in await daemon.ok("admin.vm.tag.List", "made")
