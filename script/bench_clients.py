"""Many clients of the Admin API at once, from one process: prints the latencies as JSON.

    bench_clients.py SOCKET CLIENTS ROUNDS NAME…

Every client opens a connection of its own, calls once and reads the whole reply. A latency is
from its connect to the end of its reply, in milliseconds; a reply that is no success ends it all.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
import time
from pathlib import Path

METHODS = ("admin.vm.property.Get+netvm", "admin.vm.List+", "admin.vm.feature.Get+os")


def requests(names: list[str]) -> list[bytes]:
    """A mix of calls."""
    return [
        f"{METHODS[at % len(METHODS)]} dom0 name {name}".encode() + b"\0"
        for at, name in enumerate(names)
    ]


def one_round(path: str, calls: list[bytes]) -> list[float]:
    """Open a connection for each call, all before the first reply is read."""
    poll = select.epoll()
    begun: dict[int, float] = {}
    open_: dict[int, socket.socket] = {}
    replies: dict[int, bytes] = {}
    took: list[float] = []
    for call in calls:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        number = client.fileno()
        begun[number] = time.perf_counter()
        client.connect(path)
        client.sendall(call)
        client.shutdown(socket.SHUT_WR)
        open_[number] = client
        replies[number] = b""
        poll.register(number, select.EPOLLIN)
    while open_:
        for number, _ in poll.poll():
            if chunk := open_[number].recv(65_536):
                replies[number] += chunk
                continue
            took.append((time.perf_counter() - begun[number]) * 1e3)
            poll.unregister(number)
            open_.pop(number).close()
    poll.close()
    wrong = [reply for reply in replies.values() if not reply.startswith(b"0\0")]
    if wrong:
        sys.exit(f"error: {len(wrong)} of {len(calls)} calls failed, such as {wrong[0]!r}")
    return took


def main() -> None:
    """Do all rounds."""
    path, clients, rounds, *names = sys.argv[1:]
    if Path(path).name == "echo.sock":
        calls = [b"0\0" * 16] * int(clients)
    else:
        calls = requests((names * (int(clients) // len(names) + 1))[: int(clients)])
    gc.disable()
    print(json.dumps([took for _ in range(int(rounds)) for took in one_round(path, calls)]))


if __name__ == "__main__":
    main()
