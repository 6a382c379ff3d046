"""A copy of a qube: the calls of `qvm-clone` (sheet `admin-api`, section 9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from caisson.admin.client import Client, NoAnswerError, on_path
from caisson.errors import CaissonError, NoSuchPropertyError
from caisson.names import shown
from caisson.tools import interrupts, properties, selection, terminal
from caisson.tools.command import UsageError
from caisson.tools.device_words import parse_assignment, serialized
from caisson.tools.properties import Owner, Shown
from caisson.tools.volumes import Volume, known_volume

STANDALONE = "StandaloneVM"
_SHOWS_THE_MACHINE = "host"
_TEMPLATED = frozenset({"AppVM", "DispVM"})
# Given when the qube is created, or the package manager's business.
_OWN_PROPERTIES = frozenset({"name", "qid", "template", "label", "uuid", "installed_by_rpm"})
# The daemon keeps these to itself, and refuses them from everybody.
_OWN_FEATURES = frozenset({"deferred-netvm-original"})


@dataclass(frozen=True, slots=True)
class Wish:
    """What the new qube is to be.

    Args:
        source: the qube to copy.
        name: the new name.
        klass: the new class; None for the source's.
        label: the new label; None for the source's.
        pool: one pool for all volumes.
        pools: pools by volume.
        without: volumes that are not copied.
        ignore_errors: whether to keep what could be copied.
    """

    source: str
    name: str
    klass: str | None = None
    label: str | None = None
    pool: str | None = None
    pools: Mapping[str, str] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    ignore_errors: bool = False


def creation(
    name: str, label: str, pool: str | None, pools: Mapping[str, str]
) -> tuple[str, bytes]:
    """The method that creates a qube, without its class, and its payload (section 2.4).

    Raises:
        UsageError: a value cannot be a word of the payload.
    """
    if pool is not None and pools:
        raise UsageError("`-P` and `--pool` exclude each other")
    words = [f"name={name}", f"label={label}"]
    words += [f"pool={pool}"] if pool is not None else []
    words += [f"pool:{known_volume(volume)}={where}" for volume, where in pools.items()]
    for word in words:
        what, _, value = word.partition("=")
        if " " in word or not word.isascii():
            raise UsageError(
                f"{what} `{shown(value)}` contains a space or a letter beyond ASCII",
                "use letters, digits, `.`, `_` and `-`",
            )
    method = "CreateInPool" if pools or pool is not None else "Create"
    return f"admin.vm.{method}", " ".join(words).encode()


def clone(client: Client, wish: Wish) -> None:
    """Copy a qube; where anything fails, the new one is removed again.

    Raises:
        CaissonError: it failed.
    """
    with cloned(client, wish):
        pass


@contextmanager
def cloned(client: Client, wish: Wish) -> Iterator[None]:
    """Copy a qube, which is removed again also if what follows fails or is interrupted.

    Raises:
        CaissonError: it was not copied.
    """
    qubes = selection.listed(client)
    if wish.source not in qubes:
        raise selection.unknown(wish.source, qubes)
    source = Owner(wish.source)
    klass = qubes[wish.source].klass if wish.klass is None else selection.known_class(wish.klass)
    found = properties.read_all(client, source)
    values = {prop.name: prop.text for prop in found}
    method, payload = creation(
        wish.name, wish.label or values.get("label", ""), wish.pool, wish.pools
    )
    template = values.get("template", "") if klass in _TEMPLATED else ""
    with created(client, wish.name, f"{method}.{klass}", template, payload):
        _Copy(client, wish, qubes[wish.source].klass).all(found)
        yield


@contextmanager
def created(
    client: Client, name: str, method: str, template: str, payload: bytes
) -> Iterator[None]:
    """Create a qube, which is removed again if what follows fails or is interrupted.

    Who creates one that is to stand alone, and it does not, is warned.

    Raises:
        CaissonError: it was not created.
    """
    with interrupts.as_exceptions():
        made = False
        try:
            # A Ctrl-C in the middle would leave it open whether there is something to remove.
            with interrupts.held_back():
                client.call(method, template, payload=payload)
                made = True
            yield
        except BaseException:
            if made:
                _take_back(client, name)
            raise
    if method.endswith(f".{STANDALONE}"):
        _warn_of_shown_root(client, name)


def _warn_of_shown_root(client: Client, name: str) -> None:
    """Tell that a root is the machine's own (decision 4): nobody expects it of this class."""
    try:
        pool = Volume(name, "root").info(client).get("pool", "")
        driver = client.lines("admin.pool.Info", pool) if pool else []
    except CaissonError:
        # Whoever may create need not be allowed to look.
        return
    if f"driver={_SHOWS_THE_MACHINE}" in driver:
        terminal.warn(
            f"the root of qube `{name}` is this machine's own system (pool `{pool}`): it keeps "
            "`/rw`, `/home` and `/usr/local`, and loses everything else at each stop",
            "for a root of its own, copy a built template: `caisson template build NAME`",
        )


def _take_back(client: Client, name: str) -> None:
    try:
        with interrupts.held_back():
            client.call("admin.vm.Remove", destination=name)
            terminal.say(f"qube `{name}` was removed again")
    except CaissonError as error:
        terminal.say(f"qube `{name}` could not be removed again: {error.message}")


class _Copy:
    """The steps that fill a new qube."""

    def __init__(self, client: Client, wish: Wish, klass: str) -> None:
        self._client = client
        self._klass = klass
        self._wish = wish
        self._source = wish.source
        self._name = wish.name

    def all(self, found: list[Shown]) -> None:
        """Copy everything, in the order of the sheet."""
        for prop in found:
            if not prop.default and prop.name not in _OWN_PROPERTIES:
                self._step(partial(self._property, prop))
        elsewhere = self._klass in selection.ELSEWHERE
        # A qube on another machine is a record: what follows from it is kept there.
        contents = () if elsewhere else (self._notes, self._firewall)
        for step in (self._tags, self._features, *contents, self._menus):
            self._step(step)
        if not elsewhere:
            self._volumes()
            self._step(self._devices)

    def _step(self, act: Callable[[], object]) -> None:
        try:
            act()
        except CaissonError as error:
            if not self._wish.ignore_errors:
                raise
            terminal.complain(error)

    def _property(self, prop: Shown) -> None:
        try:
            self._call("property.Set", prop.name, prop.text.encode())
        except (NoSuchPropertyError, NoAnswerError):
            # The new class does not have it, or it is written once (section 2.2).
            return

    def _tags(self) -> None:
        for tag in self._lines("tag.List"):
            if not tag.startswith("created-by-"):
                self._call("tag.Set", tag)

    def _features(self) -> None:
        for feature in self._lines("feature.List"):
            preloads = feature.startswith("preload-dispvm") and feature != "preload-dispvm-max"
            if not preloads and feature not in _OWN_FEATURES:
                self._call("feature.Set", feature, self._read("feature.Get", feature))

    def _notes(self) -> None:
        if notes := self._read("notes.Get"):
            self._call("notes.Set", payload=notes)

    def _firewall(self) -> None:
        self._call("firewall.Set", payload=self._read("firewall.Get"))

    def _menus(self) -> None:
        """Let `qvm-appmenus` copy its part, where it is installed."""
        if (program := on_path("qvm-appmenus")) is None:
            return
        import subprocess

        argv = [program, "--init", "--update", "--source", self._source, self._name]
        done = subprocess.run(argv, check=False)
        if done.returncode != 0:
            raise CaissonError(f"`qvm-appmenus` failed with exit code {done.returncode}")

    def _volumes(self) -> None:
        names = self._client.lines("admin.vm.volume.List", destination=self._name)
        for name in names:
            if name not in self._wish.without:
                self._step(partial(self._volume, name))

    def _volume(self, name: str) -> None:
        """Copy the content of a volume that the new qube keeps."""
        target = Volume(self._name, name)
        if target.info(self._client).get("save_on_stop") == "True":
            target.copy_from(self._client, Volume(self._source, name))

    def _devices(self) -> None:
        for klass in self._client.lines("admin.deviceclass.List"):
            for line in self._lines(f"device.{klass}.Assigned"):
                device = parse_assignment(line)
                words = device.words | {"frontend_domain": self._name}
                self._call(f"device.{klass}.Assign", device.argument, serialized(words))

    def _read(self, method: str, argument: str = "") -> bytes:
        return self._client.call(f"admin.vm.{method}", argument, self._source)

    def _lines(self, method: str) -> list[str]:
        return self._client.lines(f"admin.vm.{method}", destination=self._source)

    def _call(self, method: str, argument: str = "", payload: bytes = b"") -> None:
        self._client.call(f"admin.vm.{method}", argument, self._name, payload)
