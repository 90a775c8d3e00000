"""Clients that never stop asking, and look at every byte that they get."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import NamedTuple

from ghostcacher_simulator.api import events_of
from tests.support.index_parts import wait_until

PATIENCE_S = 60.0
"""For one answer, however many stops and restarts it meets on a busy machine."""
PAUSE_S = 0.01
REUSES = 8
"""Requests of each client with one system prompt, before all go on to the next: each is cold once, and then shared."""
SYSTEM_BYTES = 3 << 10
ERROR_EVENT = b'data: {"error":'


class Wrong(Enum):
    """What a client can hold against an answer. LOST: there was none. REFUSED: it is an error. BROKEN: it had begun.

    MIXED: bytes that do not belong to this request. STUCK: neither an answer nor an end.
    """

    LOST = "lost"
    REFUSED = "refused"
    BROKEN = "broken"
    MIXED = "mixed"
    STUCK = "stuck"


class Failure(NamedTuple):
    """One request that failed. worker, incarnation: as its answer's head said, empty without one. at: monotonic, s."""

    wrong: Wrong
    router: str
    worker: str
    incarnation: str
    at: float
    why: str


class Failed(Exception):
    """An answer is not what it should be."""

    def __init__(self, wrong: Wrong, why: str) -> None:
        super().__init__(why)
        self.wrong = wrong


def body_of(load: str, client: int, number: int) -> bytes:
    """Return a request that nobody else makes; the other clients of its load have the same system prompts."""
    system = (f"You work on project {load}/{number // REUSES}. " * SYSTEM_BYTES)[:SYSTEM_BYTES]
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": f"Question {number} of client {client}. " + "x" * (number % 700)},
    ]
    return json.dumps({"model": "m", "messages": messages, "stream": number % 4 != 0}).encode()


class _Connection:
    """A client's connection to a router, kept for its next request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.headers: dict[str, str] = {}

    async def ask(self, load: str, client: int, number: int) -> None:
        """Make a request and look at the answer. Raises Failed."""
        self.headers = {}
        body = body_of(load, client, number)
        name = f"{load}-{client}-{number}"
        lines = f"POST /v1/chat/completions HTTP/1.1\r\nHost: router\r\nContent-Length: {len(body)}\r\n"
        lines += f"X-Request-Id: {name}\r\n" if number % 2 else ""
        lines += f"X-Session-Id: {load}-{client}\r\n" if client % 3 == 0 else ""
        try:
            self.writer.write(f"{lines}\r\n".encode() + body)
            status = await self._head()
        except (asyncio.IncompleteReadError, ConnectionError) as exc:
            raise Failed(Wrong.LOST, repr(exc)) from None
        got = bytearray()
        try:
            await self._body(got)
        except (asyncio.IncompleteReadError, ConnectionError) as exc:
            # The router tells the client of a stream that it is broken, in an event of its own.
            passed = bytes(got).partition(ERROR_EVENT)[0].rstrip(b"\n")
            wrong = Wrong.BROKEN if b"".join(events_of(body)).startswith(passed) else Wrong.MIXED
            raise Failed(wrong, f"after {len(got)} bytes: {exc!r}") from None
        if status != 200:
            raise Failed(Wrong.REFUSED, f"status {status}: {got[:300]!r}")
        if number % 2 and self.headers.get("x-request-id") != name:
            raise Failed(Wrong.MIXED, f"request {name}, got {self.headers}")
        if got != b"".join(events_of(body)):
            raise Failed(Wrong.MIXED, f"{len(got)} other bytes: {got[:100]!r}")

    async def _head(self) -> int:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = [line.partition(": ") for line in lines[1:-2]]
        self.headers = {name.lower(): value for name, _, value in pairs}
        return int(lines[0].split()[1])

    async def _body(self, got: bytearray) -> None:
        if "content-length" in self.headers:
            got += await self.reader.readexactly(int(self.headers["content-length"]))
            return
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            piece = await self.reader.readexactly(size + 2)
            got += piece[:-2]
        await self.reader.readexactly(2)

    @property
    def ends(self) -> bool:
        """Whether the router closes it after this answer."""
        return self.headers.get("connection") == "close"


class SteadyLoad:
    """Clients of several routers, on a thread of their own. Use as a context manager.

    right: answers that were as they should be, by router and by incarnation of the worker. failures: all others.
    """

    def __init__(self, routers: Sequence[str], *, clients: int) -> None:
        """routers: base URLs. clients: of each."""
        self.name = os.urandom(4).hex()
        self._routers = tuple(routers)
        self._clients = clients
        self._gone: dict[str, frozenset[Wrong]] = {}
        self._ending = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.right: Counter[tuple[str, str]] = Counter()
        self.failures: list[Failure] = []

    def __enter__(self) -> SteadyLoad:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._thread.join()

    @property
    def first_body(self) -> bytes:
        """The first request of the first client."""
        return body_of(self.name, 0, 1)

    def answered(self, router: str | None = None, incarnation: str | None = None) -> int:
        """Return how many right answers came, through a router and from one incarnation of a worker."""
        found = dict(self.right)
        return sum(count for key, count in found.items() if router in (None, key[0]) and incarnation in (None, key[1]))

    def go_on(self, count: int, *, routers: Sequence[str] | None = None) -> None:
        """Return when so many more right answers have come through each router."""
        for router in self._routers if routers is None else routers:
            target = self.answered(router) + count
            self.until(partial(self._has, router, target), f"{count} answers of {router}")

    def _has(self, router: str, count: int) -> bool:
        return self.answered(router) >= count

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Return when a condition holds; fail when it does not in time, with what has failed until then."""
        try:
            wait_until(lambda: bool(condition()), timeout_s=PATIENCE_S, what=what)
        except AssertionError as exc:
            raise AssertionError(f"{exc}; failures: {self.failures[:5]}") from None

    def leave(self, router: str, *excused: Wrong) -> None:
        """Have the clients of a router that is about to end ask no more; so much is no failure from now on."""
        self._gone[router] = frozenset(excused)

    def come_back(self, router: str) -> None:
        """Have the clients of a router ask again."""
        del self._gone[router]

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for place, router in enumerate(self._routers):
                for number in range(self._clients):
                    group.create_task(self._client(place * self._clients + number, router))

    async def _client(self, client: int, router: str) -> None:
        connection: _Connection | None = None
        number = 0
        while not self._ending:
            number += 1
            if router not in self._gone:
                connection = await self._one(client, number, router, connection)
            elif connection is not None:
                connection.writer.close()
                connection = None
            await asyncio.sleep(PAUSE_S)
        if connection is not None:
            connection.writer.close()

    async def _one(self, client: int, number: int, router: str, kept: _Connection | None) -> _Connection | None:
        """Make one request; return the connection if it can be kept."""
        connection = kept
        try:
            async with asyncio.timeout(PATIENCE_S):
                if connection is None:
                    host, _, port = router.removeprefix("http://").partition(":")
                    connection = _Connection(*await asyncio.open_connection(host, int(port), limit=1 << 22))
                await connection.ask(self.name, client, number)
        except TimeoutError:
            self._note(Wrong.STUCK, router, connection, f"no end within {PATIENCE_S:g} s")
        except OSError as exc:
            self._note(Wrong.LOST, router, connection, repr(exc))
        except Failed as exc:
            self._note(exc.wrong, router, connection, str(exc))
        except (ValueError, IndexError, asyncio.LimitOverrunError) as exc:
            self._note(Wrong.MIXED, router, connection, f"no HTTP: {exc!r}")
        else:
            self.right[router, connection.headers.get("x-incarnation", "")] += 1
            if number % 11 and not connection.ends:
                return connection
        if connection is not None:
            connection.writer.close()
        return None

    def _note(self, wrong: Wrong, router: str, connection: _Connection | None, why: str) -> None:
        if wrong in self._gone.get(router, ()):
            return
        headers = {} if connection is None else connection.headers
        worker, incarnation = headers.get("x-gc-worker", ""), headers.get("x-incarnation", "")
        self.failures.append(Failure(wrong, router, worker, incarnation, time.monotonic(), why))
