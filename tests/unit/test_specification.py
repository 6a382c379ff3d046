"""The specification and the tests belong together."""

from __future__ import annotations

import re

from caisson.paths import SHIPPED

_FILE = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
_FURTHER = re.compile(r"`::(\w+)`")


def test_every_promise_names_a_test_that_exists():
    """A promise whose test was renamed or removed is no promise."""
    text = (SHIPPED / "SPECIFICATION.md").read_text()
    named = _FILE.findall(text)
    assert named
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (SHIPPED / file).is_file()
        or (test and f"def {test}(" not in (SHIPPED / file).read_text())
    ]
    everything = "".join((SHIPPED / file).read_text() for file in {file for file, _ in named})
    missing += [test for test in _FURTHER.findall(text) if f"def {test}(" not in everything]
    assert missing == []
