"""Reading a payload from a pipe and writing frames into one, without ever blocking."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from caisson.errors import InternalError, ProtocolError

_CHUNK = 65_536

_Watch = Callable[..., Any]


async def read_all(descriptor: int, most: int, seconds: float) -> bytes:
    """Everything that comes through a non-blocking pipe until its end.

    Raises:
        ProtocolError: it is longer than `most` bytes, or does not end within `seconds`.
    """
    loop = asyncio.get_running_loop()
    untrusted = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    chunk = os.read(descriptor, _CHUNK)
                except BlockingIOError:
                    await _ready(descriptor, loop.add_reader, loop.remove_reader)
                    continue
                untrusted += chunk
                if len(untrusted) > most:
                    raise ProtocolError(f"the request is longer than {most} bytes")
                if not chunk:
                    return bytes(untrusted)
    except TimeoutError:
        raise ProtocolError(
            f"the payload did not end within {seconds:g} s", hint="close standard input"
        ) from None


async def write_all(descriptor: int, content: bytes, seconds: float) -> None:
    """Write into a non-blocking pipe.

    Raises:
        OSError: nobody reads any more.
        TimeoutError: it was not read within `seconds`.
    """
    loop = asyncio.get_running_loop()
    rest = memoryview(content)
    async with asyncio.timeout(seconds):
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:
                await _ready(descriptor, loop.add_writer, loop.remove_writer)


async def _ready(descriptor: int, watch: _Watch, unwatch: _Watch) -> None:
    ready = asyncio.get_running_loop().create_future()
    watch(descriptor, _settle, ready)
    try:
        await ready
    finally:
        unwatch(descriptor)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


@contextmanager
def cancelling(gone: asyncio.Event) -> Iterator[None]:
    """Cancel the current task when `gone` is set."""
    task = asyncio.current_task()
    if task is None:
        raise InternalError("no task to cancel")

    async def watch() -> None:
        await gone.wait()
        task.cancel()

    watcher = asyncio.get_running_loop().create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
