"""Features, tags and labels (sheet `admin-api`, sections 2.3, 2.8 and 6)."""

import pytest
from model_world import World

from caisson.errors import (
    CaissonError,
    FeatureNotFoundError,
    InvalidLabelError,
    InvalidTagError,
    LabelInUseError,
    LabelNotFoundError,
    LabelValueError,
    PermissionDeniedError,
    ProtocolError,
    TagNotFoundError,
    ValueRefusedError,
)
from caisson.names import DOM0, QubeName

BAD_FEATURES = [
    ("", "1", ProtocolError),
    ("a b", "1", ProtocolError),
    ("../x", "1", ProtocolError),
    ("x", "a\nb", ProtocolError),
    ("x", "\x1b", ProtocolError),
    ("x", "ü", ProtocolError),
    ("deferred-netvm-original", "x", PermissionDeniedError),
    ("preload-dispvm", "x", PermissionDeniedError),
    ("service.", "1", ValueRefusedError),
    ("service..", "1", ValueRefusedError),
    ("service...", "1", ValueRefusedError),
    ("service." + "a" * 49, "1", ValueRefusedError),
    ("vm-config.1x", "1", ValueRefusedError),
    ("vm-config." + "a" * 53, "1", ValueRefusedError),
    ("vm-config.long", "1" * 3073, ValueRefusedError),
    ("custom-persist.", "/x", ValueRefusedError),
    ("custom-persist.x", "relative", ValueRefusedError),
    ("custom-persist.x", "/a/../../etc", ValueRefusedError),
    ("custom-persist.x", "fifo:root:root:644:/x", ValueRefusedError),
    ("preload-dispvm-max", "many", ValueRefusedError),
    ("preload-dispvm-delay", "soon", ValueRefusedError),
]


@pytest.mark.parametrize(("name", "value", "refusal"), BAD_FEATURES)
def test_bad_features_are_refused(world: World, name: str, value: str, refusal: type[CaissonError]):
    """A feature becomes a file name or a path in the qube: its rules hold in the model."""
    with pytest.raises(refusal):
        world.feature("debian", name, value)
    assert world.qube("debian").features == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-mine", ""),
        ("service.app-dispvm." + "a" * 60, "1"),
        ("vm-config.ok", "any thing"),
        ("vm-config.long", "1" * 3072),
        ("custom-persist.home", "file:user:user:644:/home/user/x"),
        ("custom-persist.y", "/etc/y"),
        ("preload-dispvm-max", "2"),
        ("preload-dispvm-delay", "1.5"),
    ],
)
def test_good_features_are_stored(world: World, name: str, value: str):
    """The empty value means no, and is stored as well."""
    world.feature("debian", name, value)
    assert world.qube("debian").features == {name: value}


def test_features_are_told_and_removed(world: World):
    """Section 3.3: feature, value, and the old value where there was one."""
    first = world.feature("debian", "f", "1")
    assert dict(first.events[0].kwargs) == {"feature": "f", "value": "1"}
    second = world.feature("debian", "f", "2")
    assert dict(second.events[0].kwargs) == {"feature": "f", "value": "2", "oldvalue": "1"}
    gone = world.do(world.system.plan_remove_feature(world.qube("debian"), "f"))
    assert [event.name for event in gone.events] == ["domain-feature-delete:f"]
    with pytest.raises(FeatureNotFoundError):
        world.system.plan_remove_feature(world.qube("debian"), "f")


def test_tags_are_validated_and_told(world: World):
    """Setting twice is no change, removing what is not there is an error."""
    added = world.tag("debian", "mine")
    assert [(e.name, dict(e.kwargs)) for e in added.events] == [
        ("domain-tag-add:mine", {"tag": "mine"})
    ]
    assert world.tag("debian", "mine").ops == ()
    for bad in ("", "a b", "a/b", "ü", "@x", "a.b"):
        with pytest.raises(InvalidTagError):
            world.tag("debian", bad)
    world.do(world.system.plan_untag(world.qube("debian"), "mine", DOM0))
    with pytest.raises(TagNotFoundError):
        world.system.plan_untag(world.qube("debian"), "mine", DOM0)


@pytest.mark.parametrize("tag", ["created-by-admin", "disp-created-by-admin", "created-by-dom0"])
def test_only_the_admin_qube_says_who_created_a_qube(world: World, tag: str):
    """Refused on every route: adding and removing, whether the tag is there or not."""
    world.app("admin")
    work = world.app("work")
    origin = QubeName("admin")
    for plan in (world.system.plan_tag, world.system.plan_untag):
        with pytest.raises(PermissionDeniedError):
            plan(work, tag, origin)
    world.tag("work", tag)


def test_gui_tag_follows_the_gui_qube(world: World):
    """Policies give the GUI qube its rights by this tag: it is never left behind."""
    world.app("gui")
    work = world.app("work")
    world.set("work", "guivm", "gui")
    assert "guivm-gui" in work.tags
    assert "guivm-dom0" not in work.tags
    world.set("work", "guivm", "")
    assert not any(tag.startswith("guivm-") for tag in work.tags)
    world.reset("work", "guivm")
    assert "guivm-dom0" in work.tags
    world.set(None, "default_guivm", "gui")
    assert "guivm-gui" in work.tags
    assert "guivm-dom0" not in work.tags


def test_labels_of_ones_own(world: World):
    """Numbers go on after the eighth; a colour is text."""
    world.do(world.system.plan_create_label("pink", "0xFF00aa"))
    label = world.system.label("pink")
    assert (label.index, label.color) == (9, "0xff00aa")
    assert world.system.label("label-9") is label
    world.set("debian", "label", "pink")
    with pytest.raises(LabelInUseError):
        world.system.plan_create_label("pink", "0xff00aa")
    with pytest.raises(LabelInUseError):
        world.system.plan_remove_label("pink")
    world.set("debian", "label", "red")
    world.do(world.system.plan_remove_label("pink"))
    with pytest.raises(LabelNotFoundError):
        world.system.plan_remove_label("pink")
    with pytest.raises(ProtocolError):
        world.system.plan_remove_label("red")
    for bad in ("12", "label-1", "a b", ""):
        with pytest.raises(InvalidLabelError):
            world.system.plan_create_label(bad, "0x000000")
    for bad in ("#ff0000", "0xff00", "red"):
        with pytest.raises(LabelValueError):
            world.system.plan_create_label("new", bad)
