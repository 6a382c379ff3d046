"""What qubes announce about themselves, through the misc socket."""

from __future__ import annotations

from pathlib import Path

import pytest
from admin_lab import Daemon, running_daemon

from caisson.admin.bounds import Budget
from caisson.admin.registry import Door
from caisson.ext.core_features import LEFT_TO_OTHERS, MOST_ANNOUNCED
from caisson.model import Change, SetFeature
from caisson.model.limits import MOST_FEATURES
from caisson.names import FeatureName

POLICY = (
    "qubes.FeaturesRequest * @anyvm @adminvm allow\nqubes.NotifyUpdates * @anyvm @adminvm allow\n"
)
ANNOUNCED = {
    "features-request/qrexec": "1",
    "features-request/gui": "0",
    "features-request/os": "Linux",
    "features-request/supported-rpc.qubes.Filecopy": "1",
    "features-request/internal": "1",
    "features-request/service.crond": "1",
    "features-request/os-version": "\x1b[2J",
    "features-request/a b": "1",
    "somewhere/else": "1",
    "qubes-tools/vmexec": "1",
    "qubes-tools/os": "Windows",
}


async def _features(daemon: Daemon, qube: str) -> dict[str, str]:
    names = (await daemon.ok("admin.vm.feature.List", qube)).splitlines()
    return {name: await daemon.ok(f"admin.vm.feature.Get+{name}", qube) for name in names}


async def test_a_template_announces_what_it_supports(tmp_path: Path) -> None:
    """Only features about the template itself, with harmless values; what is set once stays."""
    async with running_daemon(tmp_path, policy=POLICY, announced={"tpl": ANNOUNCED}) as daemon:
        await daemon.populate()
        await daemon.ok("admin.vm.feature.Set+supported-rpc.old", "tpl", b"1")
        with daemon.qubes.events.subscribe() as heard:
            reply = await daemon.send(b"qubes.FeaturesRequest+ tpl name dom0\0", door=Door.MISC)
            assert reply == b"0\0"
            names = [event.name for event in heard._events]
        assert await _features(daemon, "tpl") == {
            "qrexec": "1",
            "os": "Linux",
            "supported-rpc.qubes.Filecopy": "1",
            "vmexec": "1",
        }
        assert names[0] == "features-request"
        assert names[-1] == "template-postinstall"


async def test_a_template_announces_in_the_call_itself(tmp_path: Path) -> None:
    """Lines of the payload count like what was announced before; nothing of them stays."""
    payload = b"qrexec=1\nos=Linux\nos-version=12 a=b\nservice.crond=1\nsupported-rpc.x=1\n"
    async with running_daemon(tmp_path, policy=POLICY) as daemon:
        await daemon.populate()
        request = b"qubes.FeaturesRequest+ tpl name dom0\0"
        assert await daemon.send(request + payload, door=Door.MISC) == b"0\0"
        told = {"qrexec": "1", "os": "Linux", "os-version": "12 a=b", "supported-rpc.x": "1"}
        assert await _features(daemon, "tpl") == told
        assert await daemon.send(request + b"os=Linux", door=Door.MISC) == b"0\0"
        del told["supported-rpc.x"]
        assert await _features(daemon, "tpl") == told


@pytest.mark.parametrize(
    "payload",
    [
        b"os\n",
        b"os=Linux\nos=Windows\n",
        b"os=Linux\n\x1b]0;owned\x07\n",
        b"os=" + b"x" * 49_152,
        b"".join(b"os-%d=1\n" % number for number in range(1_001)),
    ],
    ids=["no value", "twice", "escapes", "long", "many"],
)
async def test_a_malformed_announcement_is_refused_as_a_whole(
    tmp_path: Path, payload: bytes
) -> None:
    """QSB-087: the refusal shows no escape byte either."""
    async with running_daemon(tmp_path, policy=POLICY) as daemon:
        await daemon.populate()
        request = b"qubes.FeaturesRequest+ tpl name dom0\0" + payload
        reply = await daemon.send(request, door=Door.MISC)
        assert reply.startswith(b"2\0ProtocolError\0")
        assert b"\x1b" not in reply
        assert await _features(daemon, "tpl") == {}


async def test_hostile_names_and_values_in_an_announcement_are_left_out(tmp_path: Path) -> None:
    """QSB-087: what is taken over is printable, and about the template itself."""
    payload = b"\n".join(
        [
            b"os=\x1b[2J",
            b"os-version=$(reboot)",
            b"os-eol=\xff",
            b"../os-like=1",
            b"=1",
            b"supported-rpc.\x1b=1",
            b"os-distribution=" + b"x" * 256,
            b"internal=1",
            b"service.updates-proxy-setup=1",
            b"tag-created-vm-with=x",
            b"supported-feature.y=1",
        ]
    )
    async with running_daemon(tmp_path, policy=POLICY) as daemon:
        await daemon.populate()
        request = b"qubes.FeaturesRequest+ tpl name dom0\0" + payload
        assert await daemon.send(request, door=Door.MISC) == b"0\0"
        assert await _features(daemon, "tpl") == {"supported-feature.y": "1"}


async def test_a_decision_of_the_administrator_outlives_an_announcement(tmp_path: Path) -> None:
    """What is stored already is not overruled by the qube's own word."""
    async with running_daemon(tmp_path, policy=POLICY, announced={"tpl": ANNOUNCED}) as daemon:
        await daemon.populate()
        await daemon.ok("admin.vm.feature.Set+qrexec", "tpl", b"")
        await daemon.send(b"qubes.FeaturesRequest+ tpl name dom0\0", door=Door.MISC)
        assert await daemon.ok("admin.vm.feature.Get+qrexec", "tpl") == ""


async def test_a_qube_with_a_template_announces_nothing(tmp_path: Path) -> None:
    """Its root, and so what it supports, is not its own."""
    async with running_daemon(tmp_path, policy=POLICY, announced={"work": ANNOUNCED}) as daemon:
        await daemon.populate()
        assert (
            await daemon.send(b"qubes.FeaturesRequest+ work name dom0\0", door=Door.MISC) == b"0\0"
        )
        assert await _features(daemon, "work") == {}


async def test_announcements_fill_a_qube_to_its_bound_and_no_further(tmp_path: Path) -> None:
    """Those of one announcement count together, however many fit one by one."""
    many = {f"features-request/supported-feature.f{n}": "1" for n in range(9)}
    async with running_daemon(tmp_path, policy=POLICY, announced={"tpl": many}) as daemon:
        await daemon.populate()
        tpl = daemon.qubes.system.qube("tpl")
        most = MOST_FEATURES - LEFT_TO_OTHERS
        ops = (SetFeature(tpl.uuid, FeatureName(f"x{n}"), "1") for n in range(most - 4))
        await daemon.qubes.commit(Change(tuple(ops)))
        await daemon.send(b"qubes.FeaturesRequest+ tpl name dom0\0", door=Door.MISC)
        assert len(tpl.features) == most


async def test_announcements_leave_room_for_what_others_say_of_a_qube(tmp_path: Path) -> None:
    """A template that announces all it can hides no updates, and shuts no administrator out."""
    many = b"".join(b"supported-rpc.f%d=1\n" % n for n in range(MOST_ANNOUNCED))
    async with running_daemon(tmp_path, policy=POLICY) as daemon:
        await daemon.populate()
        request = b"qubes.FeaturesRequest+ tpl name dom0\0"
        assert await daemon.send(request + many, door=Door.MISC) == b"0\0"
        tpl = daemon.qubes.system.qube("tpl")
        assert len(tpl.features) == MOST_FEATURES - LEFT_TO_OTHERS
        told = b"qubes.NotifyUpdates+ work name dom0\x003"
        assert await daemon.send(told, door=Door.MISC) == b"0\0"
        assert tpl.features[FeatureName("updates-available")] == "1"
        await daemon.ok("admin.vm.feature.Set+internal", "tpl", b"1")
        assert await daemon.send(request + many, door=Door.MISC) == b"0\0"
        assert tpl.features[FeatureName("internal")] == "1"


@pytest.mark.parametrize(
    ("caller", "payload", "about", "found"),
    [
        ("tpl", b"3\n", "tpl", "1"),
        ("work", b"3", "tpl", "1"),
        ("tpl", b"0", "tpl", ""),
    ],
)
async def test_updates_are_noted_where_they_are_installed(
    tmp_path: Path, caller: str, payload: bytes, about: str, found: str
) -> None:
    """On the qube itself, or on the template that it is based on."""
    async with running_daemon(tmp_path, policy=POLICY) as daemon:
        await daemon.populate()
        raw = f"qubes.NotifyUpdates+ {caller} name dom0".encode() + b"\0" + payload
        assert await daemon.send(raw, door=Door.MISC) == b"0\0"
        features = await _features(daemon, about)
        assert features["updates-available"] == found
        assert ("last-update" in features) == (found == "")


@pytest.mark.parametrize(("caller", "payload"), [("work", b"3"), ("tpl", b"3"), ("tpl", b"0")])
async def test_updates_that_are_noted_already_are_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caller: str, payload: bytes
) -> None:
    """A flood costs no write; when it was checked is noted anew a minute later."""
    raw = f"qubes.NotifyUpdates+ {caller} name dom0".encode() + b"\0" + payload
    async with running_daemon(tmp_path, policy=POLICY) as daemon:
        await daemon.populate()
        assert await daemon.send(raw, door=Door.MISC) == b"0\0"
        noted = await _features(daemon, "tpl")
        written: list[str] = []
        store = daemon.qubes._ledger._store
        write = store.write

        def note(ops: tuple[SetFeature, ...]) -> None:
            written.extend(op.name for op in ops)
            write(ops)

        monkeypatch.setattr(store, "write", note)
        for _ in range(20):
            assert await daemon.send(raw, door=Door.MISC) == b"0\0"
        assert written == []
        assert await _features(daemon, "tpl") == noted
        for old in (b"2001-01-01 00:00:00", b"9999-01-01 00:00:00", b"lately"):
            await daemon.ok("admin.vm.feature.Set+last-updates-check", "tpl", old)
            written.clear()
            assert await daemon.send(raw, door=Door.MISC) == b"0\0"
            assert written == ["last-updates-check"]


async def test_a_qube_cannot_hide_the_updates_of_its_template(tmp_path: Path) -> None:
    """Its word that there are none counts for nothing."""
    async with running_daemon(tmp_path, policy=POLICY) as daemon:
        await daemon.populate()
        await daemon.send(b"qubes.NotifyUpdates+ tpl name dom0\x003", door=Door.MISC)
        await daemon.send(b"qubes.NotifyUpdates+ work name dom0\x000", door=Door.MISC)
        assert await daemon.ok("admin.vm.feature.Get+updates-available", "tpl") == "1"


@pytest.mark.parametrize("payload", [b"", b"many", b"-1", b"1 2", b"9" * 20, b"\xff"])
async def test_what_is_no_number_of_updates_is_refused(tmp_path: Path, payload: bytes) -> None:
    """Nothing is stored."""
    async with running_daemon(tmp_path, policy=POLICY) as daemon:
        await daemon.populate()
        raw = b"qubes.NotifyUpdates+ tpl name dom0\0" + payload
        assert (await daemon.send(raw, door=Door.MISC)).startswith(b"2\0ProtocolError\0")
        assert await _features(daemon, "tpl") == {}


async def test_the_policy_decides_who_may_announce(tmp_path: Path) -> None:
    """Without a rule nobody may, and each socket serves its own methods only."""
    async with running_daemon(tmp_path) as daemon:
        await daemon.populate()
        raw = b"qubes.FeaturesRequest+ tpl name dom0\0"
        assert (await daemon.send(raw, door=Door.MISC)).startswith(b"2\0PermissionDenied\0")
        assert (await daemon.send(raw)).startswith(b"2\0ProtocolError\0")
        raw = b"admin.vm.List+ dom0 name dom0\0"
        assert (await daemon.send(raw, door=Door.MISC)).startswith(b"2\0ProtocolError\0")


async def test_a_qube_that_floods_is_refused_and_others_are_heard(tmp_path: Path) -> None:
    """Each has a budget of its own, for all that it says of itself; later it is heard again."""
    now = 0.0
    words = Budget(most=2, seconds=6.0, pause=0, clock=lambda: now)
    async with running_daemon(tmp_path, policy=POLICY, words=words) as daemon:
        await daemon.populate()

        async def says(
            caller: str, service: str = "qubes.NotifyUpdates", payload: bytes = b"3"
        ) -> bytes:
            raw = f"{service}+ {caller} name dom0".encode() + b"\0" + payload
            return await daemon.send(raw, door=Door.MISC)

        assert await says("tpl") == b"0\0"
        assert await says("tpl", "qubes.FeaturesRequest", b"os=Linux") == b"0\0"
        for service in ("qubes.NotifyUpdates", "qubes.FeaturesRequest"):
            refused = await says("tpl", service, b"0")
            assert refused.startswith(b"2\0QubesException\0")
            assert b"qube `tpl` says too much of itself: 2 calls in a row, then one in 6" in refused
            assert b"hint: try again in 6 s" in refused
        assert (await _features(daemon, "tpl"))["updates-available"] == "1"
        assert await says("work") == b"0\0"
        for _ in range(5):
            assert await says("dom0") == b"0\0"
        now = 6.0
        assert await says("tpl", payload=b"0") == b"0\0"
        assert b"try again in 6 s" in await says("tpl")


async def test_a_call_that_is_refused_anyway_counts_too(tmp_path: Path) -> None:
    """Wrong calls are no way around the budget; those of a qube that is not there end at once."""
    words = Budget(most=3, pause=0)
    async with running_daemon(tmp_path, policy=POLICY, words=words) as daemon:
        await daemon.populate()
        wrong = b"qubes.NotifyUpdates+arg tpl name dom0\x003"
        answers = [await daemon.send(wrong, door=Door.MISC) for _ in range(4)]
        assert [b"says too much" in answer for answer in answers] == [False] * 3 + [True]
        nobody = b"qubes.NotifyUpdates+ nobody name dom0\x003"
        assert b"QubesVMNotFoundError" in await daemon.send(nobody, door=Door.MISC)
