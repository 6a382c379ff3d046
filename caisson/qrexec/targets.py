"""Targets that are not there yet: started, made and waited for, with the help of qubesd."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from caisson.errors import DaemonError
from caisson.names import DOM0, shown
from caisson.qrexec.calls import CallError
from caisson.qrexec.daemon_link import DaemonLink
from caisson.qrexec.endpoint import Endpoint
from caisson.qrexec.link import Operation

AGENT_TIMEOUT = 60.0
START_TIMEOUT = 180.0

_log = structlog.get_logger("broker")


class Targets:
    """What the broker asks of qubesd.

    Args:
        link: the link to qubesd.
        endpoints: the qubes that run, by name.
        background: runs what nobody waits for.
    """

    def __init__(
        self,
        link: DaemonLink,
        endpoints: Mapping[str, Endpoint],
        background: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._link = link
        self._endpoints = endpoints
        self._background = background
        self._starting: dict[str, asyncio.Future[str]] = {}
        self._awaited: dict[str, set[asyncio.Future[bool]]] = {}
        self._discards: set[str] = set()
        self.held: set[str] = set()

    async def start(self, name: str, source: str) -> None:
        """Have a qube started; callers that come together share one start.

        Raises:
            CallError: it does not start.
        """
        future = self._starting.get(name)
        if future is None:
            future = self._starting[name] = asyncio.get_running_loop().create_future()
            self._background(self._start(name, source, future))
        if error := await asyncio.shield(future):
            raise CallError(error)

    async def _start(self, name: str, source: str, result: asyncio.Future[str]) -> None:
        error = "internal error"
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._link.request(Operation.START, name, source)
            error = ""
        except DaemonError as e:
            error = f"the target does not start: {e.message}"
        except TimeoutError:
            error = f"the target did not start within {START_TIMEOUT:.0f} s"
        finally:
            del self._starting[name]
            if not result.done():
                result.set_result(error)

    async def disposable(self, base: str, source: str) -> str:
        """Have a disposable of `base` made; gives its name.

        Raises:
            CallError: none was made in time.
            DaemonError: none was made.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT):
                name = await self._link.request(Operation.DISPOSABLE, base, source)
        except TimeoutError:
            raise CallError(f"no disposable within {START_TIMEOUT:.0f} s") from None
        self.held.add(name)
        return name

    def discard(self, name: str) -> None:
        """Have a disposable discarded, in the background; later if qubesd is away."""
        self._discards.add(name)
        if self._link.synced:
            self._background(self._discard(name))

    def discard_again(self) -> None:
        """Ask a qubesd that came back for what the former one did not do."""
        for name in tuple(self._discards):
            self._background(self._discard(name))

    async def _discard(self, name: str) -> None:
        try:
            await self._link.request(Operation.DISCARD, name, DOM0)
        except DaemonError as e:
            if not self._link.synced:
                return
            _log.warning("a disposable was not discarded", qube=shown(name), error=str(e))
        self._discards.discard(name)
        self.held.discard(name)

    async def agent(self, name: str) -> Endpoint:
        """Wait for a qube's agent.

        Raises:
            CallError: it does not come.
        """
        endpoint = self._endpoints.get(name)
        if endpoint is not None and endpoint.agent is not None:
            return endpoint
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._awaited.setdefault(name, set()).add(future)
        try:
            async with asyncio.timeout(AGENT_TIMEOUT):
                came = await future
        except TimeoutError:
            raise CallError("the target's agent does not answer") from None
        finally:
            waiting = self._awaited.get(name, set())
            waiting.discard(future)
            if not waiting:
                self._awaited.pop(name, None)
        endpoint = self._endpoints.get(name)
        if not came or endpoint is None or endpoint.agent is None:
            raise CallError("the target ended before its agent answered")
        return endpoint

    def settle(self, name: str, came: bool) -> None:
        """The agent of a qube was admitted, or the qube ended: tell who waits."""
        for future in self._awaited.pop(name, ()):
            if not future.done():
                future.set_result(came)
