"""How much one qube may hold, and what the broker is told of it."""

from collections.abc import Callable

import pytest
from model_world import World

from caisson.errors import InvalidTagError, ValueRefusedError
from caisson.model import AddTag, Change, Klass, PowerState, SetFeature, SetProperty
from caisson.model.limits import (
    LONGEST_FEATURE,
    LONGEST_TAG,
    LONGEST_TEXT,
    MOST_DENIED,
    MOST_FEATURES,
    MOST_TAGS,
)
from caisson.names import DOM0, FeatureName, PropertyName, Tag

Fill = Callable[[World, int], object]

CODES = "".join(f"b{number:06x}" for number in range(MOST_DENIED + 1))


def features(world: World, number: int) -> None:
    """So many features."""
    for each in range(number):
        world.feature("work", f"f{each}", "1")


def tags(world: World, number: int) -> None:
    """So many tags, with those that the qube was born with."""
    while len(world.qube("work").tags) < number:
        world.tag("work", f"t{len(world.qube('work').tags)}")


@pytest.mark.parametrize(
    ("fill", "most"),
    [
        (features, MOST_FEATURES),
        (tags, MOST_TAGS),
        (lambda world, size: world.feature("work", "x", "v" * size), LONGEST_FEATURE),
        (lambda world, size: world.feature("work", "internal", "v" * size), LONGEST_FEATURE),
        (lambda world, size: world.tag("work", "t" * size), LONGEST_TAG),
        (lambda world, size: world.set("work", "kernelopts", "o" * size), 512),
        (lambda world, size: world.set("far", "transport_rpc", "r" * size), LONGEST_TEXT),
        (lambda world, size: world.set("work", "devices_denied", CODES[: 7 * size]), MOST_DENIED),
    ],
)
def test_no_qube_holds_more_than_its_bounds(world: World, fill: Fill, most: int):
    """As much as the bound is taken; one more is a `QubesValueError` with a hint."""
    for name in ("work", "other"):
        world.app(name)
    world.make(Klass.REMOTE, "far")
    fill(world, most)
    with pytest.raises(ValueRefusedError) as caught:
        fill(world, most + 1)
    assert caught.value.hint


def test_what_is_there_changes_and_goes_at_the_bound(world: World):
    """A full qube is not stuck: old features change, old tags go and make room."""
    world.app("work")
    features(world, MOST_FEATURES)
    tags(world, MOST_TAGS)
    world.feature("work", "f0", "2")
    assert world.tag("work", "t99").ops == ()
    world.do(world.system.plan_untag(world.qube("work"), "t99", DOM0))
    world.tag("work", "again")


def test_what_the_system_adds_fits_beside_a_full_set(world: World):
    """A disposable of a template with all its tags has them, and those that the system gives."""
    world.app("work", template_for_dispvms="True")
    tags(world, MOST_TAGS)
    made = world.disposable("dom0", "work")
    assert {"t99", "created-by-dom0", "disp-created-by-dom0"} < made.tags
    world.feature("dom0", "tag-created-vm-with", " ".join(f"x{n}" for n in range(MOST_TAGS)))
    with pytest.raises(ValueRefusedError, match="would have"):
        world.disposable("dom0", "work")


def test_what_was_stored_before_there_were_bounds_stays(world: World):
    """Bounds are for what is new: what a store holds is loaded, and can be taken away."""
    work = world.app("work")
    long = "t" * (LONGEST_TAG + 1)
    world.system.load(
        [
            SetFeature(work.uuid, FeatureName("internal"), "x" * 65_000),
            SetProperty(work.uuid, PropertyName("devices_denied"), CODES),
            AddTag(work.uuid, Tag(long)),
        ]
    )
    assert world.value("work", "devices_denied") == CODES
    assert world.tag("work", long) == Change()
    world.do(world.system.plan_untag(work, long, DOM0))
    world.do(world.system.plan_remove_feature(work, "internal"))


@pytest.mark.parametrize(
    ("value", "told"), [("1", "1"), ("", ""), ("yes" * 5000, "1"), (None, None)]
)
def test_the_broker_is_told_only_whether_a_qube_is_internal(
    world: World, value: str | None, told: str | None
):
    """The truth of the feature, not its text: its length is the owner's choice."""
    work = world.app("work")
    if value is not None:
        world.feature("work", "internal", value)
    assert world.system.info_of(work, PowerState.HALTED)["internal"] == told


@pytest.mark.parametrize("prefix", ["created-by-", "disp-created-by-", "guivm-", "relayvm-"])
def test_tags_made_from_names_have_the_characters_of_names(world: World, prefix: str):
    """A dot is for the system's own tags; `dom0` can give and take them."""
    work = world.app("work")
    world.tag("work", f"{prefix}a.b")
    world.do(world.system.plan_untag(work, f"{prefix}a.b", DOM0))
    for bad in (
        prefix.rstrip("-") + ".a",
        f"my-{prefix}a.b",
        f"{prefix}a/b",
        f"{prefix}a b",
        "a.b",
    ):
        with pytest.raises(InvalidTagError):
            world.tag("work", bad)


def test_a_dotted_name_marks_what_it_creates_and_shows(world: World):
    """Creator, reference and removal: each tag is a valid one, and is gone when it should be."""
    world.app("a.b")
    made = world.app("made", origin="a.b")
    world.set("made", "guivm", "a.b")
    assert {"created-by-a.b", "guivm-a.b"} <= made.tags
    assert all(Tag.parse(tag) for tag in made.tags)
    world.set("made", "guivm", "dom0")
    world.remove("a.b")
    assert not {tag for tag in made.tags if "a.b" in tag}
