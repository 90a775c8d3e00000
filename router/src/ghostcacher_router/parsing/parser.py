"""Parses the bodies of requests: short ones at once, long ones in another process."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, PriorityQueue
from typing import Final

from ghostcacher_router.parsing.messages import ParseAsk
from ghostcacher_router.parsing.parser_process import ParserFailed, ParserProcess
from ghostcacher_router.prompt import parse_head, parse_now
from ghostcacher_router.types import Body, RequestShape

logger = logging.getLogger(__name__)

MEMORY_BYTES: Final = 512 << 20
"""Address space of the child beside that for the body: the interpreter, and the values of the largest body that is
decoded."""
BODY_COPIES: Final = 6
"""How often the child may hold a body: as it came, decoded (four bytes a character at worst), as canonical bytes."""

BYTES_PER_S: Final = 1 << 20
"""A body goes before those that came earlier, but are longer by so many bytes for each second. The child is much faster
than that, so short bodies hardly wait, and long ones at most for a minute."""


class BodyParser:
    """Parses bodies, on the event loop.

    body_bytes_max: the longest body that comes. One body at a time is in the child, and the others wait, the shorter
    ones for less long: they are held in any case, and count as such.
    """

    def __init__(self, body_bytes_max: int) -> None:
        self._process = ParserProcess(MEMORY_BYTES + BODY_COPIES * body_bytes_max)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gc-parse")
        self._waiting: PriorityQueue[tuple[float, int, _Job]] = PriorityQueue()
        self._numbers = itertools.count()

    def __repr__(self) -> str:
        return f"BodyParser({self._process!r})"

    def start(self) -> None:
        """Start the child, without waiting for it."""
        self._thread.submit(self._start)

    def stop(self) -> None:
        """End the child. What is being parsed is parsed without it, as far as a worker has to be found."""
        self._process.close()
        self._thread.shutdown(wait=False, cancel_futures=True)
        with suppress(Empty):
            while True:
                self._waiting.get_nowait()[-1].parsed.cancel()

    def parse(
        self,
        path: str,
        body: Body,
        headers: Mapping[bytes, bytes],
        seed: int,
        billing_kept: frozenset[str | None] = frozenset(),
    ) -> RequestShape | Awaitable[RequestShape]:
        """Return what `parse_body` does, at once or to be awaited. Either raises BadBody."""
        if isinstance(body, bytes):
            shape = parse_now(path, body, headers, seed, billing_kept)
            if shape is not None:
                return shape
        job = _Job(ParseAsk(path, dict(headers), seed, billing_kept), body)
        self._waiting.put((time.monotonic() + len(body) / BYTES_PER_S, next(self._numbers), job))
        self._thread.submit(self._parse_next)
        parsed = asyncio.wrap_future(job.parsed)
        parsed.add_done_callback(job.let_go)
        return parsed

    def _start(self) -> None:
        try:
            self._process.start()
        except ParserFailed as exc:
            logger.warning("%s", exc)

    def _parse_next(self) -> None:
        _, _, job = self._waiting.get_nowait()
        if not job.parsed.set_running_or_notify_cancel():
            return
        try:
            job.parsed.set_result(self._parse(job.ask, job.body))
        except Exception as exc:
            job.parsed.set_exception(exc)
        finally:
            del job  # It keeps the exception, and that keeps this frame and the body: a circle.

    def _parse(self, ask: ParseAsk, body: Body) -> RequestShape:
        try:
            shape = self._process.parse(ask, body).result()
        except ParserFailed as exc:
            logger.warning("a body of %d bytes was not read for its prompt: %s", len(body), exc)
            shape = None
        if shape is not None:
            return shape
        return parse_head(ask.path, body if isinstance(body, bytes) else body.join(), ask.headers)


class _Job:
    """A body that waits for the thread, which keeps the job until its turn, also when nobody wants it any more."""

    __slots__ = ("ask", "body", "parsed")

    def __init__(self, ask: ParseAsk, body: Body) -> None:
        self.ask = ask
        self.body = body
        self.parsed: Future[RequestShape] = Future()

    def let_go(self, _: object) -> None:
        self.body = b""
