"""An event loop in a thread, for those who want an answer and are not asynchronous themselves."""

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from flowopd.rewards.scorer import UnavailableError

T = TypeVar("T")
SECONDS = 5.0
CLOSED = "It was closed while it was at work."


class Background:
    """Runs coroutines to their end; whoever waits may be interrupted, which cancels them."""

    def __init__(self, name: str) -> None:
        self._pid = os.getpid()
        self._closed, self._door = False, threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still runs: a process that was forked from this one has no thread of it."""
        return not self._closed and self._pid == os.getpid() and self._thread.is_alive()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        with self._door:
            if self._closed:
                coroutine.close()
                raise UnavailableError(CLOSED)
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise UnavailableError(CLOSED) from None
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Whoever still waits for a coroutine is told."""
        with self._door:
            if self._closed or not self.alive:
                return
            self._closed = True
            self._loop.call_soon_threadsafe(self._end)
        self._thread.join(SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    def _end(self) -> None:
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            ended = asyncio.gather(*tasks, return_exceptions=True)
            ended.add_done_callback(lambda _: self._loop.stop())
        else:
            self._loop.stop()
