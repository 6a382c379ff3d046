"""What qubesd itself thinks of a call: by the files as they are, and by what exists."""

from __future__ import annotations

from pathlib import Path

import pytest
from broker_rig import info
from hypothesis import given
from hypothesis import strategies as st

from caisson.paths import Paths
from caisson.policy import Decision, Deny, Request, SystemInfo, decide
from caisson.qrexec import BrokerLink, Judge, Rules, judging, watching
from caisson.qrexec.known import Known

POLICY = """\
admin.A  *   mgmt    dom0      allow
admin.A  *   mgmt    @tag:t    allow target=dom0
admin.B  +x  mgmt    work      ask   target=dom0
admin.C  *   mgmt    work      allow
admin.D  *   mgmt    @anyvm    ask   default_target=work
admin.E  *   mgmt    dom0      deny
admin.F  *   mgmt    @anyvm    ask   target=work
*        *   *       *         allow target=dom0
"""
NONE, ASKED, ALLOWED = (False, False), (False, True), (True, True)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """An instance with a policy."""
    paths = Paths(tmp_path)
    for directory in paths.policy_dirs:
        directory.mkdir(parents=True)
    write(paths, POLICY)
    return paths


def write(paths: Paths, text: str) -> None:
    """Replace the policy."""
    (paths.etc / "policy.d/30-user.policy").write_text(text)


def known(**qubes: dict) -> Known:
    """What exists, handed over in one push."""
    made = Known()
    names = {name: info(name) for name in ("dom0", "mgmt")}
    made.take(names | {name: info(name, **more) for name, more in qubes.items()})
    return made


@pytest.mark.parametrize(
    ("source", "service", "argument", "target", "expected"),
    [
        ("mgmt", "admin.A", "", "dom0", ALLOWED),
        ("mgmt", "admin.A", "x+y", "@adminvm", ALLOWED),
        ("mgmt", "admin.A", "", "work", ALLOWED),
        ("mgmt", "admin.B", "x", "work", ASKED),
        ("mgmt", "admin.C", "", "work", NONE),
        ("mgmt", "admin.D", "", "work", ASKED),
        ("mgmt", "admin.F", "", "work", NONE),
        ("mgmt", "admin.E", "", "dom0", NONE),
        ("mgmt", "admin.E", "", "work", ALLOWED),
        ("nowhere", "admin.A", "", "work", NONE),
        ("dom0", "admin.A", "", "work", NONE),
        ("mgmt", "admin.A", "", "@tag:t", NONE),
    ],
)
def test_a_call_reaches_the_admin_qube_by_rule_by_question_or_not(
    paths: Paths, source: str, service: str, argument: str, target: str, expected: tuple[bool, bool]
):
    """`allows` is unconditional, `permits` counts questions; nobody acts as the admin qube."""
    judge = Judge(Rules(paths), known(work={"tags": ("t",)}))
    call = (source, service, argument, target)
    assert (judge.allows(*call), judge.permits(*call)) == expected


def test_a_changed_file_and_a_changed_qube_count_for_the_very_next_call(paths: Paths):
    """Also a file that breaks the policy: nothing is allowed until it is mended."""
    world = known(work={"tags": ("t",)})
    judge = Judge(Rules(paths), world)
    write(paths, "admin.A * mgmt @tag:t allow target=dom0\n")
    for _ in range(10):
        assert judge.allows("mgmt", "admin.A", "", "work")
        world.take({"work": info("work")})
        assert not judge.allows("mgmt", "admin.A", "", "work")
        world.take({"work": info("work", tags=("t",))})
        assert judge.allows("mgmt", "admin.A", "", "work")
        broken = paths.run / "policy.d/40-broken.policy"
        broken.write_text("nonsense\n")
        assert isinstance(judge.judge("mgmt", "admin.A", "", "work"), Deny)
        broken.unlink()
    world.take({}, ["work"])
    assert not judge.allows("mgmt", "admin.A", "", "work")


def test_a_view_is_what_was_and_the_next_one_is_what_is(paths: Paths):
    """One look serves a batch; neither a file nor a qube changes it under way."""
    world = known(work={"tags": ("t",)})
    judge = Judge(Rules(paths), world)
    call = ("mgmt", "admin.A", "", "work")
    before = judge.now()
    write(paths, "admin.A * mgmt @tag:t deny\n")
    assert (before.allows(*call), judge.now().allows(*call)) == (True, False)
    write(paths, "admin.A * mgmt @tag:t allow target=dom0\n")
    granted = judge.now()
    world.take({"work": info("work")})
    assert (granted.allows(*call), judge.now().allows(*call)) == (True, False)


def test_what_was_judged_once_is_remembered_as_long_as_nothing_changes(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
):
    """For calls without a question, however often they are judged; the memory is bounded."""
    judged: list[Request] = []

    def noted(request: Request, *more: object) -> Decision:
        judged.append(request)
        return decide(request, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(judging, "decide", noted)
    monkeypatch.setattr(judging, "_MOST_REMEMBERED", 4)
    world = known(work={"tags": ("t",)})
    monkeypatch.setattr(watching, "TICK_NS", 0)  # the files are old enough
    judge = Judge(Rules(paths), world)
    calls = [("mgmt", "admin.A", argument, "work") for argument in ("", "b", "c", "d")]
    for _ in range(3):
        assert all(judge.allows(*call) for call in calls)
    assert len(judged) == len(calls)
    world.take({"mgmt": info("mgmt")})
    assert judge.allows(*calls[0])
    assert len(judged) == len(calls) + 1
    for number in range(50):
        assert judge.allows("mgmt", "admin.A", f"{number}", "work")
        assert judge.allows("mgmt", "admin.A", f"{number}".zfill(60_000), "work")
    assert len(judge.now()._allowed) <= 4
    assert all(len(argument) < 1_000 for _, _, argument, _ in judge.now()._allowed)


NAMES = st.sampled_from(["dom0", "a", "b", "c", "d"])
INFOS = st.one_of(
    st.builds(lambda tags: info("a", tags=tuple(tags)), st.lists(st.sampled_from("xyz"))),
    st.just({"tags": 7}),
)


@given(st.lists(st.tuples(st.dictionaries(NAMES, INFOS), st.lists(NAMES))))
async def test_the_link_knows_what_it_pushed_though_no_broker_is_there(
    pushes: list[tuple[dict, list[str]]],
):
    """Property: the snapshot is that of all entries put together, without malformed ones."""
    link = BrokerLink(
        Paths(Path("/nonexistent")), 0, 0,
        on_hello=lambda *_: None, on_gone=lambda _: None, on_set_up=lambda *_: None,
        on_request=None,  # type: ignore[arg-type]
    )  # fmt: skip
    whole: dict[str, dict] = {}
    for changed, removed in pushes:
        await link.push(changed, removed)
        whole = {n: i for n, i in whole.items() if n not in removed} | changed
    sound = {name: entry for name, entry in whole.items() if entry["tags"] != 7}
    assert dict(link.system_info.domains) == dict(SystemInfo.from_dict(sound).domains)
