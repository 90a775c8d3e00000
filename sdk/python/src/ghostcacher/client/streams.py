"""Answers that come event by event."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

import httpx

from ghostcacher.client.answers import ChatChunk, Completion, MessageEvent
from ghostcacher.client.cache_info import CacheInfo
from ghostcacher.client.calls import Call
from ghostcacher.client.replies import EventReader, failure_of

E = TypeVar("E", bound=ChatChunk | Completion | MessageEvent)


class Stream(Generic[E]):
    """The events of one answer, in order; to be iterated over once.

    Raises AnswerBroken where the stream breaks off, behind what had come. Leaving it early, by `close` or the end of a
    with statement, ends the request in the engine, too.
    """

    def __init__(self, response: httpx.Response, reader: EventReader[E], call: Call) -> None:
        self._response, self._reader, self._call = response, reader, call
        self._events = self._read()

    @property
    def cache(self) -> CacheInfo:
        """Return what the shared cache did for the request, as far as it is known by now."""
        return self._reader.cache

    def __iter__(self) -> Iterator[E]:
        return self._events

    def __next__(self) -> E:
        return next(self._events)

    def texts(self) -> Iterator[str]:
        """Yield each new piece of the text."""
        for event in self:
            if event.text:
                yield event.text

    def close(self) -> None:
        """End it, and the request. Idempotent."""
        self._events.close()
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> Generator[E, None, None]:
        pieces = self._response.iter_bytes()
        try:
            while not self._reader.done and (data := next(pieces, None)) is not None:
                yield from self._reader.feed(data)
            self._reader.end()
            # To the end of the body, so that the connection can be used again; the answer is whole already.
            with contextlib.suppress(httpx.RequestError):
                for _ in pieces:
                    pass
        except httpx.RequestError as exc:
            raise failure_of(exc, self._call, begun=True) from exc
        finally:
            self._response.close()


class AsyncStream(Generic[E]):
    """The events of one answer, in order; to be iterated over once.

    Raises AnswerBroken where the stream breaks off, behind what had come. Leaving it early, by `close`, the end of an
    async with statement or a cancelled task, ends the request in the engine, too.
    """

    def __init__(self, response: httpx.Response, reader: EventReader[E], call: Call) -> None:
        self._response, self._reader, self._call = response, reader, call
        self._events = self._read()

    @property
    def cache(self) -> CacheInfo:
        """Return what the shared cache did for the request, as far as it is known by now."""
        return self._reader.cache

    def __aiter__(self) -> AsyncIterator[E]:
        return self._events

    async def __anext__(self) -> E:
        return await anext(self._events)

    async def texts(self) -> AsyncIterator[str]:
        """Yield each new piece of the text."""
        async for event in self:
            if event.text:
                yield event.text

    async def close(self) -> None:
        """End it, and the request. Idempotent."""
        await self._response.aclose()
        # Another task may wait for the next event: it gets the error of the closed connection.
        with contextlib.suppress(RuntimeError):
            await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _read(self) -> AsyncGenerator[E, None]:
        pieces = self._response.aiter_bytes()
        try:
            while not self._reader.done and (data := await anext(pieces, None)) is not None:
                for event in self._reader.feed(data):
                    yield event
            self._reader.end()
            # To the end of the body, so that the connection can be used again; the answer is whole already.
            with contextlib.suppress(httpx.RequestError):
                async for _ in pieces:
                    pass
        except httpx.RequestError as exc:
            raise failure_of(exc, self._call, begun=True) from exc
        finally:
            await self._response.aclose()
