"""Tokens of copies: bounded, and good for one caller once."""

from __future__ import annotations

from uuid import UUID

import pytest

from caisson.admin.copy_tokens import MOST_CALLERS, CopyTokens
from caisson.errors import CopyTokenNotFoundError
from caisson.model import Klass, Qube
from caisson.model.volumes import PRIVATE
from caisson.names import QubeName


def qube(number: int) -> Qube:
    """A qube that is like no other."""
    return Qube(UUID(int=number), QubeName(f"q{number}"), Klass.APP, number)


def test_callers_that_are_gone_do_not_pile_up():
    """Each disposable is a caller of its own; the one that came first gives way."""
    tokens, source = CopyTokens(), (qube(0), PRIVATE)
    callers = [qube(number) for number in range(1, MOST_CALLERS + 2)]
    issued = [tokens.issue(caller, source) for caller in callers]
    with pytest.raises(CopyTokenNotFoundError):
        tokens.redeem(callers[0], issued[0])
    for caller, token in zip(callers[1:], issued[1:], strict=True):
        assert tokens.redeem(caller, token) == source
        with pytest.raises(CopyTokenNotFoundError):
            tokens.redeem(caller, token)
    assert not tokens._of
