"""What the sockets for decisions read and write."""

from __future__ import annotations

import contextlib

from hypothesis import example, given
from hypothesis import strategies as st

from caisson.errors import CaissonError, ProtocolError
from caisson.names import ServiceArgument, ServiceName
from caisson.policy import Location, SystemInfo, parse_policy
from caisson.policy.outcome import Allow
from caisson.qrexec import evaluating
from caisson.qrexec.advising import parse_head
from caisson.qrexec.evaluating import Kind, parse_payload
from caisson.qrexec.judging import View
from caisson.qrexec.policy_messages import (
    LONGEST_ANSWER,
    Query,
    allowed,
    encode_query,
    is_whole,
    parse_query,
)

NAMES = st.from_regex(r"[A-Za-z0-9_.:-]{0,63}", fullmatch=True)
TARGETS = st.from_regex(r"[A-Za-z0-9_.@:-]{0,63}", fullmatch=True)
SERVICES = st.from_regex(r"[A-Za-z0-9._-]{1,80}", fullmatch=True).map(ServiceName)
ARGUMENTS = st.from_regex(r"[A-Za-z0-9._+-]{0,80}", fullmatch=True).map(ServiceArgument)
QUERIES = st.builds(Query, NAMES, TARGETS, SERVICES, ARGUMENTS, NAMES, st.booleans(), st.booleans())
LINES = st.sampled_from(
    [
        b"source=work",
        b"source=",
        b"intended_target=@default",
        b"intended_target=vault",
        b"service_and_arg=my.Service+x=y",
        b"service_and_arg=my.Service",
        b"requested_source=far",
        b"just_evaluate=yes",
        b"just_evaluate=1",
        b"assume_yes_for_ask=no",
        b"domain_id=3",
        b"source",
        b"",
        b"\x1b[2J=\0",
    ]
)
QUBES = ("work", "vault", "gui", "dom0", "hid")
SYSTEM = SystemInfo.from_dict(
    {
        "dom0": {"type": "AdminVM"},
        "work": {"type": "AppVM", "tags": ["guivm-gui"], "default_dispvm": "dvm"},
        "vault": {"type": "AppVM", "tags": ["guivm-gui"]},
        "hid": {"type": "AppVM", "tags": ["guivm-gui"], "internal": "1"},
        "gui": {"type": "AppVM"},
        "dvm": {"type": "AppVM", "template_for_dispvms": True},
    }
)


@given(QUERIES)
def test_a_query_is_read_as_it_was_written(query: Query):
    """Every field survives, and the request is whole with its last byte, not before."""
    written = encode_query(query)
    assert parse_query(written) == query
    assert is_whole(written, len(written))
    assert not is_whole(written[:-1], len(written) - 1)


@given(st.integers(1, 9), QUERIES)
def test_a_request_that_comes_in_pieces_is_whole_at_its_end(size: int, query: Query):
    """Only the new bytes are looked at, and the empty line is found all the same."""
    written = encode_query(query)
    received = bytearray()
    for start in range(0, len(written), size):
        piece = written[start : start + size]
        received += piece
        assert is_whole(received, len(piece)) == (len(received) == len(written))


@given(st.binary(max_size=300) | st.lists(LINES).map(b"\n".join))
@example(b"\n\n")
@example(b"source=work\nintended_target=vault\nservice_and_arg=+x\n\n")
def test_any_bytes_are_a_query_or_a_refusal(untrusted: bytes):
    """No other exception leaves the parser, and what is accepted says each thing once."""
    for request in (untrusted, untrusted + b"\n\n"):
        with contextlib.suppress(CaissonError):
            query = parse_query(request)
            assert request.count(b"source=" + query.source.encode()) >= 1
            assert all(line.count(b"=") for line in request.removesuffix(b"\n\n").split(b"\n"))
            assert parse_query(encode_query(query)) == query


@given(st.text(max_size=5000), QUERIES, st.sampled_from(["vault", "@dispvm:dvm", "dom0"]))
def test_an_answer_has_room_where_it_is_read(user: str, query: Query, target: str):
    """It is short enough, or there is none; each key comes once, on a line of its own."""
    user = "".join(c for c in user if c.isprintable() and not c.isspace())
    allow = Allow(target, "vault", "work", "s", Location("a", 1), user=user or None)
    try:
        answer = allowed(allow, query, SYSTEM)
    except ProtocolError:
        assert len(user.encode()) > LONGEST_ANSWER // 2
        return
    assert len(answer) <= LONGEST_ANSWER
    values = dict(line.split("=", 1) for line in answer.decode().removesuffix("\n").split("\n"))
    assert values["user"] == (user or "DEFAULT")
    assert values["target"] == target
    assert ("policy_source" in values) == bool(query.requested_source)
    assert len(values) == answer.count(b"\n")


@given(
    st.from_regex(r"[A-Za-z0-9@_.-]{1,31}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9@_.-]{1,63}", fullmatch=True),
)
def test_a_payload_is_read_as_it_was_written(source: str, target: str):
    """Two names and a NUL."""
    payload = f"{source}\0{target}".encode()
    assert parse_payload(payload) == (source, target)
    assert len(payload) <= evaluating.LONGEST_PAYLOAD


@given(st.binary(max_size=120))
def test_any_payload_and_head_are_read_or_refused(untrusted: bytes):
    """No other exception leaves the parsers; nothing but two names is a payload."""
    with contextlib.suppress(CaissonError):
        source, target = parse_payload(untrusted)
        assert untrusted == f"{source}\0{target}".encode()
    for head in (untrusted, b"policy.EvalGUI+" + untrusted):
        with contextlib.suppress(CaissonError):
            argument, caller = parse_head(Kind.GUI, head)
            assert head.startswith(f"policy.EvalGUI+{argument} {caller}".encode()) or not argument


ACTIONS = st.sampled_from(
    ["allow", "deny", "ask", "allow target=vault", "ask target=work", "ask default_target=vault"]
)
RULES = st.lists(
    st.tuples(
        st.sampled_from(["work", "@anyvm", "*"]),
        st.sampled_from(["vault", "@anyvm", "*", "@dispvm", "work", "@adminvm"]),
        ACTIONS,
    ).map(lambda rule: f"s.X * {' '.join(rule)}\n"),
    max_size=4,
)


@given(
    RULES,
    st.sampled_from(QUBES),
    st.sampled_from([*QUBES, "nobody", "@dispvm", "@default", "@adminvm"]),
    st.sampled_from(QUBES),
)
def test_an_evaluation_allows_only_what_the_policy_would(
    rules: list[str], source: str, target: str, caller: str
):
    """Where the service says allow, a call to this very target is allowed, at most after a yes."""
    view = View(parse_policy({"30-x.policy": "".join(rules)}), SYSTEM)
    payload = f"{source}\0{target}".encode()
    simple = evaluating.answer(Kind.SIMPLE, "s.X", caller, payload, view)
    gui = evaluating.answer(Kind.GUI, "s.X", caller, payload, view)
    assert {simple, gui} <= {b"result=allow\n", b"result=deny\n"}
    decision = view.judge(source, "s.X", "", target).as_dict()
    if simple == b"result=allow\n":
        assert decision["decision"] != "deny"
        goes_to = {decision.get("target"), *decision.get("targets", ())}
        assert target.startswith("@") or target in goes_to
    if gui == b"result=allow\n":
        assert simple == gui
        assert caller == "gui"
        assert {source, target} <= {"work", "vault", "hid"}
    if decision["decision"] == "allow" and decision["target"] == target:
        assert simple == b"result=allow\n"
