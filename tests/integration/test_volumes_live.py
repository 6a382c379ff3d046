"""What a qube keeps and what it loses, as the qube itself sees it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from grounds.processes import until
from grounds.whole import Whole, whole_instance

from caisson.model import Host, System
from caisson.model.volumes import ROOT
from caisson.storage import Pool, plan_replace
from caisson.storage.volumes import DEEPEST
from caisson.store import Store

pytestmark = pytest.mark.root

PROGRAMS = ("bash", "cat", "env", "hostname", "id", "ls", "mkdir", "mv", "rm", "sh", "touch")
RESTARTS = 2 * DEEPEST + 4
WITH_HISTORY = ("back", "cleared", "still")


@pytest.fixture(scope="module")
def volumes(whole: Whole) -> Iterator[Whole]:
    """`app` runs; what the tests make besides is removed at the end, too."""
    whole.app("app", start=True)
    yield whole
    for name in ("named", "app", "twin", "deep", "gone", "source", "clone", *WITH_HISTORY):
        whole.discard(name)


def restart(whole: Whole, name: str) -> None:
    """Shut a qube down and start it again."""
    whole.shut_down(name)
    whole.start(name)


def test_an_app_qube_keeps_its_private_volume_and_nothing_else(volumes: Whole) -> None:
    """Home, /usr/local and /rw stay; what root wrote elsewhere is gone with the run."""
    kept = ("/home/user/kept", "/usr/local/bin/kept", "/rw/kept")
    lost = ("/etc/lost", "/var/lib/lost", "/lost", "/tmp/lost", "/run/lost")
    for path in kept + lost:
        volumes.said("app", f"echo here >{path}", user="root")
    restart(volumes, "app")
    for path in kept:
        assert volumes.said("app", f"cat {path}") == "here"
    for path in lost:
        assert volumes.inside("app", f"test -e {path}").code == 1, path


def test_what_was_removed_and_renamed_stays_so(volumes: Whole) -> None:
    """Also over restarts, when the old state lies in a layer below."""
    volumes.said("app", "cd /home/user; mkdir -p d/e; echo 1 >d/e/f; echo 2 >gone")
    restart(volumes, "app")
    volumes.said("app", "cd /home/user; rm gone; mv d moved; chmod 700 moved")
    restart(volumes, "app")
    assert volumes.said("app", "cd /home/user; cat moved/e/f; stat -c %a moved") == "1\n700"
    assert volumes.inside("app", "test -e /home/user/gone -o -e /home/user/d").code == 1


def test_files_keep_their_owners_whatever_range_of_ids_runs_them(volumes: Whole) -> None:
    """The next run may have another range; the qube sees the same owners."""
    volumes.said("app", "install -o 1000 -g 33 -m 640 /dev/null /rw/owned", user="root")
    volumes.shut_down("app")
    volumes.app("other", start=True)  # takes the lowest range
    volumes.start("app")
    volumes.discard("other")
    assert volumes.said("app", "stat -c %u:%g:%a /rw/owned", user="root") == "1000:33:640"
    assert volumes.said("app", "stat -c %u:%g /rw/home/user") == "1000:1000"


def test_a_killed_qube_keeps_what_it_had_written(volumes: Whole) -> None:
    """`qvm-kill` is like pulling the plug: what was on the disk stays."""
    volumes.said("app", "echo survived >/home/user/plug")
    volumes.call("admin.vm.Kill", "app")
    volumes.start("app")
    assert volumes.said("app", "cat /home/user/plug") == "survived"


def test_qubes_of_one_template_do_not_see_each_other(volumes: Whole) -> None:
    """They share its layers, and not one byte that either writes."""
    volumes.app("twin", start=True)
    volumes.said("app", "echo x >/etc/mine; echo x >/home/user/mine", user="root")
    assert volumes.inside("twin", "test -e /etc/mine -o -e /home/user/mine").code == 1


def test_the_system_of_the_machine_cannot_be_changed_from_a_qube(volumes: Whole) -> None:
    """`host`'s /usr is read-only for a qube's root, and /etc is a copy."""
    for line in ("touch /usr/x", "touch /usr/bin/x", "rm /usr/bin/env", "touch /usr/lib/qubes/x"):
        done = volumes.inside("app", line, user="root")
        assert done.code == 1
        assert "Read-only file system" in done.err
    marker = f"caisson-{os.getpid()}"
    volumes.said("app", f"touch /etc/{marker}", user="root")
    assert not Path("/etc", marker).exists()


def test_a_named_disposable_keeps_nothing(volumes: Whole) -> None:
    """It is itself again after each start: what its base has, and no more."""
    volumes.said("app", "echo survived >/home/user/plug")
    volumes.shut_down("app")
    volumes.call("admin.vm.property.Set+template_for_dispvms", "app", b"True")
    volumes.call("admin.vm.Create.DispVM+app", payload=b"name=named label=red")
    for _ in range(2):
        volumes.start("named")
        assert volumes.said("named", "cat /home/user/plug; hostname") == "survived\nnamed"
        for path in ("/home/user/new", "/rw/new", "/usr/local/new", "/etc/new"):
            assert volumes.inside("named", f"test -e {path}").code == 1, path
            volumes.said("named", f"touch {path}", user="root")
        volumes.shut_down("named")
    volumes.start("app")
    assert volumes.inside("app", "test -e /home/user/new").code == 1


def test_a_removed_qube_takes_its_layers_along(volumes: Whole) -> None:
    """And what it wrote is erased."""
    before = volumes.layers()
    volumes.app("gone", start=True)
    volumes.said("gone", "echo secret >/home/user/secret")
    restart(volumes, "gone")
    volumes.shut_down("gone")
    assert volumes.layers() > before
    volumes.call("admin.vm.Remove", "gone")
    assert volumes.layers() == before
    trash = volumes.paths.pool / ".trash"
    until(lambda: not list(trash.iterdir()), "the trash is emptied")


def test_many_restarts_flatten_the_stack(volumes: Whole) -> None:
    """Each run adds a layer; in the background they become one, and every file is still there."""
    volumes.app("deep")
    before = len(volumes.layers())
    for turn in range(RESTARTS):
        volumes.start("deep")
        volumes.said("deep", f"echo {turn} >/home/user/{turn}; rm -f /home/user/{turn - 2}")
        volumes.shut_down("deep")
    until(lambda: len(volumes.layers()) - before <= DEEPEST, "the stack is flattened")
    volumes.start("deep")
    assert volumes.said("deep", "cd /home/user; cat [0-9]*") == f"{RESTARTS - 2}\n{RESTARTS - 1}"
    volumes.shut_down("deep")


def test_a_clone_has_what_its_source_had_and_goes_its_own_way(volumes: Whole) -> None:
    """Copied while the source runs: what its last shutdown left. No byte is stored twice."""
    volumes.app("source", start=True)
    volumes.said("source", "mkdir ~/d; echo one >~/d/f; chmod 600 ~/d/f; ln ~/d/f ~/twin")
    restart(volumes, "source")
    volumes.said("source", "echo unsaved >~/d/late")
    volumes.app("clone")
    before = volumes.layers()
    token = volumes.call("admin.vm.volume.CloneFrom+private", "source")
    volumes.call("admin.vm.volume.CloneTo+private", "clone", token.encode())
    assert volumes.layers() <= before
    volumes.start("clone")
    assert volumes.said("clone", "cat ~/twin; stat -c %U:%a:%h ~/d/f") == "one\nuser:600:2"
    assert volumes.inside("clone", "test -e ~/d/late").code == 1
    volumes.said("clone", "echo two >~/d/f")
    restart(volumes, "clone")
    assert volumes.said("clone", "cat ~/d/f") == "two"
    assert volumes.said("source", "cat ~/d/f ~/d/late") == "one\nunsaved"


def test_a_reverted_volume_is_what_it_was_and_can_be_what_it_is(volumes: Whole) -> None:
    """Back by one state and forth again, as the qube sees it."""
    volumes.app("back", start=True)
    volumes.said("back", "mkdir ~/d; echo two >~/d/f; echo one >~/twin")
    restart(volumes, "back")
    volumes.said("back", "echo three >~/d/f; rm ~/twin; mv ~/d ~/moved")
    volumes.shut_down("back")
    revision = volumes.call("admin.vm.volume.ListSnapshots+private", "back").split()[-1]
    volumes.call("admin.vm.volume.Revert+private", "back", revision.encode())
    volumes.start("back")
    assert volumes.said("back", "cat ~/d/f ~/twin") == "two\none"
    assert volumes.inside("back", "test -e ~/moved").code == 1
    volumes.shut_down("back")
    present = volumes.call("admin.vm.volume.ListSnapshots+private", "back").split()[-1]
    volumes.call("admin.vm.volume.Revert+private", "back", present.encode())
    volumes.start("back")
    assert volumes.said("back", "cat ~/moved/f") == "three"
    assert volumes.inside("back", "test -e ~/twin -o -e ~/d").code == 1
    volumes.shut_down("back")


def test_a_cleared_volume_is_that_of_a_new_qube(volumes: Whole) -> None:
    """It starts, its user has a home, nothing of before is there; going back brings it back."""
    volumes.app("cleared", start=True)
    volumes.said("cleared", "touch ~/moved")
    volumes.shut_down("cleared")
    volumes.call("admin.vm.volume.Clear+private", "cleared")
    volumes.start("cleared")
    assert volumes.inside("cleared", "test -e ~/moved -o -e /rw/home/user/moved").code == 1
    volumes.said("cleared", "echo fresh >~/fresh; test -O ~ -a -d /usr/local/bin")
    volumes.call("admin.vm.Kill", "cleared")
    cleared = volumes.call("admin.vm.volume.ListSnapshots+private", "cleared").split()[-1]
    volumes.call("admin.vm.volume.Revert+private", "cleared", cleared.encode())
    volumes.start("cleared")
    assert volumes.inside("cleared", "test -e ~/fresh").code == 1
    volumes.shut_down("cleared")


def test_a_volume_that_may_not_be_written_is_read_only_inside(volumes: Whole) -> None:
    """For root in the qube too; files in it are as they were left, and the qube works."""
    volumes.app("still", start=True)
    volumes.said("still", "echo kept >~/kept")
    volumes.shut_down("still")
    volumes.call("admin.vm.volume.Set.rw+private", "still", b"False")
    volumes.start("still")
    assert volumes.said("still", "cat ~/kept") == "kept"
    for path in ("/rw/x", "/home/user/x", "/usr/local/bin/x"):
        done = volumes.inside("still", f"touch {path}", user="root")
        assert "Read-only file system" in done.err
    assert volumes.inside("still", "mount -o remount,rw /rw", user="root").code != 0
    volumes.said("still", "touch /etc/own", user="root")
    volumes.shut_down("still")
    volumes.call("admin.vm.volume.Set.rw+private", "still", b"True")
    volumes.start("still")
    volumes.said("still", "echo again >>~/kept; test ! -e /etc/own")
    volumes.shut_down("still")
    volumes.call("admin.vm.volume.Set.rw+root", "still", b"False")
    volumes.start("still")
    for path in ("/etc/x", "/var/lib/x", "/x"):
        done = volumes.inside("still", f"touch {path}", user="root")
        assert "Read-only file system" in done.err
    volumes.said("still", "echo and again >>~/kept")
    volumes.shut_down("still")


def small_system(tree: Path, like: Path) -> None:
    """A root file system with a shell and little else, with the /etc of another."""
    subprocess.run(["cp", "--archive", "--no-target-directory", like, tree], check=True)
    shutil.rmtree(tree / "usr", ignore_errors=True)
    (tree / "usr/bin").mkdir(parents=True)
    wanted = {Path("/usr/bin", program) for program in PROGRAMS}
    listed = subprocess.check_output(["ldd", *wanted], text=True)
    libraries = {Path(word) for word in listed.split() if word.startswith("/") and ":" not in word}
    for path in wanted | libraries:
        source = path.resolve()
        place = tree / "usr" / path.relative_to("/usr" if path.is_relative_to("/usr") else "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / "usr" / name).mkdir(exist_ok=True)
        if not (tree / name).is_symlink():
            (tree / name).symlink_to(f"usr/{name}")
    for name in ("usr/local", "usr/lib/qubes"):
        (tree / name).mkdir(exist_ok=True)


@pytest.fixture(scope="module")
def own_template() -> Iterator[Whole]:
    """An instance whose template `small` has a root of its own, laid in behind the daemon's back.

    `app` is based on it.

    Such a root is what `caisson template build` makes, in minutes and from the network.
    """
    with whole_instance() as whole:
        whole.call("admin.vm.Create.TemplateVM", payload=b"name=small label=black")
        whole.app("first", start=True)  # brings the `host` template's layer into being
        whole.call("admin.vm.Kill", "first")
        whole.qubesd.stop()
        store, system = Store.open(whole.paths.database), System(Host())
        system.load(store.load())
        pool = Pool(whole.paths.pool)
        host = system.qube("host").volumes[ROOT].layers[0]
        with pool.building() as new:
            small_system(new.tree, pool.path(host) / "d")
            (new.tree / "usr/bin/mine").write_text("of small\n")
        small = system.qube("small")
        plan = plan_replace(small.volumes[ROOT], [new.id], now=int(time.time()))
        store.write(system.plan_volume(small, plan.state).ops)
        store.close()
        pool.close()
        whole.qubesd.start()
        whole.call("admin.vm.Create.AppVM+small", payload=b"name=app label=red")
        for name in ("app", "small"):
            whole.call("admin.vm.property.Set+netvm", name, b"")
        yield whole
        whole.down()
        assert whole.left() == []


def test_what_a_template_changes_its_qubes_see_after_its_shutdown(own_template: Whole) -> None:
    """Not while the template runs, not in a qube that runs already; from the next start on."""
    whole = own_template
    whole.start("small")
    whole.said("small", "echo new >/usr/bin/tool; rm /usr/bin/hostname", user="root")
    whole.start("app")
    assert whole.inside("app", "test -e /usr/bin/tool").code == 1
    whole.shut_down("small")
    assert whole.inside("app", "test -e /usr/bin/tool").code == 1
    restart(whole, "app")
    assert whole.said("app", "cat /usr/bin/tool") == "new"
    assert whole.inside("app", "test -e /usr/bin/hostname").code == 1


def test_what_an_app_qube_changes_in_its_root_never_reaches_the_template(
    own_template: Whole,
) -> None:
    """Its root may write anywhere in its own view, which ends with the run."""
    whole = own_template
    whole.start("app")
    whole.said("app", "echo evil >/usr/bin/mine; rm /usr/bin/cat", user="root")
    restart(whole, "app")
    assert whole.said("app", "cat /usr/bin/mine") == "of small"
    whole.start("small")
    assert whole.said("small", "cat /usr/bin/mine") == "of small"
    whole.shut_down("small")


def test_a_template_keeps_its_changes_over_a_crash_of_the_daemon(own_template: Whole) -> None:
    """The daemon is killed while the template runs, and again after its shutdown."""
    whole = own_template
    whole.start("small")
    whole.said("small", "echo crashed >/etc/kept", user="root")
    whole.qubesd.crash()
    whole.qubesd.start()
    assert whole.said("small", "cat /etc/kept") == "crashed"
    whole.shut_down("small")
    whole.qubesd.crash()
    whole.qubesd.start()
    whole.start("app")
    restart(whole, "app")
    assert whole.said("app", "cat /etc/kept") == "crashed"
