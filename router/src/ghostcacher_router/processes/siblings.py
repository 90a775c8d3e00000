"""Questions among the children of one router, over unix sockets in a folder that only their user can read.

question:  SIZE, a Question in msgpack       answer:  SIZE, an Answer in msgpack

Each child that serves, or that lets its last clients go, has a socket there, named as the child. One that does not
answer in time is left out: what is shown then is less than the whole, and never late.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from struct import Struct
from typing import Any, Final

import msgspec

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.http.protocol.local_response import LocalRequest

logger = logging.getLogger(__name__)

SIZE: Final = Struct("<I")
MESSAGE_BYTES_MAX: Final = 64 << 20
ANSWER_S_MAX: Final = 3.0
"""Less than the time in which the admin API answers, and much more than a child takes that is not stuck."""

FEED: Final = "feed"
"""Begins the names of sockets in the folder at which no child answers, but a feed tells."""

PAGE: Final = "page"
"""The metrics page."""
COUNTS: Final = "counts"
"""The counters and histograms as numbers."""
ADMIN: Final = "admin"
"""A request to the admin API, as the client has sent it: whether it may is checked again."""


class Question(msgspec.Struct, frozen=True):
    """What one child asks of another."""

    what: str
    """PAGE, COUNTS or ADMIN."""
    method: str = ""
    path: str = ""
    query: str = ""
    headers: dict[bytes, bytes] = {}
    body: bytes = b""
    peer: str | None = None

    @classmethod
    def of(cls, request: LocalRequest) -> Question:
        """Return the question that passes a request on."""
        method, path, query, headers, body, peer = request
        return cls(ADMIN, method, path, query, dict(headers), body, peer)

    @property
    def request(self) -> LocalRequest:
        """The request that it passes on."""
        return LocalRequest(self.method, self.path, self.query, self.headers, self.body, self.peer)


class Answer(msgspec.Struct, frozen=True):
    """What the other one says. status: of the admin API's response."""

    status: int = 200
    body: bytes = b""
    counts: dict[str, Any] = {}


Answerer = Callable[[Question], Awaitable[Answer]]
_question = msgspec.msgpack.Decoder(Question)
_answer = msgspec.msgpack.Decoder(Answer)


class Siblings:
    """The other children, as one of them sees them. On the event loop only."""

    def __init__(self, folder: Path, name: str) -> None:
        """name: of this child, and of its socket in the folder."""
        self._folder, self._name = folder, name
        self._server: asyncio.Server | None = None

    def __repr__(self) -> str:
        return f"Siblings({self._name}, others={self.others()})"

    def others(self) -> list[str]:
        """Return the names of all others, in order."""
        with contextlib.suppress(OSError):
            names = (path.name for path in self._folder.iterdir())
            return sorted(name for name in names if name != self._name and not name.startswith(FEED))
        return []

    async def start(self, answer: Answerer) -> None:
        """Answer the others from now on. Raises ConfigError when there can be no socket."""
        path = self._folder / self._name

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, EOFError, TimeoutError, msgspec.MsgspecError):
                async with asyncio.timeout(2 * ANSWER_S_MAX):
                    _write(writer, await answer(_question.decode(await _read(reader))))
                    await writer.drain()
            writer.close()

        try:
            self._server = await asyncio.start_unix_server(serve, path)
        except OSError as exc:
            raise ConfigError(
                f"processes: expected room for sockets in {self._folder} (TMPDIR), got: {exc.strerror or exc}"
            ) from exc

    def stop(self) -> None:
        """Answer no more. Idempotent."""
        (self._folder / self._name).unlink(missing_ok=True)
        if self._server is not None:
            self._server.close()

    async def ask(self, question: Question) -> dict[str, Answer]:
        """Return the answers of the others that answer in time, by name."""
        names = self.others()
        answers = await asyncio.gather(*(self._ask(name, question) for name in names))
        return {name: answer for name, answer in zip(names, answers, strict=True) if answer is not None}

    async def _ask(self, name: str, question: Question) -> Answer | None:
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                reader, writer = await asyncio.open_unix_connection(self._folder / name)
                try:
                    _write(writer, question)
                    return _answer.decode(await _read(reader))
                finally:
                    writer.close()
        except (OSError, EOFError, TimeoutError, msgspec.MsgspecError) as exc:
            logger.debug("process %s does not answer: %r", name, exc)
            return None


def _write(writer: asyncio.StreamWriter, message: msgspec.Struct) -> None:
    data = msgspec.msgpack.encode(message)
    writer.write(SIZE.pack(len(data)) + data)


async def _read(reader: asyncio.StreamReader) -> bytes:
    (size,) = SIZE.unpack(await reader.readexactly(SIZE.size))
    if size > MESSAGE_BYTES_MAX:
        raise EOFError(f"expected at most {MESSAGE_BYTES_MAX} bytes, got {size}")
    return await reader.readexactly(size)
