"""Fuzz the targets of `tests/fuzz` and `agent/fuzz`, each from its kept inputs, for its share.

What a run learns is in `.fuzz/TARGET/found`, where the next run goes on; an input that crashes,
hangs or eats memory is in `.fuzz/TARGET/crashes`, and the exit code is 1. Targets of the agent
are called `rust-…`; they are built while the others run, and that time is not counted.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
HARNESS = CHECKOUT / "tests/fuzz/harness.py"
AGENT = CHECKOUT / "agent/fuzz"
sys.path.insert(0, str(HARNESS.parent))

from targets import TARGETS, kept  # noqa: E402 - found beside the harness

_SLOWEST = 10
"""Seconds that one input may take: what is honest takes milliseconds."""
_LARGEST = 2048
"""MiB that a target may use."""
_RUST_LONGEST = 4096
"""Bytes of the longest input of a target of the agent."""
_MACHINE = f"{platform.machine()}-unknown-linux-gnu"
_INSTRUMENTED = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
]
"""What `cargo fuzz` passes to a stable compiler, without a sanitizer of memory."""


@dataclass(frozen=True)
class _Target:
    """How to run a target: the command before libFuzzer's options, and what it starts from."""

    name: str
    command: list[str]
    kept: Path
    ready: Callable[[], bool] = lambda: True


def main() -> int:
    """Fuzz; 0: nothing found, 1: a crash, 2: wrong usage."""
    rust = sorted(path.stem for path in (AGENT / "fuzz_targets").glob("*.rs"))
    build = _Build(rust)
    known = {name: _python(name) for name in TARGETS}
    known |= {target.name: target for target in (_rust(name, build) for name in rust)}
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(known))
    parser.add_argument("--seconds", type=int, default=120, help="in total (default 120)")
    parser.add_argument(
        "--keep", action="store_true", help="keep the inputs found that reach what no kept one does"
    )
    chosen = parser.parse_args()
    for name in chosen.targets:
        if name not in known:
            parser.error(f"no target `{name}`; the targets are: {', '.join(known)}")
    # Those that have to be built come last.
    targets = [target for name, target in known.items() if name in (chosen.targets or known)]
    seconds = chosen.seconds // len(targets)
    if seconds < 1:
        parser.error("every target needs at least a second")
    if any(target.name.startswith("rust-") for target in targets):
        build.start()
    try:
        crashed = [target for target in targets if not _search(target, seconds)]
        if chosen.keep:
            for target in targets:
                _run(target, "-merge=1", str(target.kept), str(_place(target, "found")))
    finally:
        build.stop()
    return 1 if crashed else 0


class _Build:
    """The build of the agent's targets, beside what runs meanwhile."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin."""
        command = ["cargo", "build", "--quiet", "--release", "--target", _MACHINE]
        # Not in the environment's own words: they would apply to the build scripts, too.
        environment = os.environ | {"CARGO_ENCODED_RUSTFLAGS": "\x1f".join(_INSTRUMENTED)}
        self._process = subprocess.Popen(command, cwd=AGENT, env=environment)

    def done(self) -> bool:
        """Wait for the end; whether it went well."""
        return self._process is not None and self._process.wait() == 0

    def stop(self) -> None:
        """End it where nobody waited for it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


def _python(name: str) -> _Target:
    return _Target(name, [sys.executable, str(HARNESS), name], kept(name))


def _rust(name: str, build: _Build) -> _Target:
    program = AGENT / "target" / _MACHINE / "release" / name
    # The messages of what is fuzzed are no news.
    command = [str(program), f"-max_len={_RUST_LONGEST}", "-close_fd_mask=2"]
    return _Target(f"rust-{name.replace('_', '-')}", command, AGENT / "corpus" / name, build.done)


def _search(target: _Target, seconds: int) -> bool:
    """Fuzz one target; whether it survived."""
    if not target.ready():
        print(f"error: `{target.name}` was not built", file=sys.stderr)
        return False
    print(f"fuzz: {target.name}, {seconds} s", file=sys.stderr)
    target.kept.mkdir(parents=True, exist_ok=True)
    crashes = _place(target, "crashes")
    before = set(crashes.iterdir())
    done = _run(
        target,
        f"-max_total_time={seconds}",
        f"-timeout={_SLOWEST}",
        f"-rss_limit_mb={_LARGEST}",
        f"-artifact_prefix={crashes}/",
        *_dictionary(target),
        str(_place(target, "found")),
        str(target.kept),
    )
    lines = done.stdout.splitlines()
    if done.returncode:
        print("\n".join(lines[-40:]), file=sys.stderr)
        _tell(target, sorted(set(crashes.iterdir()) - before))
    else:
        runs = next((line for line in lines if line.startswith("Done ")), "")
        print(f"fuzz: {target.name}: {runs}", file=sys.stderr)
    return done.returncode == 0


def _tell(target: _Target, inputs: list[Path]) -> None:
    """Say where a crash can be seen again."""
    program, *rest = (word for word in target.command if not word.startswith("-"))
    words = [".venv/bin/python" if program == sys.executable else program, *rest, "FILE"]
    again = " ".join(word.removeprefix(f"{CHECKOUT}/") for word in words)
    for path in inputs:
        print(f"error: `{target.name}` crashes on {path}", file=sys.stderr)
    if not inputs:
        print(f"error: `{target.name}` failed, and left no input", file=sys.stderr)
    print(
        f"hint: to see it again: {again}; once mended, keep the file in "
        f"{target.kept.relative_to(CHECKOUT)}",
        file=sys.stderr,
    )


def _dictionary(target: _Target) -> list[str]:
    path = HARNESS.parent / f"{target.name}.dict"
    return [f"-dict={path}"] if path.exists() else []


def _run(target: _Target, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*target.command, *options],
        check=False, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def _place(target: _Target, kind: str) -> Path:
    place = CHECKOUT / ".fuzz" / target.name / kind
    place.mkdir(parents=True, exist_ok=True)
    return place


if __name__ == "__main__":
    sys.exit(main())
