"""A graph of calls as Graphviz draws it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from caisson.errors import CaissonError
from caisson.tools import terminal

if TYPE_CHECKING:
    import graphviz

    from caisson.policy import SystemInfo
    from caisson.policy.graph import Box, Bundle, Edge

# Red is what goes through without a question, as in upstream's pictures.
COLOURS: Mapping[str, str] = {"allow": "red", "ask": "orange", "deny": "gray"}
_MOST_NAMES = 8
_MOST_LABELS = 8
_PER_LINE = 3


def simple(found: Sequence[Edge], *, labels: bool) -> graphviz.Digraph:
    """One arrow an edge; without labels one arrow for each two qubes and outcome."""
    drawn = _empty()
    seen = set()
    for edge in found:
        text = edge.label if labels else ""
        arrow = (edge.source, edge.target, text, edge.action)
        if arrow not in seen:
            seen.add(arrow)
            drawn.body.append(_line(edge, text))
    return drawn


def bundled(boxes: Sequence[Box], found: Sequence[Bundle], system: SystemInfo) -> graphviz.Digraph:
    """One box for qubes that are alike; services that many boxes share stand between them."""
    drawn = _empty()
    drawn.attr("graph", rankdir="LR")
    drawn.attr("node", fontname="sans-serif")
    drawn.attr("edge", fontname="sans-serif", fontsize="10")
    names: dict[str, str] = {}
    for number, box in enumerate(boxes):
        names |= dict.fromkeys(box, f"qubes{number}")
        drawn.node(
            f"qubes{number}",
            label=_text(_title(box)),
            shape="box",
            style="rounded",
            penwidth="2",
            color=_colour(box, system),
        )
    for number, bundle in enumerate(found):
        sources = sorted({names[name] for name in bundle.sources})
        targets = sorted({names[name] for name in bundle.targets})
        colour = COLOURS[bundle.action]
        looks = {"color": colour, "style": "dashed" if bundle.action == "deny" else "solid"}
        text = _text(_listed(bundle.labels, _MOST_LABELS, 1))
        if len(sources) == len(targets) == 1:
            drawn.edge(sources[0], targets[0], label=text, fontcolor=colour, **looks)
            continue
        hub = f"calls{number}"
        drawn.node(hub, label=text, shape="plain", fontsize="10", fontcolor=colour)
        for source in sources:
            drawn.edge(source, hub, arrowhead="none", **looks)
        for target in targets:
            drawn.edge(hub, target, **looks)
    return drawn


def write(drawn: graphviz.Digraph, output: Path | None, form: str) -> None:
    """Write the picture to a file, or to standard output.

    Args:
        drawn: the graph.
        output: the file; None is standard output.
        form: `dot` for the text, or what Graphviz can make of it, such as `svg`.

    Raises:
        CaissonError: Graphviz is not installed, or cannot make it.
    """
    data = drawn.source.encode() if form == "dot" else _rendered(drawn, form)
    if output is not None:
        output.write_bytes(data)
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)


def _rendered(drawn: graphviz.Digraph, form: str) -> bytes:
    import graphviz

    try:
        with terminal.Progress("drawing"):
            picture: bytes = drawn.pipe(format=form, quiet=True)
    except graphviz.ExecutableNotFound:
        raise CaissonError(
            "the program `dot` of Graphviz is missing",
            hint="`apt install graphviz`, or ask for `--format dot`, which needs no other program",
        ) from None
    except graphviz.CalledProcessError as error:
        raise CaissonError(f"Graphviz failed: exit code {error.returncode}") from None
    return picture


def _empty() -> graphviz.Digraph:
    import graphviz

    return graphviz.Digraph("policy")


def _line(edge: Edge, text: str) -> str:
    """An arrow as text: the library takes what follows a colon in a name for a place to dock."""
    from graphviz import escape
    from graphviz.quoting import quote

    source, target = (quote(escape(terminal.cell(name))) for name in (edge.source, edge.target))
    label = f"label={quote(_text(text))} " if text else ""
    return f"\t{source} -> {target} [{label}color={COLOURS[edge.action]}]\n"


def _text(text: str) -> str:
    """A label that says just this text, whatever is in it."""
    import graphviz

    lines = (graphviz.escape(terminal.cell(line)) for line in text.split("\n"))
    # The library would take `<…>` for HTML.
    safe: str = graphviz.nohtml("\\n".join(lines))
    return safe


def _title(box: Box) -> str:
    names = _listed(box, _MOST_NAMES, _PER_LINE)
    return names if len(box) == 1 else f"{len(box)} qubes alike:\n{names}"


def _listed(words: Sequence[str], most: int, per_line: int) -> str:
    shown = list(words[:most])
    if len(words) > most:
        shown.append(f"… {len(words) - most} more")
    lines = [", ".join(shown[i : i + per_line]) for i in range(0, len(shown), per_line)]
    return ",\n".join(lines) if per_line > 1 else "\n".join(lines)


def _colour(box: Box, system: SystemInfo) -> str:
    """The colour of the label that all its qubes share; black where they differ."""
    qubes = [system.find(name.removeprefix("@dispvm:")) for name in box]
    labels = {qube.label for qube in qubes if qube is not None and qube.label}
    colour = labels.pop() if len(labels) == 1 else ""
    try:
        return f"#{int(colour, 16) & 0xFFFFFF:06x}"
    except ValueError:
        return "black"
