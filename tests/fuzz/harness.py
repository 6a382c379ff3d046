"""Run one target under atheris: `harness.py TARGET [libFuzzer options] [directories]`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import atheris
from targets import TARGETS

sys.path.append(str(Path(__file__).parents[1]))  # what targets share with tests


def main() -> None:
    """Watch the packages of the target while they are imported, then search."""
    program, name, *options = sys.argv
    target = TARGETS[name]
    with atheris.instrument_imports(include=list(target.watched)):
        function = target.load()
    # With this name libFuzzer starts itself again, by a shell, to merge.
    itself = shlex.join([sys.executable, program, name])
    atheris.Setup([itself, f"-max_len={target.longest}", *options], function)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
