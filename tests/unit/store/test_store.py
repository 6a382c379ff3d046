"""The database: what is kept, what is refused, what an error says."""

import itertools
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from model_world import World

from caisson.errors import StorageError
from caisson.model import (
    ADMIN_UUID,
    AddLabel,
    AddQube,
    AddTag,
    Op,
    RemoveFeature,
    RemoveLabel,
    RemoveQube,
    RemoveTag,
    RemoveVolume,
    ResetProperty,
    Revision,
    SetFeature,
    SetNotes,
    SetPool,
    SetProperty,
    SetVolume,
    System,
    VolumeState,
)
from caisson.names import FeatureName, LabelName, PoolName, PropertyName, QubeName, Tag, VolumeName
from caisson.store import Store
from caisson.store import store as store_module
from caisson.store.schema import VERSION

ID = UUID("12345678-1234-4234-8234-123456789012")
VOLUME = VolumeState(
    VolumeName("private"),
    layers=("b", "a"),
    dirty="c",
    revisions=(Revision("1", ("a",), 1_700_000_000),),
    save_on_stop=True,
    size=1 << 40,
    revisions_to_keep=-1,
)
ADDED: list[Op] = [
    AddLabel(LabelName("pink"), 9, "0xff00aa"),
    AddQube(ID, QubeName("work"), "AppVM", 1),
    SetProperty(None, PropertyName("clockvm"), "work"),
    SetProperty(ADMIN_UUID, PropertyName("label"), "pink"),
    SetProperty(ID, PropertyName("netvm"), ""),
    SetFeature(ID, FeatureName("f"), ""),
    SetFeature(ADMIN_UUID, FeatureName("f"), "1"),
    AddTag(ID, Tag("t")),
    SetVolume(ID, VOLUME),
    SetNotes(ID, "a\tb\n\u00e4"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database will be."""
    return tmp_path / "var/lib/qubes/qubes.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """An empty store."""
    with Store.open(path) as opened:
        yield opened


def write_without_end(store: Store) -> None:
    """Write until it fails."""
    for number in itertools.count():
        store.write([SetFeature(ID, FeatureName(f"f{number}"), "x" * 4000)])


def kept(store: Store) -> set[Op]:
    """All that the store holds."""
    return set(store.load())


def test_every_operation_is_kept_over_a_restart(path: Path):
    """What was written is there after closing and opening."""
    with Store.open(path) as store:
        assert kept(store) == set()
        store.write(ADDED)
    with Store.open(path) as store:
        assert kept(store) == set(ADDED)


def test_every_operation_can_be_undone(store: Store):
    """Removing what was added leaves nothing."""
    store.write(ADDED)
    store.write(
        [
            SetNotes(ID, ""),
            RemoveVolume(ID, VOLUME.name),
            RemoveTag(ID, Tag("t")),
            RemoveFeature(ID, FeatureName("f")),
            RemoveFeature(ADMIN_UUID, FeatureName("f")),
            ResetProperty(ID, PropertyName("netvm")),
            ResetProperty(ADMIN_UUID, PropertyName("label")),
            ResetProperty(None, PropertyName("clockvm")),
            RemoveLabel(LabelName("pink")),
        ]
    )
    assert kept(store) == {ADDED[1]}
    store.write([RemoveQube(ID)])
    assert kept(store) == set()


def test_removed_qube_takes_everything_of_its_own_along(store: Store):
    """QSB-050: what comes later under that name starts from nothing."""
    store.write(ADDED)
    store.write([RemoveQube(ID), AddQube(UUID(int=7), QubeName("work"), "AppVM", 1)])
    assert kept(store) == {ADDED[0], ADDED[2], ADDED[3], ADDED[6]} | {
        AddQube(UUID(int=7), QubeName("work"), "AppVM", 1)
    }


def test_setting_replaces(store: Store):
    """The last value counts."""
    store.write(ADDED)
    store.write([SetFeature(ID, FeatureName("f"), "2"), AddTag(ID, Tag("t"))])
    assert SetFeature(ID, FeatureName("f"), "2") in kept(store)
    assert SetFeature(ID, FeatureName("f"), "") not in kept(store)


def test_settings_of_a_pool_are_kept(path: Path):
    """The last ones count, after a restart too."""
    with Store.open(path) as store:
        store.write([SetPool(PoolName("varlibqubes"), 5), SetPool(PoolName("varlibqubes"), -1)])
    with Store.open(path) as store:
        assert kept(store) == {SetPool(PoolName("varlibqubes"), -1)}
        system = System()
        system.load(store.load())
        assert system.pools[PoolName("varlibqubes")].revisions_to_keep == -1


def test_database_of_version_1_is_brought_up_to_date_with_all_its_data(path: Path):
    """The file holds what the first Caisson wrote; what came later works on it at once."""
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        connection.executescript(Path(__file__).with_name("version-1.sql").read_text())
    connection.close()
    before = {op for op in ADDED if not isinstance(op, SetNotes)}
    with Store.open(path) as store:
        assert kept(store) == before
        store.write([SetNotes(ID, "new"), SetPool(PoolName("varlibqubes"), 3)])
    with Store.open(path) as store:
        assert kept(store) == before | {SetNotes(ID, "new"), SetPool(PoolName("varlibqubes"), 3)}
        store.write([RemoveQube(ID)])
        assert SetNotes(ID, "new") not in kept(store)


def test_interrupted_upgrade_leaves_the_old_version(path: Path, monkeypatch: pytest.MonkeyPatch):
    """A step that fails halfway is undone as a whole, and can be taken later."""
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        connection.executescript(Path(__file__).with_name("version-1.sql").read_text())
    connection.close()
    broken = (*store_module.STEPS[:1], store_module.STEPS[1] + "CREATE TABLE qube (x) STRICT")
    with monkeypatch.context() as patched:
        patched.setattr(store_module, "STEPS", broken)
        with pytest.raises(StorageError, match="already exists"):
            Store.open(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()
    with Store.open(path) as store:
        assert len(kept(store)) == len(ADDED) - 1


def test_change_is_written_as_a_whole_or_not_at_all(store: Store):
    """The second operation contradicts the database: the first one is gone as well."""
    store.write(ADDED)
    with pytest.raises(StorageError):
        store.write([AddTag(ID, Tag("new")), AddQube(UUID(int=7), QubeName("work"), "AppVM", 2)])
    with pytest.raises(StorageError):
        store.write([AddTag(UUID(int=7), Tag("new"))])
    assert kept(store) == set(ADDED)
    store.write([AddTag(ID, Tag("new"))])
    assert AddTag(ID, Tag("new")) in kept(store)


def test_values_are_data_never_sql(store: Store):
    """Names and values reach the database as parameters."""
    text = "'; DROP TABLE qube; --\x00"
    store.write(ADDED)
    store.write([SetFeature(ID, FeatureName("g"), text)])
    assert SetFeature(ID, FeatureName("g"), text) in kept(store)


def test_loaded_model_is_the_one_that_was_written(store: Store):
    """A system that is replayed from the store answers like the one in memory."""
    world = World(keep=lambda change: store.write(change.ops))
    world.network()
    world.app("base", template_for_dispvms="True")
    world.disposable("dom0", "base")
    world.remove(world.app("gone").name)
    loaded = System(world.system.host)
    loaded.load(store.load())
    for owner in (None, *world.system.qubes.values()):
        twin = None if owner is None else loaded.qube(owner.name)
        for name in world.system.properties(owner):
            assert loaded.render(loaded.value(twin, name)) == world.system.render(
                world.system.value(owner, name)
            )


def test_nobody_else_can_read_the_state(store: Store, path: Path):
    """Database and log belong to root alone, also where the umask says otherwise."""
    store.write(ADDED)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes
    assert set(modes.values()) == {0o600}


def test_readable_database_is_closed_again(path: Path):
    """A mode that was loosened is tightened at the next start."""
    Store.open(path).close()
    path.chmod(0o644)
    Store.open(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_link_in_place_of_the_database_is_not_followed(path: Path, tmp_path: Path):
    """A database is never made where a link points to."""
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        Store.open(path)
    assert not (tmp_path / "elsewhere").exists()


def test_second_daemon_is_told_about_the_first(store: Store, path: Path):
    """Two writers on one root would undo each other's work."""
    with pytest.raises(StorageError, match="locked") as refused:
        Store.open(path)
    assert "another process" in str(refused.value.hint)
    store.write(ADDED)


def test_database_of_a_newer_caisson_is_refused_unchanged(path: Path):
    """An old program must not write what it does not understand."""
    Store.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StorageError, match=f"version {VERSION + 1}") as refused:
        Store.open(path)
    assert "newer" in str(refused.value.hint)
    assert path.read_bytes() == before


def test_database_of_another_program_is_refused_unchanged(path: Path):
    """Not every SQLite file is ours."""
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmark (url TEXT)")
    connection.close()
    with pytest.raises(StorageError, match="another program"):
        Store.open(path)
    with sqlite3.connect(path) as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema").fetchall()
    connection.close()
    assert tables == [("bookmark",)]


@pytest.mark.parametrize("offset", [0, 100, 4096, 8192])
def test_damaged_database_is_refused_with_a_remedy(path: Path, offset: int):
    """Damage is found at the start, not months later."""
    with Store.open(path) as store:
        store.write(ADDED)
    for side in path.parent.iterdir():
        if side != path:
            side.unlink()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 512)
    with pytest.raises(StorageError) as refused:
        Store.open(path)
    assert "backup" in str(refused.value.hint)


def test_volume_that_cannot_be_read_is_refused(path: Path):
    """A state of a volume that lacks a field is damage as well."""
    with Store.open(path) as store:
        store.write(ADDED)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE volume SET state = '{}'")
    connection.close()
    with Store.open(path) as store, pytest.raises(StorageError, match="read"):
        list(store.load())


def test_reference_to_a_missing_qube_is_found(path: Path):
    """A row without its qube is damage."""
    Store.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO tag VALUES (?, 't')", (ID.bytes,))
    connection.close()
    with pytest.raises(StorageError, match="does not exist"):
        Store.open(path)


def test_missing_directory_is_made_and_a_file_in_its_place_is_told(tmp_path: Path):
    """The error names the path and the reason."""
    Store.open(tmp_path / "a/b/c.sqlite").close()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be opened"):
        Store.open(tmp_path / "file/c.sqlite")


def test_change_that_does_not_fit_on_the_disk_changes_nothing(store: Store):
    """A full disk refuses a change as a whole, says so, and the next small one works."""
    store.write(ADDED)
    before = kept(store)
    execute = store._connection.execute
    (pages,) = execute("PRAGMA page_count").fetchone()
    execute(f"PRAGMA max_page_count = {pages + 1}")
    big = [AddTag(ID, Tag("new"))] + [
        SetFeature(ID, FeatureName(f"f{number}"), "x" * 4000) for number in range(50)
    ]
    with pytest.raises(StorageError, match="full") as refused:
        store.write(big)
    assert "free some space" in str(refused.value.hint)
    assert kept(store) == before
    store.write([AddTag(ID, Tag("small"))])
    assert AddTag(ID, Tag("small")) in kept(store)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a small file system is mounted")
def test_full_file_system_loses_nothing(tmp_path: Path):
    """The same on a real file system of 1 MiB, filled by somebody else."""
    mount = tmp_path / "small"
    mount.mkdir()
    if os.spawnlp(os.P_WAIT, "mount", "mount", "-t", "tmpfs", "-o", "size=1m", "t", str(mount)):
        pytest.skip("cannot mount a tmpfs here")
    try:
        with Store.open(mount / "qubes.sqlite") as store:
            store.write(ADDED)
            free = shutil.disk_usage(mount).free
            (mount / "filler").write_bytes(b"x" * free)
            with pytest.raises(StorageError) as refused:
                write_without_end(store)
            assert "space" in str(refused.value.hint)
            (mount / "filler").unlink()
            store.write([AddTag(ID, Tag("after"))])
        with Store.open(mount / "qubes.sqlite") as store:
            assert {*ADDED, AddTag(ID, Tag("after"))} <= kept(store)
    finally:
        os.spawnlp(os.P_WAIT, "umount", "umount", str(mount))
