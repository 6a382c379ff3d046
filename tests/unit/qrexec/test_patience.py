"""How often a qube may ask, and for how long it is not heard, on a clock of the test's."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caisson.qrexec import patience
from caisson.qrexec.patience import MUTED_FOR, Allowance, Mutes


class Clock:
    """Stands still until it is set forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def test_burst_is_spent_and_comes_back_one_by_one():
    """Three at once, then one every ten seconds, never more than three."""
    clock = Clock()
    allowance = Allowance(3, 10.0, clock)
    assert [allowance.take("a") for _ in range(4)] == [True, True, True, False]
    clock.now += 9.9
    assert not allowance.has("a")
    clock.now += 0.2
    assert [allowance.take("a") for _ in range(2)] == [True, False]
    clock.now += 1e6
    assert [allowance.take("a") for _ in range(4)] == [True, True, True, False]


def test_one_qube_spends_nothing_of_anothers():
    """Each has a bucket of its own."""
    allowance = Allowance(1, 10.0, Clock())
    assert allowance.take("a")
    assert not allowance.take("a")
    assert allowance.take("b")


def test_token_that_is_given_back_can_be_taken_again_but_makes_no_bucket_fuller():
    """What the person wanted is not counted."""
    allowance = Allowance(2, 10.0, Clock())
    allowance.give_back("a")
    assert [allowance.take("a") for _ in range(3)] == [True, True, False]
    allowance.give_back("a")
    assert [allowance.take("a") for _ in range(2)] == [True, False]


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=60))
def test_no_qube_gets_more_than_its_rate(steps: list[tuple[float, bool]]):
    """In any time: the burst, and one for each ten seconds."""
    clock = Clock()
    began = clock.now
    allowance = Allowance(4, 10.0, clock)
    taken = 0
    for seconds, wish in steps:
        clock.now += seconds
        taken += wish and allowance.take("a")
        assert taken <= 4 + (clock.now - began) / 10 + 1e-6


def test_names_that_never_come_again_are_forgotten():
    """A disposable after the other costs no memory for good; who is out of tokens stays so."""
    clock = Clock()
    allowance = Allowance(2, 10.0, clock)
    for number in range(10 * patience._MANY):
        allowance.take(f"disp{number}")
        clock.now += 1
    assert len(allowance._levels) <= patience._MANY
    assert allowance.take("last")
    assert allowance.take("last")
    for number in range(2 * patience._MANY):
        allowance.take(f"other{number}")
    assert not allowance.has("last")


def test_mute_ends_by_itself_and_tells_who_and_how_long():
    """Ten minutes, for that qube alone."""
    clock = Clock()
    mutes = Mutes(clock)
    mutes.begin("work", "uid 1000")
    clock.now += MUTED_FOR - 1
    mute = mutes.find("work")
    assert mute is not None
    assert (mute.by, round(mute.left)) == ("uid 1000", 1)
    assert mutes.find("play") is None
    clock.now += 1
    assert mutes.find("work") is None


def test_mutes_that_are_over_are_forgotten():
    """The list stays short."""
    clock = Clock()
    mutes = Mutes(clock)
    for number in range(100):
        mutes.begin(f"disp{number}", "uid 0")
        clock.now += MUTED_FOR
    assert len(mutes._until) == 1
