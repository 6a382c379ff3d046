"""Fuzz the targets of `tests/fuzz`, each from its kept inputs, for its share of the time.

What a run learns is in `.fuzz/TARGET/found`, where the next run goes on; an input that crashes,
hangs or eats memory is in `.fuzz/TARGET/crashes`, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
HARNESS = CHECKOUT / "tests/fuzz/harness.py"
sys.path.insert(0, str(HARNESS.parent))

from targets import TARGETS, kept  # noqa: E402 - found beside the harness

_SLOWEST = 10
"""Seconds that one input may take: what is honest takes milliseconds."""
_LARGEST = 2048
"""MiB that a target may use."""


def main() -> int:
    """Fuzz; 0: nothing found, 1: a crash, 2: wrong usage."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=120, help="in total (default 120)")
    parser.add_argument(
        "--keep", action="store_true", help="keep the inputs found that reach what no kept one does"
    )
    chosen = parser.parse_args()
    for name in chosen.targets:
        if name not in TARGETS:
            parser.error(f"no target `{name}`; the targets are: {', '.join(TARGETS)}")
    names = chosen.targets or list(TARGETS)
    seconds = chosen.seconds // len(names)
    if seconds < 1:
        parser.error("every target needs at least a second")
    crashed = [name for name in names if not _search(name, seconds)]
    if chosen.keep:
        for name in names:
            _run(name, "-merge=1", str(kept(name)), str(_place(name, "found")))
    return 1 if crashed else 0


def _search(name: str, seconds: int) -> bool:
    """Fuzz one target; whether it survived."""
    print(f"fuzz: {name}, {seconds} s", file=sys.stderr)
    kept(name).mkdir(parents=True, exist_ok=True)
    crashes = _place(name, "crashes")
    before = set(crashes.iterdir())
    done = _run(
        name,
        f"-max_total_time={seconds}",
        f"-timeout={_SLOWEST}",
        f"-rss_limit_mb={_LARGEST}",
        f"-artifact_prefix={crashes}/",
        *_dictionary(name),
        str(_place(name, "found")),
        str(kept(name)),
    )
    lines = done.stdout.splitlines()
    if done.returncode:
        print("\n".join(lines[-40:]), file=sys.stderr)
        _tell(name, sorted(set(crashes.iterdir()) - before))
    else:
        runs = next((line for line in lines if line.startswith("Done ")), "")
        print(f"fuzz: {name}: {runs}", file=sys.stderr)
    return done.returncode == 0


def _tell(name: str, inputs: list[Path]) -> None:
    """Say where a crash can be seen again."""
    again = f".venv/bin/python {HARNESS.relative_to(CHECKOUT)} {name} FILE"
    for path in inputs:
        print(f"error: `{name}` crashes on {path}", file=sys.stderr)
    if not inputs:
        print(f"error: `{name}` failed, and left no input", file=sys.stderr)
    print(
        f"hint: to see it again: {again}; once mended, keep the file in "
        f"{kept(name).relative_to(CHECKOUT)}",
        file=sys.stderr,
    )


def _dictionary(name: str) -> list[str]:
    path = HARNESS.parent / f"{name}.dict"
    return [f"-dict={path}"] if path.exists() else []


def _run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HARNESS), name, *options],
        check=False, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def _place(name: str, kind: str) -> Path:
    place = CHECKOUT / ".fuzz" / name / kind
    place.mkdir(parents=True, exist_ok=True)
    return place


if __name__ == "__main__":
    sys.exit(main())
