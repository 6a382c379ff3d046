"""What a prompt shows of a question, and what a broker takes for an answer, whatever the bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caisson.qrexec.prompt import Notice, Question, parse_answer
from caisson.tools.prompting import words
from caisson.tools.prompting.agent import Verdict

OURS = {words.BLOCK, "…", "→"}


def harmless(text: str) -> bool:
    """Printable ASCII, and the few signs that are ours."""
    return all(" " <= c <= "~" or c in OURS for c in text)


@given(st.text(), st.integers(1, 50))
def test_names_are_shown_as_printable_ascii_and_not_endless(text: str, longest: int):
    """A name never contains a block, a control character or a letter that looks like another."""
    shown = words.plain(text, longest)
    assert all(" " <= c <= "~" for c in shown.partition("…")[0])
    assert shown.count("…") == (len(text) > longest)
    assert len(shown) <= 10 * longest + 40


@given(st.text(), st.text(), st.text(), st.text(), st.text())
def test_lines_are_harmless_whatever_they_are_about(a: str, b: str, c: str, d: str, e: str):
    """Only the block in front of a qube is ours; a colour that is none is none."""
    question = Question(a, b, c, [d], labels={a: e, d: b}, isolation={a: d})
    for line in (
        words.qube(a, question),
        words.qube(d, question),
        words.service(b, c),
        words.notice(Notice(e, b, c, a, d, muted=7)),
    ):
        assert harmless(line.plain)
    assert words.qube(a, question).plain.count(words.BLOCK) == 1


@given(st.text(alphabet="0123456789abcdefx#;[] \x1b", max_size=12))
def test_colour_is_one_or_none(label: str):
    """Six digits, whatever the label says."""
    colour = words.colour(label)
    assert colour is None or (len(colour) == 7 and int(colour[1:], 16) >= 0)


@given(st.binary())
def test_answer_is_a_refusal_unless_it_allows(untrusted: bytes):
    """No bytes make another one of it."""
    answer = parse_answer(untrusted, "x")
    assert (answer.target is None) or untrusted.startswith(b"allow:")
    assert not answer.for_now or untrusted.rstrip(b"\n") == b"deny:for-now"


@given(
    st.one_of(st.none(), st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
)
def test_verdict_is_understood_as_it_was_meant(target: str | None):
    """What the agent sends, the broker reads."""
    for verdict in (Verdict(target), Verdict(target, for_now=target is None)):
        answer = parse_answer(verdict.encode(), "x")
        assert (answer.target, answer.for_now) == verdict
