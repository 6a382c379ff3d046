"""A process that takes over a `qubes.xml`, and kills itself on the way.

Arguments: the root, the file, and the number of SQLite steps after which it kills itself (0: never,
and it tells on stdout how many it took).
"""

import os
import signal
import sys
from itertools import count
from pathlib import Path

from caisson.daemons.offline import take_over
from caisson.paths import Paths
from caisson.store import Store
from caisson.store.qubes_xml_plan import plan
from caisson.store.qubes_xml_read import read


def main() -> None:
    """Import."""
    root, file, last = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    steps = count(1)
    taken = 0

    def step() -> int:
        nonlocal taken
        taken = next(steps)
        if taken == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    opened = Store.open

    def open_counted(path: Path) -> Store:
        store = opened(path)
        store._connection.set_progress_handler(step, 1)
        return store

    Store.open = open_counted  # type: ignore[assignment,method-assign]
    take_over(Paths(root), plan(read(file.read_bytes()), lambda _: False).change)
    os.write(1, str(taken).encode())


if __name__ == "__main__":
    main()
