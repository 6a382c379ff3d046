"""Parts of a question as a person sees them; nothing in them can look like something else."""

from __future__ import annotations

from rich.text import Text

from caisson.qrexec.prompt import Notice, Question

LONGEST_SHOWN = 400
BLOCK = "■"
"""Drawn in a label's colour. No name can contain it: names are shown as ASCII."""


def plain(untrusted: str, longest: int = LONGEST_SHOWN) -> str:
    """Printable ASCII only, and not endless: nothing can move the cursor or look like another."""
    cut = untrusted[:longest]
    text = "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in cut)
    return text if cut == untrusted else f"{text}… ({len(untrusted)} characters)"


def qube(name: str, question: Question) -> Text:
    """The qube's name behind its label's colour, and how well its walls isolate."""
    base = name.removeprefix("@dispvm:")
    text = Text()
    text.append(f"{BLOCK} ", style=colour(question.labels.get(base, "")) or "dim")
    text.append(plain(f"new disposable of {base}" if base != name else name), style="bold")
    if (kind := question.isolation.get(base)) is not None:
        text.append(f" [{plain(kind)}]", style="dim")
    return text


def source(question: Question) -> Text:
    """The qube that asks, and whose disposable it is."""
    text = qube(question.source, question)
    if question.origin not in {"", question.source}:
        text.append(f" (made by {plain(question.origin)})", style="dim")
    return text


def asker(question: Question) -> str:
    """Who is denied by `deny for now`: the source, or the disposables of the qube it is of."""
    if question.origin in {"", question.source}:
        return plain(question.source)
    return f"disposables of {plain(question.origin)}"


def service(name: str, argument: str, longest: int = LONGEST_SHOWN) -> Text:
    """The service, bold behind its first dot, and the argument."""
    vendor, dot, rest = name.partition(".")
    if dot and rest:
        text = Text(plain(vendor, longest) + dot).append(plain(rest, longest), style="bold")
    else:
        text = Text(plain(name, longest), style="bold")
    if argument not in {"", "+"}:
        text.append(plain(argument, longest), style="not bold")
    return text


def notice(told: Notice) -> Text:
    """What happened to a call."""
    word = {"allow": "allowed", "deny": "denied"}.get(told.resolution, "failed")
    text = Text(f"{plain(told.source)} → {plain(told.target or '@default')}: ")
    text.append_text(service(told.service, told.argument))
    text.append(f" was {word}")
    if told.muted > 0:
        text.append(f"; {plain(told.source)} is denied for {duration(told.muted)} more")
    return text


def duration(seconds: float) -> str:
    """A time in minutes and seconds."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return " ".join([f"{minutes} min"] * (minutes > 0) + [f"{rest} s"] * (rest > 0 or not minutes))


def colour(label: str) -> str | None:
    """A label's colour `0xRRGGBB` as the terminal's style."""
    try:
        number = int(label, 16)
    except ValueError:
        return None
    return f"#{number & 0xFFFFFF:06x}"
