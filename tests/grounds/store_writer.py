"""A process that writes to a store until it is killed; tests kill it.

Arguments: the database, and the number of SQLite steps after which it kills itself (0: never).
Change N sets the feature `n` of every qube to N and moves a tag along; each is told on stdout
once it is written. One change in three removes the last qube and makes it anew.
"""

import os
import signal
import sys
from pathlib import Path
from uuid import UUID

from caisson.model import (
    AddQube,
    AddTag,
    Op,
    RemoveQube,
    RemoveTag,
    SetFeature,
    SetProperty,
)
from caisson.names import FeatureName, PropertyName, QubeName, Tag
from caisson.store import Store

QUBES = 6
NUMBER = FeatureName("n")


def change(number: int) -> list[Op]:
    """Change `number`."""
    ops: list[Op] = []
    last = UUID(int=QUBES)
    if number == 0:
        ops += [AddQube(UUID(int=i), QubeName(f"q{i}"), "AppVM", i) for i in range(1, QUBES + 1)]
    elif number % 3 == 0:
        ops += [RemoveQube(last), AddQube(last, QubeName(f"q{QUBES}"), "AppVM", QUBES)]
    for i in range(1, QUBES + 1):
        ops.append(SetFeature(UUID(int=i), NUMBER, str(number)))
        ops.append(RemoveTag(UUID(int=i), Tag(f"t{number - 1}")))
        ops.append(AddTag(UUID(int=i), Tag(f"t{number}")))
    ops.append(SetProperty(None, PropertyName("clockvm"), str(number)))
    return ops


def main() -> None:
    """Write until killed."""
    path, steps = Path(sys.argv[1]), int(sys.argv[2])
    store = Store.open(path)
    if steps:
        left = iter(range(steps))

        def step() -> int:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return 0

        store._connection.set_progress_handler(step, 1)
    values = [int(op.value) for op in store.load() if isinstance(op, SetFeature)]
    number = max(values, default=-1)
    while True:
        number += 1
        store.write(change(number))
        os.write(1, f"{number}\n".encode())


if __name__ == "__main__":
    main()
