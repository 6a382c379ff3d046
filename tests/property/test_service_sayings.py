"""What programs say on their standard error, as it comes to the log."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from caisson.daemons.logs import _harmless
from caisson.qrexec.saying import Saying, harmless


def descriptors() -> set[str]:
    """Those that are open."""
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@given(st.binary(max_size=300), st.integers(1, 200))
def test_a_line_is_printable_and_bounded(untrusted: bytes, most: int):
    """QSB-087: whatever it is, it moves no cursor; what is told of it can be read back."""
    text = harmless(untrusted, most)
    assert text.isprintable()
    assert text.isascii() or len(untrusted) > most
    assert len(text) <= 4 * most + 1
    if b"\\" not in untrusted:
        read = text.removesuffix("…").encode().decode("unicode_escape").encode("latin-1")
        assert read == untrusted[:most]
    if len(untrusted) <= most:
        assert _harmless(None, "", {"text": text})["text"] == text


@given(st.lists(st.binary(max_size=2000), max_size=150))
@example([b"x\n"] * (Saying.MOST_LINES + 1))
async def test_lines_are_told_in_order_up_to_a_number(chunks: list[bytes]):
    """However they come in pieces; the rest is counted, and nothing is left open."""
    before = descriptors()
    told: list[str] = []
    left_out: list[int] = []
    saying = Saying(told.append, left_out.append)
    for chunk in chunks:
        os.write(saying.writer, chunk)
        saying._readable()
    saying.close()
    whole = b"".join(chunks).split(b"\n")
    lines = whole if whole[-1] else whole[:-1]
    expected = [harmless(line, Saying.LONGEST_LINE) for line in lines]
    assert told == expected[: Saying.MOST_LINES]
    assert sum(left_out) == max(0, len(lines) - Saying.MOST_LINES)
    assert descriptors() <= before
