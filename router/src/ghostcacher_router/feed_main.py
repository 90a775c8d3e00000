"""The feed of a router in several processes: ``python -m ghostcacher_router.feed_main CONTROL``.

CONTROL: the number of the socket to its supervisor, which says the rest. `ghostcacher router --processes N` starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from pathlib import Path

import uvloop

from ghostcacher_connector.core.errors import GhostCacherError
from ghostcacher_connector.core.log_format import log_to_stderr
from ghostcacher_router.feed.server import READ_BLOCK_S, FeedServer
from ghostcacher_router.processes.membership import say_alive
from ghostcacher_router.processes.program import run_program
from ghostcacher_router.processes.seat import FeedStart
from ghostcacher_router.store_calls import StoreThreads, call_s_max
from ghostcacher_router.stores import open_stores


def main() -> int:
    """Read for all processes; return the exit status."""
    return run_program(FeedStart, _run)


def _run(start: FeedStart, control: socket.socket) -> int:
    log_to_stderr(start.settings.log_level, start.settings.log_format, start.name)
    uvloop.run(_read(start, control))
    return 0


async def _read(start: FeedStart, control: socket.socket) -> None:
    """Return when the supervisor is gone."""
    settings = start.settings
    index, store = open_stores(settings)
    assert store is not None
    assert index is not None
    threads = StoreThreads(1, "gc-feed", limit_s=READ_BLOCK_S + call_s_max(settings.redis_timeout_s))
    server = FeedServer(store, threads, Path(start.path), time.monotonic)
    reading, gone = asyncio.create_task(server.run()), asyncio.create_task(_is_gone(control))
    try:
        await asyncio.wait((reading, gone), return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            reading.result()
    finally:
        is_alone = gone.done()
        for task in (reading, gone):
            task.cancel()
        await asyncio.gather(reading, gone, return_exceptions=True)
        Path(start.path).unlink(missing_ok=True)
        if is_alone:
            with contextlib.suppress(OSError):  # There are processes still, of which the last one does it.
                Path(start.path).parent.rmdir()
        threads.close()
        for closing in (store, index):
            with contextlib.suppress(GhostCacherError):
                closing.close()


async def _is_gone(control: socket.socket) -> None:
    """Say to the supervisor that this process is alive, and return when it is gone."""
    reader, writer = await asyncio.open_connection(sock=control)
    saying = asyncio.create_task(say_alive(writer))
    try:
        with contextlib.suppress(OSError):
            await reader.read()
    finally:
        saying.cancel()
        writer.close()


if __name__ == "__main__":
    sys.exit(main())
