"""Who hears of what, in which order (sheet `admin-api`, section 3.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from lifecycle_lab import BASE, NET, TEMPLATE, WORK, Lab, until

from caisson.errors import EngineError
from caisson.lifecycle import EventBus, events
from caisson.model import Event, Klass, PowerState
from caisson.names import DOM0, LabelName, PropertyName, QubeName

RESETS = [f"property-reset:{name}" for name in ("xid", "stubdom_xid", "start_time")]
START = [
    "domain-pre-start",
    "domain-verify-files",
    "domain-pre-spawn",
    *RESETS,
    "domain-spawn",
    "domain-qdb-create",
    "domain-pre-unpaused",
    "domain-unpaused",
    "domain-start",
]
STOP = ["domain-stopped", *RESETS, "domain-shutdown"]


async def test_a_start_and_a_stop_are_told_in_order(lab: Lab):
    """With the run's own `start_guid` in each event of a start."""
    await lab.qubes.start(WORK)
    told = [event for event in lab.heard._events if event.subject == WORK]
    guids = {event.kwargs["start_guid"] for event in told if "start_guid" in event.kwargs}
    assert len(guids) == 1
    assert lab.news(WORK) == START
    await lab.qubes.shutdown(WORK, wait=True)
    await lab.settle()
    assert lab.news(WORK) == ["domain-pre-shutdown", *STOP]


async def test_what_is_computed_has_changed_when_its_reset_is_told(lab: Lab):
    """A client that reads `xid` on the event must not get the old one."""
    seen = []

    async def look() -> None:
        with lab.qubes.events.subscribe() as heard:
            async for event in heard:
                if event.name == "property-reset:xid":
                    seen.append(lab.system.value(lab.system.qube(WORK), PropertyName("xid")))  # noqa: PERF401

    looking = asyncio.create_task(look())
    await lab.settle()
    await lab.qubes.start(WORK)
    pid = lab.instance(WORK).pid
    await lab.qubes.kill(WORK)
    await until(lambda: len(seen) == 2)
    assert seen == [pid, -1]
    looking.cancel()


async def test_a_qube_that_ends_by_itself_is_told_like_any_other(lab: Lab):
    """Without the request."""
    await lab.qubes.start(WORK)
    lab.news()
    lab.instance(WORK).end()
    await until(lambda: lab.state(WORK) is PowerState.HALTED)
    await lab.settle()
    assert lab.news(WORK) == STOP


async def test_a_pause_is_told_before_and_after(lab: Lab):
    """And its end."""
    await lab.qubes.start(WORK)
    lab.news()
    await lab.qubes.pause(WORK)
    await lab.qubes.unpause(WORK)
    assert lab.news(WORK) == [
        "domain-pre-paused",
        "domain-paused",
        "domain-pre-unpaused",
        "domain-unpaused",
    ]


async def test_a_network_qube_is_told_to_have_started_before_its_client_spawns(lab: Lab):
    """The chain comes up from its end."""
    await lab.network()
    await lab.qubes.start(WORK)
    told = [(event.subject, event.name) for event in lab.heard._events]
    assert told.index((NET, "domain-start")) < told.index((WORK, "domain-pre-spawn"))


async def test_a_creation_and_a_removal_are_told_in_order(lab: Lab):
    """`domain-add` comes before anything else about the qube, `domain-delete` after."""
    name = QubeName("new")
    await lab.qubes.create(Klass.APP, name, LabelName("red"), None, DOM0)
    told = lab.news(name)
    assert told[0] == "domain-add"
    assert told[-1] == "domain-create-on-disk"
    await lab.qubes.remove(name)
    assert lab.news(name) == ["domain-pre-delete", "domain-delete", "domain-remove-from-disk"]


async def test_the_whole_life_of_a_disposable_is_told(lab: Lab):
    """From `domain-add` to its removal, which comes last."""
    name = await lab.qubes.create_disposable(BASE, DOM0)
    await lab.qubes.start(name)
    await lab.qubes.kill(name)
    told = lab.news(name, without=("domain-tag-add", "property-"))
    assert told == [
        "domain-add",
        "domain-create-on-disk",
        *(event for event in START if not event.startswith("property-")),
        "domain-stopped",
        "domain-shutdown",
        "domain-pre-delete",
        "domain-delete",
        "domain-remove-from-disk",
    ]


async def test_a_failed_start_is_told_once_and_no_start_before_it(lab: Lab):
    """Before the engine, nothing stopped; after it, the end follows."""
    lab.engine.fail_start = EngineError("no")
    with pytest.raises(EngineError):
        await lab.qubes.start(WORK)
    assert lab.news(WORK) == [*START[:3], "domain-start-failed"]
    lab.engine.fail_start = None
    lab.engine.on_start = lambda instance: instance.end()
    with pytest.raises(EngineError):
        await lab.qubes.start(WORK)
    assert lab.news(WORK) == [*START[:-3], "domain-start-failed", *STOP]


async def test_events_come_in_the_order_of_the_changes_though_the_broker_is_slow(lab: Lab):
    """A change that the broker need not hear of does not overtake one that it must."""
    lab.door.hold = asyncio.Event()
    name = QubeName("new")
    creating = asyncio.create_task(lab.qubes.create(Klass.APP, name, LabelName("red"), None, DOM0))
    await until(lambda: name in lab.system.qubes)
    setting = asyncio.create_task(lab.qubes.set_property(name, PropertyName("memory"), "500"))
    await until(lambda: lab.system.qube(name).stored.get(PropertyName("memory")) == "500")
    await lab.settle()
    assert lab.news() == []
    lab.door.hold.set()
    await asyncio.gather(creating, setting)
    told = lab.news(name)
    assert told[0] == "domain-add"
    assert told.index("domain-add") < told.index("property-set:memory")


async def test_the_end_of_a_qube_is_not_told_before_its_start(lab: Lab):
    """Though it ends while the broker is still told of the start."""
    lab.door.hold = asyncio.Event()
    starting = asyncio.create_task(lab.qubes.start(WORK))
    await until(lambda: lab.state(WORK) is PowerState.RUNNING)
    lab.instance(WORK).end()
    await lab.settle()
    lab.door.hold.set()
    await starting
    await until(lambda: lab.state(WORK) is PowerState.HALTED)
    await lab.settle()
    assert lab.news(WORK) == [*START, *STOP]
    assert lab.untouched(WORK)


async def test_a_listener_that_is_too_slow_loses_the_subscription_and_not_single_events(
    monkeypatch: pytest.MonkeyPatch,
):
    """It hears nothing further, so that it must read the state anew; others hear on."""
    monkeypatch.setattr(events, "_BACKLOG", 3)
    bus = EventBus()
    slow, quick = bus.subscribe(), bus.subscribe()
    made = [Event(None, str(number), {}) for number in range(5)]
    heard = []
    for event in made:
        bus.publish(event)
        heard.append(await anext(quick))
    assert heard == made
    assert [event async for event in slow] == []
    bus.publish(made[0])
    assert [event async for event in slow] == []


async def test_a_listener_that_leaves_too_much_text_unread_loses_the_subscription(
    monkeypatch: pytest.MonkeyPatch,
):
    """Few events may be long; what was read does not count any more."""
    monkeypatch.setattr(events, "_MOST_BYTES", 1_000)
    bus = EventBus()
    slow, quick = bus.subscribe(), bus.subscribe()
    for _ in range(10):
        event = Event(None, "n" * 100, {"k" * 100: "v" * 50})
        bus.publish(event)
        assert await anext(quick) == event
        assert sum(map(events._size, slow._events)) <= 1_000
    assert await anext(slow, None) is None
    assert bus.listeners == 1


@pytest.mark.parametrize("patience", [None, 60.0])
@pytest.mark.parametrize("by_event", [True, False])
async def test_a_listener_that_lags_too_long_loses_the_subscription(
    patience: float | None, by_event: bool
):
    """However little it leaves unread, and though it takes one from time to time."""
    now = 0.0
    bus = EventBus(clock=lambda: now)
    slow = bus.subscribe(patience=patience)
    made = [Event(None, str(number), {}) for number in range(4)]
    bus.publish(*made[:3])
    now = 59.0
    assert await anext(slow) == made[0]
    now = 61.0
    if by_event:
        bus.publish(made[3])
    assert await anext(slow, None) == (made[1] if patience is None else None)
    assert bus.listeners == (patience is None)


async def test_a_listener_that_keeps_up_stays_though_it_never_rests():
    """There was never a moment without something to read, but nothing was old."""
    now = 0.0
    bus = EventBus(clock=lambda: now)
    heard = bus.subscribe(patience=60.0)
    bus.publish(Event(None, "0"))
    for number in range(10):
        now += 50.0
        bus.publish(Event(None, str(number + 1)))
        assert (await anext(heard)).name == str(number)


async def test_a_long_queue_is_not_worked_off_in_one_go():
    """Others get their turns meanwhile, though every event is there already."""
    bus = EventBus()
    heard = bus.subscribe()
    bus.publish(*(Event(None, str(number)) for number in range(1_000)))

    async def read() -> None:
        for _ in range(1_000):
            await anext(heard)

    reading = asyncio.create_task(read())
    turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 1_000 / events._UNBROKEN


async def test_what_is_not_heard_is_never_queued_and_is_judged_once_for_all_alike():
    """One look a batch, one judgement an event, however many listen the same way."""
    looks = 0
    judged: list[str] = []

    def hearing() -> Callable[[Event], bool]:
        nonlocal looks
        looks += 1
        return lambda event: judged.append(event.name) or event.name != "b"  # type: ignore[func-returns-value]

    bus = EventBus()
    alike = [bus.subscribe(hearing) for _ in range(8)]
    bus.publish(Event(None, "a"), Event(None, "b"))
    bus.publish(Event(None, "c"))
    assert (looks, judged) == (2, ["a", "b", "c"])
    assert [[event.name for event in each.take()] for each in alike] == [["a", "c"]] * 8


async def test_a_hearing_that_fails_ends_its_own_subscriptions_only():
    """What has happened is told to the others, and to whoever made it happen as well."""

    def broken() -> Callable[[Event], bool]:
        raise ZeroDivisionError

    bus = EventBus()
    deaf, sound = bus.subscribe(broken), bus.subscribe()
    bus.publish(Event(None, "a"))
    assert await anext(deaf, None) is None
    assert (await anext(sound)).name == "a"


async def test_every_event_about_a_qube_says_which_one(lab: Lab):
    """Also those that tell its name in `vm`; a name may pass to another qube."""
    name = QubeName("new")
    with lab.qubes.events.subscribe() as heard:
        for _ in range(2):
            qube = await lab.qubes.create(Klass.APP, name, LabelName("red"), None, DOM0)
            await lab.qubes.set_property(name, PropertyName("memory"), "500")
            await lab.qubes.start(name)
            await lab.qubes.kill(name)
            await lab.settle()
            await lab.qubes.remove(name)
            told = heard.take()
            assert {"domain-add", "domain-start", "domain-remove-from-disk"} <= {
                event.name for event in told
            }
            assert {event.about for event in told} == {qube.uuid}


async def test_a_subscription_that_ends_wakes_its_listener():
    """The daemon ends no stream by leaving it waiting."""
    bus = EventBus()
    with bus.subscribe() as heard:
        waiting = asyncio.ensure_future(anext(heard, None))
        await asyncio.sleep(0)
    assert await waiting is None
    bus.publish(Event(None, "x", {}))


async def test_events_of_one_qube_are_for_every_listener_alike(lab: Lab):
    """Two listeners hear the same."""
    with lab.qubes.events.subscribe() as other:
        await lab.qubes.start(TEMPLATE)
        await lab.qubes.kill(TEMPLATE)
        assert list(other._events) == list(lab.heard._events)
