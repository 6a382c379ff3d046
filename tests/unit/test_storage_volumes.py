"""What starts, stops, crashes and reverts do to the states of volumes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caisson.errors import NotHaltedError, StorageError
from caisson.model.klass import Klass
from caisson.model.volumes import HOST, INITIAL_VOLUMES, PRIVATE, ROOT, VolumeState
from caisson.names import VolumeName
from caisson.storage import (
    DEEPEST,
    StartPlan,
    VolumePlan,
    begun,
    flattened,
    garbage,
    is_begun,
    is_outdated,
    layers_of,
    plan_clone,
    plan_flatten,
    plan_replace,
    plan_revert,
    plan_start,
    plan_stop,
)

Volumes = dict[VolumeName, VolumeState]


def volumes(klass: Klass, **layers: tuple[str, ...]) -> Volumes:
    """The volumes of a new qube of that class, with some layers."""
    return {
        state.name: replace(state, layers=layers.get(state.name, ()))
        for state in INITIAL_VOLUMES[klass]
    }


TEMPLATE = volumes(Klass.TEMPLATE, root=("t2", "t1"), private=("tp",))
APP = volumes(Klass.APP, private=("p2", "p1"))
DISPOSABLE = volumes(Klass.DISPOSABLE)


def test_root_of_an_app_qube_is_its_templates_and_private_is_its_own():
    """AppVM: writes to root are thrown away, writes to private are kept."""
    assert plan_start(APP, TEMPLATE) == StartPlan(
        root=VolumePlan(("t2", "t1"), kept=False),
        private=VolumePlan(("p2", "p1"), kept=True),
        host_usr=False,
    )


def test_a_disposable_borrows_both_volumes_and_keeps_none():
    """DispVM: root of the template's template, private of the template, nothing kept."""
    assert plan_start(DISPOSABLE, APP, TEMPLATE) == StartPlan(
        root=VolumePlan(("t2", "t1"), kept=False),
        private=VolumePlan(("p2", "p1"), kept=False),
        host_usr=False,
    )


@pytest.mark.parametrize("klass", [Klass.TEMPLATE, Klass.STANDALONE])
def test_templates_and_standalones_keep_both_volumes(klass: Klass):
    """TemplateVM and StandaloneVM: root and private are their own, and kept."""
    plan = plan_start(volumes(klass, root=("r",), private=("p",)))
    assert plan.root == VolumePlan(("r",), kept=True)
    assert plan.private == VolumePlan(("p",), kept=True)


def test_the_host_template_never_keeps_writes_to_its_root():
    """The machine's own system directories are shown, not owned."""
    host = {**TEMPLATE, ROOT: replace(TEMPLATE[ROOT], pool=HOST)}
    assert plan_start(host).root.kept is False
    assert plan_start(APP, host).host_usr is True
    stopped = plan_stop(replace(host[ROOT], dirty="u"), empty=False, now=1)
    assert stopped.state == host[ROOT]
    assert stopped.dropped == ("u",)


def test_a_qube_whose_template_has_no_content_does_not_start():
    """The error says how to get the content."""
    with pytest.raises(StorageError, match="volume `root` has no content") as caught:
        plan_start(APP, volumes(Klass.TEMPLATE))
    assert "caisson template build" in str(caught.value.hint)


def test_a_start_on_an_uncommitted_volume_is_refused():
    """A writable layer is never mounted twice, and never forgotten."""
    qube = {**APP, PRIVATE: replace(APP[PRIVATE], dirty="u")}
    with pytest.raises(NotHaltedError):
        plan_start(qube, TEMPLATE)


def test_layers_that_a_running_qube_borrowed_outlive_a_change_of_the_template():
    """`garbage` spares what a running qube stands on."""
    plan = plan_start(APP, TEMPLATE)
    running = begun(APP, replace(plan, root=replace(plan.root, upper="u")))
    moved = plan_replace(TEMPLATE[ROOT], ["t9"], now=1)
    final = plan_replace(moved.state, ["t10"], now=2)
    assert final.dropped == ("t1", "t2")
    assert garbage(final.dropped, running) == set()
    assert garbage(final.dropped, APP.values()) == {"t1", "t2"}
    assert is_outdated(running[0], [APP, {ROOT: final.state}])
    assert not is_outdated(running[0], [APP, TEMPLATE])


def test_a_stop_commits_what_was_written_and_keeps_the_former_state():
    """The writable layer becomes the newest; the state before is a revision."""
    stop = plan_stop(replace(APP[PRIVATE], dirty="u"), empty=False, now=7)
    assert stop.seal == "u"
    assert stop.state.layers == ("u", "p2", "p1")
    assert stop.state.dirty is None
    assert [(r.layers, r.created) for r in stop.state.revisions] == [(("p2", "p1"), 7)]
    assert stop.dropped == ()


def test_a_stop_without_writes_changes_nothing():
    """No layer and no revision for nothing."""
    stop = plan_stop(replace(APP[PRIVATE], dirty="u"), empty=True, now=7)
    assert stop.state == APP[PRIVATE]
    assert stop.dropped == ("u",)
    assert stop.seal is None


def test_a_stop_planned_twice_gives_the_same_result():
    """A kill between sealing and storing is cured by planning the stop again."""
    state = replace(APP[PRIVATE], dirty="u")
    assert plan_stop(state, empty=False, now=7) == plan_stop(state, empty=False, now=7)


def test_a_stop_drops_what_a_borrowed_volume_wrote():
    """Neither the borrowed layers nor the writes belong to a stopped disposable."""
    stop = plan_stop(replace(DISPOSABLE[PRIVATE], layers=("p1",), dirty="u"), empty=False, now=7)
    assert stop.state == DISPOSABLE[PRIVATE]
    assert stop.dropped == ("u",)


@pytest.mark.parametrize(("keep", "left"), [(-1, 0), (0, 0), (1, 1), (3, 3)])
def test_as_many_revisions_stay_as_asked_for(keep: int, left: int):
    """The newest ones; ids grow and are never used again."""
    state = replace(APP[PRIVATE], revisions_to_keep=keep)
    for number in range(5):
        state = plan_stop(replace(state, dirty=f"u{number}"), empty=False, now=number).state
    assert len(state.revisions) == left
    ids = [int(r.id) for r in state.revisions]
    assert ids == sorted(set(ids))


def test_a_revert_can_itself_be_reverted():
    """Going back makes the state before it a revision."""
    state = plan_stop(replace(APP[PRIVATE], dirty="u"), empty=False, now=1).state
    back = plan_revert(state, None, now=2).state
    assert back.layers == ("p2", "p1")
    assert plan_revert(back, None, now=3).state.layers == ("u", "p2", "p1")


def test_a_revert_names_the_revisions_that_there_are():
    """Unknown revision, no revision, running qube: each has its error."""
    state = plan_stop(replace(APP[PRIVATE], dirty="u"), empty=False, now=1).state
    with pytest.raises(StorageError) as caught:
        plan_revert(state, "99", now=2)
    assert caught.value.hint == "it has `1`"
    with pytest.raises(StorageError, match="has no revisions"):
        plan_revert(APP[PRIVATE], None, now=2)
    with pytest.raises(StorageError, match="in use"):
        plan_revert(replace(state, dirty="v"), None, now=2)


def test_a_deep_stack_is_flattened_below_what_its_revisions_need():
    """Flattening keeps every revision and shares the merged layer among them."""
    state = APP[PRIVATE]
    deep = False
    number = 0
    while not deep:
        plan = plan_stop(replace(state, dirty=f"u{number}"), empty=False, now=number)
        state, deep, number = plan.state, plan.flatten, number + 1
    assert len(state.layers) == DEEPEST + 1
    merged = plan_flatten(state)
    assert merged == state.layers[1:]
    plan = flattened(state, merged, "f")
    assert plan is not None
    assert plan.state.layers == (state.layers[0], "f")
    assert [r.layers for r in plan.state.revisions] == [("f",)]
    assert set(plan.dropped) == set(merged)


def test_flattening_gives_way_to_a_volume_that_moved_on():
    """A merge that no longer fits is thrown away; one of a running qube waits."""
    state = replace(APP[PRIVATE], layers=("c", "b", "a"))
    assert plan_flatten(state) == ("c", "b", "a")
    assert flattened(replace(state, layers=("x",)), ("b", "a"), "f") is None
    with pytest.raises(NotHaltedError):
        flattened(replace(state, dirty="u"), ("b", "a"), "f")
    assert plan_flatten(replace(state, layers=("a",))) == ()


def test_all_layers_of_a_volume_are_known():
    """Present, former and writable ones: none may be taken for an orphan."""
    state = plan_stop(replace(APP[PRIVATE], dirty="u"), empty=False, now=1).state
    assert layers_of([replace(state, layers=("z",), dirty="w")]) == {"z", "p2", "p1", "w"}


def test_a_clone_has_the_layers_the_size_and_the_pool_of_its_source():
    """What it had becomes a revision, unless it moves to another pool."""
    source = replace(TEMPLATE[ROOT], size=7)
    plan = plan_clone(replace(TEMPLATE[ROOT], layers=("o",)), source, revisions_to_keep=5, now=1)
    assert (plan.state.layers, plan.state.size, plan.dropped) == (("t2", "t1"), 7, ())
    assert [r.layers for r in plan.state.revisions] == [("o",)]
    machine = replace(source, pool=HOST, revisions_to_keep=0)
    moved = plan_clone(plan.state, machine, revisions_to_keep=0, now=2)
    assert (moved.state.pool, moved.state.revisions, moved.dropped) == (HOST, (), ("o",))
    back = plan_clone(moved.state, source, revisions_to_keep=5, now=3)
    assert (back.state.pool, back.state.revisions_to_keep) == (source.pool, 5)


@pytest.mark.parametrize(
    ("target", "source"),
    [
        (APP[ROOT], TEMPLATE[ROOT]),
        (replace(APP[PRIVATE], rw=False), TEMPLATE[PRIVATE]),
        (APP[VolumeName("volatile")], TEMPLATE[PRIVATE]),
        (APP[PRIVATE], replace(TEMPLATE[PRIVATE], layers=())),
        (APP[PRIVATE], APP[VolumeName("volatile")]),
        (APP[PRIVATE], APP[VolumeName("kernel")]),
    ],
)
def test_what_has_or_keeps_no_content_is_not_cloned(target: VolumeState, source: VolumeState):
    """Neither a target that would lose it, nor a source without any."""
    with pytest.raises(StorageError):
        plan_clone(target, source, revisions_to_keep=1, now=1)
    with pytest.raises(NotHaltedError):
        plan_clone(replace(APP[PRIVATE], dirty="u"), TEMPLATE[PRIVATE], revisions_to_keep=1, now=1)


def test_a_volume_that_may_not_be_written_gets_no_writable_layer():
    """A borrowed one still holds what it reads, and lets go of it at the stop."""
    readers = {**DISPOSABLE, PRIVATE: replace(DISPOSABLE[PRIVATE], rw=False)}
    plan = plan_start(readers, APP, TEMPLATE)
    assert plan.private == VolumePlan(("p2", "p1"), writable=False)
    (_, held) = begun(readers, plan)
    assert (held.layers, held.dirty) == (("p2", "p1"), None)
    assert is_begun(held)
    stopped = plan_stop(held, empty=True, now=1)
    assert stopped.state == readers[PRIVATE]
    assert not is_begun(stopped.state)
