"""Notes: what is kept of free text, and what is refused."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_world import World

from caisson.errors import NotesError, ProtocolError
from caisson.model import notes


@settings(deadline=None)
@given(st.text())
def test_safe_text_is_kept_and_the_rest_becomes_underscores(text: str):
    """Each code point for itself, so that the length stays; a second pass changes nothing."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        return
    kept = notes.parse(encoded)
    assert len(kept) == len(text)
    for before, after in zip(text, kept, strict=True):
        assert after == before or (after == "_" and unicodedata.category(before)[0] in "CZ")
    assert notes.parse(kept.encode()) == kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("tab\tand\nline", "tab\tand\nline"),
        ("ä 日本 \N{GRINNING FACE}", "ä 日本 \N{GRINNING FACE}"),
        ("<a href='x'>`$(id)`%s", "<a href='x'>`$(id)`%s"),
        ("\x1b[31mred\r\x00\x7f\x9b", "_[31mred____"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe", "_gpj.exe"),
        ("a\N{ZERO WIDTH SPACE}b\N{LINE SEPARATOR}c\ue000\uffff", "a_b_c__"),
    ],
)
def test_what_a_terminal_or_a_reader_would_misunderstand_is_replaced(text: str, kept: str):
    """Section 2.8: tabs and line ends stay, and every writing system does."""
    assert notes.parse(text.encode()) == kept


@pytest.mark.parametrize("payload", [b"\xff", b"x" * 256_001, "ä".encode()[:1], b"\xed\xa0\x80"])
def test_what_is_no_note_is_refused(payload: bytes):
    """Too long by bytes, or not UTF-8."""
    with pytest.raises(ProtocolError):
        notes.parse(payload)


def test_longest_note_is_accepted():
    """256,000 bytes."""
    assert len(notes.parse("ä".encode() * 128_000)) == 128_000


def test_same_notes_are_no_change(world: World):
    """And the admin qube has none."""
    work = world.app("work")
    world.do(world.system.plan_notes(work, b"mine"))
    assert work.notes == "mine"
    assert world.system.plan_notes(work, b"mine").ops == ()
    with pytest.raises(NotesError):
        world.system.plan_notes(world.system.dom0, b"x")
