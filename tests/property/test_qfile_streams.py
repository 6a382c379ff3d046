"""Any stream of files, sound or damaged: one answer, and nothing outside of the directory."""

from __future__ import annotations

import os
import tempfile
import zlib
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from qfile_peer import DIRECTORY, FILE, LINK, Entry, Receiver, stream

NAMES = st.one_of(
    st.lists(st.sampled_from([b"a", b"b", b"..", b".", b"", b"\xff"]), max_size=4).map(b"/".join),
    st.binary(max_size=8),
)
TYPES = st.sampled_from([FILE, DIRECTORY, LINK, 0o010000, 0o020000, 0])
ENTRIES = st.builds(
    Entry,
    NAMES,
    st.builds(lambda kind, mode: kind | mode, TYPES, st.sampled_from([0, 0o644, 0o755, 0o7777])),
    st.one_of(NAMES, st.binary(max_size=20)),
    length=st.sampled_from([-1, -1, -1, 0, 1, 2**32, 2**64 - 1]),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A stream of a few entries, with some bytes changed and a piece cut off."""
    raw = bytearray(stream(*draw(st.lists(ENTRIES, max_size=5))))
    for at in draw(st.lists(st.integers(0, len(raw) - 1), max_size=3)):
        raw[at] = draw(st.integers(0, 255))
    return bytes(raw[: draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))])


@settings(max_examples=150, deadline=None)
@given(damaged(), st.sampled_from([[], ["--allow-all-names"], ["--allow-unsafe-symlinks"]]))
def test_any_stream_gets_one_answer_and_stays_inside(raw: bytes, options: list[str]) -> None:
    """A result with the exit code, or none and 1; success only where a header says the end."""
    with tempfile.TemporaryDirectory() as home:
        place = Path(home, "in")
        place.mkdir()
        received = Receiver(place, options).take(raw)
        assert os.listdir(home) == ["in"]  # noqa: PTH208
        if received.result is None:
            assert received.exit_code == 1
            return
        code = received.result.code
        assert received.exit_code == (code if code == 0 else (code & 0xFF) or 1)
        if code == 0:
            nameless = (
                end for end in range(32, len(raw) + 1) if raw[end - 32 : end - 28] == bytes(4)
            )
            assert received.result.checksum in {zlib.crc32(raw[:end]) for end in nameless}
