"""The runtime's configuration keeps its promises whatever a qube is called or carries."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caisson.engines import BARRIERS, ID_RANGE, Bind, RunSpec, Tree, missing
from caisson.engines.oci import cgroups
from caisson.engines.oci.idmap import SLOTS, base_of, slot_of
from caisson.engines.oci.spec import CAPABILITIES, CAPABILITY_MASK, config
from caisson.errors import CaissonError, EngineError
from caisson.names import QubeName

# Nobody binds over what every qube has mounted there already.
TARGETS = st.lists(
    st.text(string.ascii_lowercase, min_size=1, max_size=8), min_size=1, max_size=4
).filter(lambda parts: parts[0] not in {"rw", "home", "usr", "run"})


def _parses(text: str) -> bool:
    try:
        QubeName.parse(text)
    except CaissonError:
        return False
    return True


NAMES = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=31).filter(
    _parses
)


@st.composite
def specs(draw: st.DrawFn) -> RunSpec:
    """Any qube."""
    return RunSpec(
        id="x",
        name=QubeName.parse(draw(NAMES)),
        root=Tree("/", ("aaaaaaaa",), draw(st.sampled_from([None, "bbbbbbbb"]))),
        private=draw(st.sampled_from([None, Tree("/rw", (), "cccccccc"), Tree("/rw", ("d",))])),
        host_usr=draw(st.booleans()),
        qube_files=Path("/q"),
        socket_dir=Path("/s"),
        memory_max=1,
        cpus=1.0,
        pids_max=1,
        forwarding=draw(st.booleans()),
        facts=draw(st.sampled_from([None, Path("/f")])),
        binds=tuple(
            Bind(Path("/b"), "/" + "/".join(parts), read_only=draw(st.booleans()))
            for parts in draw(st.lists(TARGETS, max_size=3))
        ),
    )


def configured(spec: RunSpec, slot: int = 0) -> dict[str, Any]:
    """The configuration as the runtime would read it."""
    targets = {"/run/qubes", "/usr/lib/qubes", *(bind.target for bind in spec.binds)}
    if spec.facts:
        targets.add("/run/qubesdb")
    if spec.private:
        targets |= {"/rw", "/home", "/usr/local"}
    if spec.host_usr:
        targets.add("/usr")
    made = config(
        spec,
        uid_base=base_of(slot),
        sources={target: Path("/w") / target.strip("/") for target in targets},
        devices=Path("/d"),
        cgroup="/qubes/x",
        user_namespace=Path("/u"),
    )
    back = msgspec.json.decode(msgspec.json.encode(made))
    assert isinstance(back, dict)
    return back


@given(specs())
def test_every_bind_is_nosuid_and_nodev_and_read_only_unless_it_is_the_qubes_own(spec: RunSpec):
    """The agent, the sockets and the machine's `/usr` are never writable."""
    writable = {bind.target for bind in spec.binds if not bind.read_only}
    if spec.private and spec.private.upper:
        writable |= {"/rw", "/home", "/usr/local"}
    for mount in configured(spec)["mounts"]:
        if mount["type"] != "none":
            continue
        assert {"bind", "nosuid", "nodev"} <= set(mount["options"])
        assert ("rw" in mount["options"]) is (mount["destination"] in writable)
        assert ("ro" in mount["options"]) is (mount["destination"] not in writable)
        if mount["destination"].startswith("/run/"):
            assert "noexec" in mount["options"]


@given(specs())
def test_a_directory_is_mounted_before_what_lies_below_it(spec: RunSpec):
    """Else the outer one would hide the inner one."""
    seen: list[str] = []
    for mount in configured(spec)["mounts"]:
        target = mount["destination"]
        assert not any(other.startswith(target + "/") for other in seen), (target, seen)
        seen.append(target)


@given(specs(), st.integers(0, SLOTS - 1))
def test_namespaces_capabilities_and_ids_are_what_was_agreed(spec: RunSpec, slot: int):
    """Seven namespaces, the agreed capabilities in three sets, one whole range of ids."""
    made = configured(spec, slot)
    process, linux = made["process"], made["linux"]
    assert {space["type"] for space in linux["namespaces"]} == {
        "user", "mount", "pid", "network", "ipc", "uts", "cgroup",
    }  # fmt: skip
    joined = [(space["type"], space["path"]) for space in linux["namespaces"] if "path" in space]
    assert joined == [("user", "/u")]
    assert process["noNewPrivileges"] is True
    assert set(process["capabilities"]) == {"bounding", "effective", "permitted"}
    for kept in process["capabilities"].values():
        assert kept == list(CAPABILITIES)
    for mapping in (linux["uidMappings"], linux["gidMappings"]):
        assert mapping == [{"containerID": 0, "hostID": base_of(slot), "size": ID_RANGE}]
    assert process["env"][0] == f"CAISSON_CAPABILITIES={CAPABILITY_MASK:x}"
    assert {entry.split("=")[0] for entry in process["env"]} == {"CAISSON_CAPABILITIES", "PATH"}
    assert made["hostname"] == spec.name
    assert ("sysctl" in linux) is spec.forwarding
    assert "resources" not in linux
    assert "rlimits" not in process
    assert "hooks" not in made


@given(st.integers(0, SLOTS - 1), st.integers(0, SLOTS - 1))
def test_ranges_of_ids_do_not_meet(one: int, other: int):
    """Two slots share no id, and none is beyond what a signed number can hold."""
    assert slot_of(base_of(one)) == one
    if one != other:
        assert abs(base_of(one) - base_of(other)) >= ID_RANGE
    assert base_of(one) + ID_RANGE <= 1 << 31


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*BARRIERS, "barriers", "up", "detail"]), inner)
    ),
    max_leaves=20,
)


@given(JSON)
def test_a_barrier_is_down_unless_the_report_says_true(untrusted_report: object):
    """Whatever a hostile agent reports, only `up: true` counts, and the words are printable."""
    down = missing(untrusted_report)
    barriers = untrusted_report.get("barriers") if isinstance(untrusted_report, dict) else None
    up = {
        name
        for name in BARRIERS
        if isinstance(barriers, dict)
        and isinstance(barriers.get(name), dict)
        and barriers[name].get("up") is True
    }
    assert {line.split(" ")[0] for line in down} == BARRIERS - up
    assert all(line.isprintable() for line in down)


def test_a_complete_report_has_nothing_missing():
    """All barriers up; more than was asked for does not matter."""
    report = {"barriers": {name: {"up": True, "detail": ""} for name in [*BARRIERS, "more"]}}
    assert missing(report) == []


def test_a_barrier_that_is_down_is_named_with_its_detail():
    """The detail is the qube's own text: escaped and cut."""
    report = {"barriers": {name: {"up": True} for name in BARRIERS}}
    report["barriers"]["seccomp"] = {"up": False, "detail": "mode 0\x1b[2J" + "x" * 500}
    [line] = missing(report)
    assert line.startswith("seccomp (mode 0\\x1b[2J")
    assert len(line) < 100


V1 = """\
30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
34 30 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:15 - cgroup cgroup rw,cpu,cpuacct
35 30 0:31 / /sys/fs/cgroup/memory rw shared:16 - cgroup cgroup rw,memory
36 30 0:32 / /sys/fs/cgroup/pids rw shared:17 - cgroup cgroup rw,pids
37 30 0:33 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
"""
V2 = "31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_the_layouts_of_control_groups_are_told_apart():
    """v1, v2 and both; controllers may share a hierarchy."""
    v1 = cgroups.layout(V1)
    assert v1.kind is cgroups.Kind.V1
    assert v1.legacy["cpu"] == v1.legacy["cpuacct"] == Path("/sys/fs/cgroup/cpu,cpuacct")
    assert set(cgroups.NEEDED) <= v1.controllers()
    assert cgroups.layout(V1 + V2).kind is cgroups.Kind.HYBRID
    v2 = cgroups.layout(V2)
    assert (v2.kind, v2.unified) == (cgroups.Kind.V2, Path("/sys/fs/cgroup/unified"))


def test_no_control_groups_is_an_error_with_a_remedy():
    """Nothing mounted: say what to mount."""
    with pytest.raises(EngineError, match="no control groups") as caught:
        cgroups.layout("30 23 0:26 / / rw - ext4 /dev/vda rw\n")
    assert "mount -t cgroup2" in (caught.value.hint or "")


def test_a_v1_controller_that_is_missing_is_named():
    """Without the pids controller there is no wall against a fork bomb: no start."""
    without = "\n".join(line for line in V1.splitlines() if "pids" not in line)
    with pytest.raises(EngineError, match="`pids` is missing"):
        cgroups.groups(cgroups.layout(without), "")
