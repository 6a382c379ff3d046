"""Inputs that fuzzing once found worth keeping raise nothing today."""

import pytest
from targets import TARGETS, kept

MOST_FILES = 500
MOST_BYTES = 1 << 20


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs_raise_nothing(name: str):
    """Each was once a new way through the code, or a crash that was mended."""
    function = TARGETS[name].load()
    files = sorted(path for path in kept(name).iterdir() if path.is_file())
    assert files
    for path in files:
        try:
            function(path.read_bytes())
        except BaseException as e:
            e.add_note(f"with the input {path}")
            raise


def test_corpus_is_small():
    """What a checkout carries and every run replays stays little."""
    sizes = [path.stat().st_size for name in TARGETS for path in kept(name).iterdir()]
    assert len(sizes) <= MOST_FILES
    assert sum(sizes) < MOST_BYTES
    assert {path.name for path in kept("x").parent.iterdir()} == set(TARGETS)
