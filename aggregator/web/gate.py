"""How many requests may work on the database at a time, and how many may wait for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from aggregator.web.answers import Refusal

Result = TypeVar("Result")


class Gate:
    """Runs work in threads, ``width`` at a time; whoever finds ``waiting`` others waiting, or waits too long, is refused."""

    def __init__(self, width: int, waiting: int, patience: float) -> None:
        self._free = asyncio.Semaphore(width)
        self._threads = ThreadPoolExecutor(width, thread_name_prefix="read")
        self._most_waiting = waiting
        self._patience = patience
        self.waiting = 0
        self.working = 0

    async def run(self, work: Callable[[], Result]) -> Result:
        """Return what ``work`` returns; raise Refusal with 503 if there are too many."""
        await self._enter()
        self.working += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self.working -= 1
            self._free.release()

    async def _enter(self) -> None:
        if self._free.locked() and self.waiting >= self._most_waiting:
            raise _busy()
        self.waiting += 1
        try:
            async with asyncio.timeout(self._patience):
                await self._free.acquire()
        except TimeoutError as exc:
            raise _busy() from exc
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Take no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _busy() -> Refusal:
    return Refusal(503, "too many requests at a time; try again", {"Retry-After": "1"})
