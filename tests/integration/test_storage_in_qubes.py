"""Layers as real qubes write them: through id-mapped overlays, committed and flattened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from grounds.engine import Ground, engine_ground

from caisson.engines import Tree
from caisson.model.klass import Klass
from caisson.model.volumes import HOST, INITIAL_VOLUMES, PRIVATE, ROOT, VolumeState
from caisson.names import VolumeName
from caisson.storage import (
    Pool,
    begun,
    flattened,
    host_template,
    lay_out,
    new_private,
    plan_flatten,
    plan_start,
    plan_stop,
)

pytestmark = pytest.mark.root

Volumes = dict[VolumeName, VolumeState]


class Machine:
    """Runs scripts in one qube again and again, with volumes as the lifecycle treats them."""

    def __init__(self, ground: Ground, template: Volumes, qube: Volumes) -> None:
        self.ground = ground
        self.pool = Pool(ground.paths.pool)
        self.template = template
        self.qube = qube

    async def run(self, script: str) -> list[str]:
        """Start, run, stop, commit."""
        plan = lay_out(self.pool, plan_start(self.qube, self.template))
        for state in begun(self.qube, plan):
            self.qube[state.name] = state
        assert plan.private is not None
        lines = await self.ground.run(
            script,
            root=Tree("/", plan.root.lower, plan.root.upper, kept=plan.root.kept),
            private=Tree("/rw", plan.private.lower, plan.private.upper, kept=plan.private.kept),
            host_usr=plan.host_usr,
        )
        for name in (ROOT, PRIVATE):
            state = self.qube[name]
            assert state.dirty is not None
            empty = self.pool.is_empty(state.dirty, like=state.layers[0])
            stop = plan_stop(state, empty=empty, now=1)
            if stop.seal is not None:
                self.pool.seal(stop.seal)
            self.qube[name] = stop.state
            self.pool.remove(stop.dropped)
        return lines

    def flatten(self) -> None:
        """Merge the private volume, all of it."""
        state = replace(self.qube[PRIVATE], revisions=())
        merged = plan_flatten(state)
        plan = flattened(state, merged, self.pool.flatten(merged))
        assert plan is not None
        self.qube[PRIVATE] = plan.state
        self.pool.remove(plan.dropped)


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    """An app qube on the template `host`."""
    async with engine_ground() as ground:
        pool = Pool(ground.paths.pool)
        layer = host_template.current(pool, None)
        template = {s.name: s for s in INITIAL_VOLUMES[Klass.TEMPLATE]}
        template[ROOT] = replace(template[ROOT], layers=(layer,), pool=HOST)
        qube = {s.name: s for s in INITIAL_VOLUMES[Klass.APP]}
        qube[PRIVATE] = replace(qube[PRIVATE], layers=(new_private(pool),))
        yield Machine(ground, template, qube)
        pool.close()


async def test_private_is_kept_and_root_is_not(machine: Machine):
    """AppVM: what is written to `/home` is there at the next start, what to `/etc` is gone."""
    await machine.run("""
        os.makedirs('/home/user/sub', exist_ok=True)
        open('/home/user/sub/file', 'w').write('kept')
        open('/usr/local/bin/tool', 'w').write('kept')
        open('/etc/changed', 'w').write('lost')
    """)
    lines = await machine.run("""
        say(open('/home/user/sub/file').read(), open('/usr/local/bin/tool').read())
        say(os.path.exists('/etc/changed'))
    """)
    assert lines == ["kept kept", "False"]
    assert len(machine.qube[PRIVATE].layers) == 2


async def test_a_qube_that_writes_nothing_adds_no_layer(machine: Machine):
    """Starting alone changes no volume."""
    before = dict(machine.qube)
    await machine.run("say('hello')")
    assert machine.qube == before


async def test_owners_on_disk_are_those_inside_the_qube(machine: Machine):
    """Whatever range of ids a start gets, layers hold 0 for root and 1000 for the user."""
    await machine.run("""
        open('/home/user/of-root', 'w').close()
        open('/home/user/of-user', 'w').close()
        os.chown('/home/user/of-user', 1000, 1000)
        os.setgroups([]); os.setgid(1000); os.setuid(1000)
        open('/home/user/by-user', 'w').close()
    """)
    tree = machine.pool.path(machine.qube[PRIVATE].layers[0]) / "d/home/user"
    owners = {path.name: path.stat().st_uid for path in tree.iterdir()}
    assert owners == {"of-root": 0, "of-user": 1000, "by-user": 1000}


async def test_what_a_qube_saw_is_what_it_sees_after_commit_and_flattening(machine: Machine):
    """Renamed, replaced and removed directories, hard links and attributes, in real qubes."""
    await machine.run("""
        os.chdir('/home/user')
        for name in ('a/deep', 'b', 'c'):
            os.makedirs(name)
            open(name + '/file', 'w').write(name)
        os.link('b/file', 'b/twin')
    """)
    walk = """\
        def walk():
            for top, inner, files in os.walk('/rw'):
                inner.sort()
                for name in sorted(inner + files):
                    path = os.path.join(top, name)
                    s = os.lstat(path)
                    text = open(path).read() if os.path.isfile(path) else ''
                    note = os.listxattr(path, follow_symlinks=False)
                    say(path, oct(s.st_mode), s.st_uid, s.st_gid, repr(text), note)
"""
    again = f"{walk}        walk()"
    change = """\
        import shutil
        os.chdir('/home/user')
        os.rename('a', 'moved')
        os.rename('moved/deep', 'deep')
        shutil.rmtree('b'); os.mkdir('b'); open('b/new', 'w').write('new')
        os.unlink('c/file')
        open('deep/file', 'a').write('more')
        os.setxattr('c', 'user.note', b'x')
        os.mkfifo('fifo'); os.symlink('/etc/shadow', 'link')
        walk()
    """
    seen = await machine.run(walk + change)
    assert any("/rw/home/user/deep/file" in line and "a/deepmore" in line for line in seen)
    assert await machine.run(again) == seen
    machine.flatten()
    assert len(machine.qube[PRIVATE].layers) == 1
    assert await machine.run(again) == seen


async def test_a_qube_cannot_write_what_an_overlay_would_believe(machine: Machine):
    """Whiteouts, redirects and opaque marks come from the kernel alone.

    With them a qube could make a layer show what lies elsewhere in the stack.
    """
    lines = await machine.run("""
        import stat
        os.chdir('/home/user')
        os.mkdir('d')
        for name in ('trusted.overlay.opaque', 'trusted.overlay.redirect'):
            say(attempt(os.setxattr, 'd', name, b'y'))
        say(attempt(os.mknod, 'w', stat.S_IFCHR | 0o666, 0))
        say(attempt(os.setxattr, 'd', 'user.overlay.opaque', b'y'))
    """)
    assert lines[:3] == ["EPERM", "EPERM", "EPERM"]
    tree = machine.pool.path(machine.qube[PRIVATE].layers[0]) / "d/home/user"
    assert [path.name for path in tree.iterdir()] == ["d"]


async def test_the_host_template_has_our_services(machine: Machine):
    """Every qube has the standard services, whatever its template."""
    services = machine.ground.qube_files / "etc/qubes-rpc"
    services.mkdir(parents=True)
    (services / "qubes.Test").write_text("service")
    lines = await machine.run("say(open('/etc/qubes-rpc/qubes.Test').read())")
    assert lines == ["service"]


async def test_the_host_template_shows_no_secret_of_the_machine(machine: Machine):
    """From inside: neither people's files, nor keys, nor what only the machine's root may read."""
    lines = await machine.run("""
        for path in ('/etc/shadow', '/etc/gshadow', '/etc/sudoers', '/etc/machine-id',
                     '/etc/ssh', '/etc/ssl/private', '/root/.ssh', '/usr/src', '/var/lib/dpkg'):
            say(attempt(os.listdir if os.path.isdir(path) else open, path))
        say(os.listdir('/root'), sorted(os.listdir('/home')), os.listdir('/srv'))
    """)
    assert set(lines[:7]) == {"ENOENT"}
    assert lines[9] == "[] ['user'] []"
