"""Many calls at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

_AT_ONCE = 16

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def at_once(items: Sequence[_Item], act: Callable[[_Item], _Result]) -> list[_Result]:
    """Do something with all items; returns the results in the order of the items.

    The threads do not outlive the command: a Ctrl-C ends it though calls are under way.

    Raises:
        Exception: the first that one of them raised, when all are done.
    """
    if len(items) < 2:  # noqa: PLR2004 - nothing to do side by side
        return [act(item) for item in items]
    import threading
    from queue import Empty, SimpleQueue

    todo: SimpleQueue[int] = SimpleQueue()
    for index in range(len(items)):
        todo.put(index)
    results: dict[int, _Result] = {}
    errors: dict[int, BaseException] = {}

    def work() -> None:
        while True:
            try:
                index = todo.get_nowait()
            except Empty:
                return
            try:
                results[index] = act(items[index])
            except BaseException as error:  # noqa: BLE001 - raised below, in the main thread
                errors[index] = error

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(_AT_ONCE, len(items)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[min(errors)]
    return [results[index] for index in range(len(items))]
