"""A thread of one's own, for a library that wants all its calls from the same one."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Call = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class OwnThread:
    """Makes calls one after another. It never keeps the process from ending."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def do(self, call: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._calls.put((loop, future, call, arguments))
        return await future

    def close(self) -> None:
        """End after the calls that were made until now."""
        self._calls.put(None)

    def _work(self) -> None:
        while self._worked():
            continue

    def _worked(self) -> bool:
        """One call, of which nothing is kept while the next is waited for; False at the end."""
        item = self._calls.get()
        if item is None:
            return False
        loop, future, call, arguments = item
        result, error = None, None
        try:
            result = call(*arguments)
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, future, result, error)
        return True


def _settle(future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
