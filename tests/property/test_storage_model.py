"""A volume through starts, stops, reverts, clones and flattenings, against a dictionary."""

from __future__ import annotations

import copy
import os
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from caisson.model.klass import Klass
from caisson.model.volumes import INITIAL_VOLUMES, PRIVATE, ROOT, VolumeState
from caisson.storage import (
    OVERLAY_OPTIONS,
    Pool,
    begun,
    flattened,
    garbage,
    lay_out,
    layers_of,
    plan_clone,
    plan_flatten,
    plan_revert,
    plan_start,
    plan_stop,
)

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
CONTENTS = st.binary(max_size=6)


@dataclass
class Node:
    """An inode: what all of its names share."""

    kind: str
    content: bytes = b""
    mode: int = 0o644
    note: bytes | None = None
    lower: bool = False


@dataclass
class Model:
    """What the volume holds: names to inodes. Directories are entries too."""

    names: dict[str, Node] = field(default_factory=dict)

    def is_directory(self, path: str) -> bool:
        """Tell whether `path` is a directory; the volume itself is one."""
        return path in {"", "."} or (path in self.names and self.names[path].kind == "d")

    def parent_is_directory(self, path: str) -> bool:
        """Tell whether something may be made at `path`."""
        return self.is_directory(os.path.dirname(path))  # noqa: PTH120

    def below(self, path: str) -> list[str]:
        """Everything in a directory."""
        return [name for name in self.names if name.startswith(f"{path}/")]

    def touched(self, path: str) -> Node:
        """The inode of a name that is about to change: copying up breaks lower hard links."""
        node = self.names[path]
        if node.lower and node.kind != "d":
            if sum(other is node for other in self.names.values()) > 1:
                node = replace(node)
                self.names[path] = node
            node.lower = False
        return node

    def committed(self) -> None:
        """All that was written is a lower layer from now on."""
        for node in self.names.values():
            node.lower = True

    def shown(self) -> dict[str, object]:
        """What a walk through the volume must find."""
        found: dict[str, object] = {}
        for name, node in self.names.items():
            twins = frozenset(n for n, other in self.names.items() if other is node)
            found[name] = (node.kind, node.content, node.mode, node.note, twins)
        return found


def walked(root: Path) -> dict[str, object]:
    """What a walk through the mounted volume finds."""
    entries = {str(path.relative_to(root)): path for path in root.rglob("*")}
    inodes = {name: path.lstat().st_ino for name, path in entries.items()}
    found: dict[str, object] = {}
    for name, path in entries.items():
        status = path.lstat()
        mode, note, content = stat.S_IMODE(status.st_mode), None, b""
        if stat.S_ISLNK(status.st_mode):
            kind, mode, content = "l", 0o777, os.fsencode(path.readlink())
        else:
            kind = "d" if path.is_dir() else "f"
            content = b"" if kind == "d" else path.read_bytes()
            if "user.note" in os.listxattr(path):
                note = os.getxattr(path, "user.note")
        twins = frozenset(n for n in entries if inodes[n] == inodes[name])
        found[name] = (kind, content, mode, note, twins)
    return found


class Life(RuleBasedStateMachine):
    """One persistent volume of an app qube."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="caisson-model-"))
        self.mounted = self.home / "mounted"
        self.mounted.mkdir()
        self.pool = Pool(self.home / "pool")
        first, root = self.pool.new_layer(), self.pool.new_layer()
        for layer in (first, root):
            self.pool.seal(layer)
        states = {s.name: s for s in INITIAL_VOLUMES[Klass.APP]}
        template = {s.name: s for s in INITIAL_VOLUMES[Klass.TEMPLATE]}
        self.template = {**template, ROOT: replace(template[ROOT], layers=(root,))}
        self.states = {
            **states,
            PRIVATE: replace(states[PRIVATE], layers=(first,), revisions_to_keep=2),
        }
        self.model = Model()
        self.former: dict[tuple[str, ...], Model] = {(first,): copy.deepcopy(self.model)}
        self.clones: list[tuple[VolumeState, Model]] = []
        self.running = False
        self.clock = 0

    @property
    def volume(self) -> VolumeState:
        """The state of the volume under test."""
        return self.states[PRIVATE]

    def teardown(self) -> None:
        """Leave nothing mounted and nothing on disk."""
        if self.running:
            subprocess.run(["umount", self.mounted], check=True)
        self.pool.close()
        shutil.rmtree(self.home)

    def everybody(self) -> list[VolumeState]:
        """All volumes that there are."""
        clones = [state for state, _ in self.clones]
        return [*self.states.values(), *self.template.values(), *clones]

    def settle(self, dropped: tuple[str, ...]) -> None:
        """Remove what nobody needs any more."""
        self.pool.remove(garbage(dropped, self.everybody()))

    @precondition(lambda self: not self.running)
    @rule()
    def start(self) -> None:
        """Mount the volume as an engine does."""
        plan = lay_out(self.pool, plan_start(self.states, self.template))
        for state in begun(self.states, plan):
            self.states[state.name] = state
        assert plan.private is not None
        assert plan.private.upper is not None
        lower = ":".join(f"{layer}/d" for layer in plan.private.lower)
        upper = f"upperdir={plan.private.upper}/d,workdir={plan.private.upper}/w"
        options = f"{OVERLAY_OPTIONS},lowerdir={lower},{upper}"
        subprocess.run(
            ["mount", "-t", "overlay", "caisson", "-o", options, self.mounted],
            cwd=self.pool.directory,
            check=True,
        )
        self.running = True

    @precondition(lambda self: self.running)
    @rule()
    def stop(self) -> None:
        """Unmount and commit, as after a clean shutdown or a crash."""
        subprocess.run(["umount", self.mounted], check=True)
        self.running = False
        self.clock += 1
        for name in (ROOT, PRIVATE):
            state = self.states[name]
            assert state.dirty is not None
            empty = self.pool.is_empty(state.dirty, like=state.layers[0])
            plan = plan_stop(state, empty=empty, now=self.clock)
            if plan.seal is not None:
                self.pool.seal(plan.seal)
            self.states[name] = plan.state
            self.settle(plan.dropped)
        self.model.committed()
        self.former[self.volume.layers] = copy.deepcopy(self.model)

    @precondition(lambda self: not self.running and self.volume.revisions)
    @rule(data=st.data())
    def revert(self, data: st.DataObject) -> None:
        """Go back to any kept state."""
        wanted = data.draw(st.sampled_from(self.volume.revisions))
        self.clock += 1
        plan = plan_revert(self.volume, wanted.id, now=self.clock)
        self.states[PRIVATE] = plan.state
        self.settle(plan.dropped)
        self.model = copy.deepcopy(self.former[self.volume.layers])

    @precondition(lambda self: len(self.clones) < 2)
    @rule()
    def clone(self) -> None:
        """Let another volume share what is committed; it stays aside."""
        other = replace(self.volume, layers=("gone",), revisions=(), dirty=None)
        self.clock += 1
        source = replace(self.volume, dirty=None)
        plan = plan_clone(other, source, revisions_to_keep=2, now=self.clock)
        assert plan.state.layers == self.volume.layers
        state = replace(plan.state, revisions=())
        self.clones.append((state, copy.deepcopy(self.former[self.volume.layers])))

    @precondition(lambda self: not self.running and self.clones)
    @rule()
    def change_places(self) -> None:
        """Go on with a clone, and let it stay aside what was in use until now."""
        (state, model), *others = self.clones
        self.clones = [*others, (self.volume, self.model)]
        self.states[PRIVATE] = state
        self.model = copy.deepcopy(model)

    @precondition(lambda self: not self.running and plan_flatten(self.volume))
    @rule()
    def flatten(self) -> None:
        """Merge the lower part of the stack; all kept states stay what they were."""
        before = [self.volume.layers, *(r.layers for r in self.volume.revisions)]
        merged = plan_flatten(self.volume)
        plan = flattened(self.volume, merged, self.pool.flatten(merged))
        assert plan is not None
        self.states[PRIVATE] = plan.state
        self.settle(plan.dropped)
        after = [self.volume.layers, *(r.layers for r in self.volume.revisions)]
        for old, new in zip(before, after, strict=True):
            self.former[new] = self.former[old]

    @precondition(lambda self: self.running)
    @rule(path=PATHS, content=CONTENTS)
    def write(self, path: str, content: bytes) -> None:
        """Make a file or write into it, through any of its names."""
        known = self.model.names.get(path)
        if known is None and self.model.parent_is_directory(path):
            (self.mounted / path).write_bytes(content)
            (self.mounted / path).chmod(0o644)
            self.model.names[path] = Node("f", content)
        elif known is not None and known.kind == "f":
            (self.mounted / path).write_bytes(content)
            self.model.touched(path).content = content

    @precondition(lambda self: self.running)
    @rule(path=PATHS)
    def make_directory(self, path: str) -> None:
        """Also where a directory of that name was removed: it must come up opaque."""
        if path not in self.model.names and self.model.parent_is_directory(path):
            (self.mounted / path).mkdir()
            (self.mounted / path).chmod(0o755)
            self.model.names[path] = Node("d", mode=0o755)

    @precondition(lambda self: self.running)
    @rule(path=PATHS, name=NAMES)
    def make_link(self, path: str, name: str) -> None:
        """A symbolic link, dangling or not."""
        if path not in self.model.names and self.model.parent_is_directory(path):
            (self.mounted / path).symlink_to(f"/nowhere/{name}")
            self.model.names[path] = Node("l", f"/nowhere/{name}".encode(), 0o777)

    @precondition(lambda self: self.running)
    @rule(path=PATHS, other=PATHS)
    def make_hard_link(self, path: str, other: str) -> None:
        """A second name for a file."""
        known = self.model.names.get(other)
        free = path not in self.model.names and self.model.parent_is_directory(path)
        if known is not None and known.kind == "f" and free:
            (self.mounted / path).hardlink_to(self.mounted / other)
            self.model.names[path] = self.model.touched(other)

    @precondition(lambda self: self.running)
    @rule(path=PATHS)
    def remove(self, path: str) -> None:
        """A file, or a directory with all that is in it."""
        if path in self.model.names:
            if self.model.is_directory(path):
                shutil.rmtree(self.mounted / path)
            else:
                (self.mounted / path).unlink()
            for name in [path, *self.model.below(path)]:
                del self.model.names[name]

    @precondition(lambda self: self.running)
    @rule(path=PATHS, new=PATHS)
    def rename(self, path: str, new: str) -> None:
        """Whatever it is, to a free name: directories of lower layers are redirected."""
        free = new not in self.model.names and self.model.parent_is_directory(new)
        inside = new.startswith(f"{path}/")
        if path in self.model.names and free and not inside:
            (self.mounted / path).rename(self.mounted / new)
            moved = [path, *self.model.below(path)]
            self.model.touched(path)
            for name in moved:
                self.model.names[new + name.removeprefix(path)] = self.model.names.pop(name)

    @precondition(lambda self: self.running)
    @rule(path=PATHS, mode=st.sampled_from([0o600, 0o755, 0o4711, 0o1777]))
    def change_mode(self, path: str, mode: int) -> None:
        """A change of metadata alone copies up, too."""
        known = self.model.names.get(path)
        if known is not None and known.kind != "l":
            (self.mounted / path).chmod(mode)
            self.model.touched(path).mode = mode

    @precondition(lambda self: self.running)
    @rule(path=PATHS, value=CONTENTS)
    def note(self, path: str, value: bytes) -> None:
        """An extended attribute of the user's."""
        known = self.model.names.get(path)
        if known is not None and known.kind != "l":
            os.setxattr(self.mounted / path, "user.note", value)
            self.model.touched(path).note = value

    @invariant()
    def the_volume_holds_what_the_model_says(self) -> None:
        """Content, modes, attributes and hard links are those of the dictionary."""
        if self.running:
            assert walked(self.mounted) == self.model.shown()

    @invariant()
    def no_layer_is_lost_or_leaked(self) -> None:
        """The layers on disk are those that the states name."""
        assert self.pool.layers() == layers_of(self.everybody())


TestLife = pytest.mark.root(Life.TestCase)
Life.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
)
