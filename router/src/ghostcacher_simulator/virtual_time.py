"""An event loop whose time passes only when everybody waits: simulations of minutes, exact and in milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, TypeVar

T = TypeVar("T")


class _Skipping(selectors.DefaultSelector):
    """Moves the loop's time on instead of waiting for it. It looks at no socket: that would cost more than a step."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits, and nothing is going to happen"
        self.loop.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Nothing in it may wait for a thread or a socket: there is no time for them."""

    def __init__(self) -> None:
        self.now = 1000.0
        selector = _Skipping()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a loop of its own, then cancel what it has left."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def virtual(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """Make a test of a coroutine: it runs in virtual time."""

    @wraps(test)
    def run(*args: object, **more: object) -> None:
        run_virtual(test(*args, **more))

    return run


async def soon(call: Callable[[], T], /) -> T:
    """Run a blocking call as a thread pool without threads would: an Offload in virtual time."""
    await asyncio.sleep(0.001)
    return call()
