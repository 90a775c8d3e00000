"""Goes on with a request once something is there that it waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def later(
    ask: Callable[[], Awaitable[T]], use: Callable[[T], None], fail: Callable[[Exception], None]
) -> asyncio.Task[None]:
    """Return a task that hands what `ask` gives to `use`, and what either raises to `fail`; nothing once cancelled."""

    async def wait() -> None:
        try:
            use(await ask())
        except Exception as exc:
            fail(exc)
            # What was waited for keeps it, and with it all that its frames hold, such as a body: a circle.
            exc.__traceback__ = None

    return asyncio.get_running_loop().create_task(wait())
