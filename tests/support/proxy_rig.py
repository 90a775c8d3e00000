"""An HTTP proxy with mock engines behind it, and raw clients. What is left over at the end fails the test."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvloop

from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.http.protocol.local_response import LocalRequest, LocalResponse
from ghostcacher_router.http.proxy import HttpProxy
from ghostcacher_router.prompt.bodies import BadBody
from ghostcacher_router.types import (
    Ask,
    Body,
    Endpoint,
    Forecast,
    LongBody,
    NoWorker,
    Outcome,
    Placement,
    Reason,
    RequestShape,
    Server,
)
from tests.support.mock_engine import MockEngine

PATIENCE_S = 60.0
"""Of every wait: what does not come in this time never comes, on the slowest machine, too."""

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: router\r\n"


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on uvloop, as the router runs."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        uvloop.run(test(*args, **kwargs))

    return run


async def eventually(condition: Callable[[], object]) -> None:
    """Return once the condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


def post(body: bytes, *headers: bytes) -> bytes:
    lines = b"".join(b"%b\r\n" % header for header in headers)
    return b"%bContent-Length: %d\r\n%b\r\n%b" % (POST, len(body), lines, body)


class Clock:
    """Time that only a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class RecordedPlacement:
    """A placement that remembers what it was told, and insists on the order that the port promises."""

    def __init__(self, worker: str, endpoint: Endpoint, ask: Ask, forecast: Forecast | None) -> None:
        self.worker, self.endpoint, self.ask, self.forecast = worker, endpoint, ask, forecast
        self.data_parallel_rank: int | None = None
        self.reason = Reason.ONLY
        self.ttft_ms: float | None = None
        self.told: list[str] = []
        self.answer_ids: list[str] = []
        self.outcome: Outcome | None = None
        self.status: int | None = None
        self.doubtful = False
        self.prompt = ask.shape.prompt
        self.blamed: bool | None = None
        """Whether surely; None: not at all."""

    def sent(self) -> None:
        assert self.told == [], self.told
        self.told.append("sent")

    def first_byte(self) -> None:
        assert self.told == ["sent"], self.told
        self.told.append("first_byte")

    def answer_id(self, answer_id: str) -> None:
        assert self.outcome is None, self.outcome
        self.answer_ids.append(answer_id)

    def ended(self, outcome: Outcome, status: int | None) -> None:
        assert self.outcome is None, self.outcome
        self.outcome, self.status = outcome, status

    def failed(self, *, sure: bool) -> None:
        assert self.outcome is not None, self.ask
        assert self.blamed is None, self.ask
        self.blamed = sure


class FirstOf:
    """Places on the first engine that is not excluded. slow: each placement is awaited, until the event is set."""

    def __init__(self, engines: list[MockEngine]) -> None:
        self.engines = engines
        self.placements: list[RecordedPlacement] = []
        self.slow: asyncio.Event | None = None
        self.waiting = 0
        self.told: list[str] = []
        self.forecast: Forecast | None = None
        self.rank: int | None = None
        self.doubtful: set[str] = set()
        self.computing: set[str] = set()
        """Engines that only compute prompts."""

    def place_now(self, ask: Ask) -> Placement | None:
        return self._place(ask) if self.slow is None else None

    async def place(self, ask: Ask) -> Placement:
        assert self.slow is not None
        self.waiting += 1
        try:
            await self.slow.wait()
        finally:
            self.waiting -= 1
        return self._place(ask)

    def hands_over(self, model: str | None) -> bool:  # noqa: ARG002 - the router's protocol
        return bool(self.computing)

    def servers(self) -> list[Server]:
        return [Server(engine.name, engine.endpoint) for engine in self.engines]

    def told_all(self, path: str) -> None:
        self.told.append(path)

    def _place(self, ask: Ask) -> Placement:
        for engine in self.engines:
            if engine.name not in ask.exclude and (engine.name in self.computing) is (ask.step is PdRole.PREFILL):
                self.placements.append(RecordedPlacement(engine.name, engine.endpoint, ask, self.forecast))
                self.placements[-1].data_parallel_rank = self.rank
                self.placements[-1].doubtful = engine.name in self.doubtful
                return self.placements[-1]
        raise NoWorker(503, "no worker is ready", kind="no_worker", retry_after_s=2)


class LocalPages:
    """Answers under /local/ itself: "/local/wait" never, "/local/bug" wrongly."""

    def match(self, method: str, path: str) -> bool:  # noqa: ARG002
        return path.startswith("/local/")

    async def handle(self, request: LocalRequest) -> LocalResponse:
        if request.path == "/local/wait":
            await asyncio.Event().wait()
        if request.path == "/local/bug":
            raise RuntimeError("a bug")
        text = f"{request.method} {request.path} {request.query} {request.peer} ".encode() + request.body
        return LocalResponse(200, [(b"content-type", b"text/plain")], text)


class Turned(list[tuple[str, ...]]):
    """The labels under which clients were counted that there was no room for, in order."""

    def inc(self, *labels: str) -> None:
        self.append(labels)


class Tally:
    """Counts what the proxy reports."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, int]] = []
        self.latencies_ms: list[float] = []
        self.reasons: list[str] = []
        self.turned_away = Turned()
        self.handovers = Turned()

    @property
    def latency_ms(self) -> Tally:
        return self

    @property
    def retries(self) -> Tally:
        return self

    def observe(self, value: float) -> None:
        self.latencies_ms.append(value)

    def inc(self, *labels: str) -> None:
        self.reasons += labels

    def answered(self, path: str, status: int) -> None:
        self.answers.append((path, status))


def parse(path: str, body: Body, headers: Mapping[bytes, bytes]) -> RequestShape:
    """Take every body but the one that is bad."""
    if body == b"bad body":
        raise BadBody("expected better", "messages")
    if body == b"bug":
        raise RuntimeError("a bug")
    session = headers.get(b"x-gc-session", b"").decode("latin-1") or None
    return RequestShape(None, False, None, session, makes_id=path.startswith("/v1/responses"))


class Parser:
    """Takes bodies as `parse` does, but those that begin with "long" wait until a test says what they are."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[RequestShape]] = []

    def __call__(
        self, path: str, body: Body, headers: Mapping[bytes, bytes]
    ) -> RequestShape | asyncio.Future[RequestShape]:
        if isinstance(body, LongBody) or not body.startswith(b"long"):
            return parse(path, body, headers)
        self.waiting.append(asyncio.get_running_loop().create_future())
        return self.waiting[-1]


class Client:
    """A raw connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def answer(self, *, no_body: bool = False) -> tuple[bytes, bytes]:
        """Return head and body of the next answer; of a chunked one, its raw bytes."""
        head = await self.head()
        async with asyncio.timeout(PATIENCE_S):
            lower = head.lower()
            if no_body or b" 204 " in head[:14]:
                return head, b""
            if b"content-length: " in lower:
                length = int(lower.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                return head, await self.reader.readexactly(length)
            if b"transfer-encoding: chunked" in lower:
                return head, await self.reader.readuntil(b"0\r\n\r\n")
            return head, await self.reader.read()

    async def ask(self, data: bytes) -> tuple[bytes, bytes]:
        self.send(data)
        return await self.answer()

    async def rest(self) -> bytes:
        """Return everything until the proxy closes; what a reset leaves over is empty."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def ends_with_reset(self) -> bool:
        """Read on until the proxy closes; say whether it resets the connection."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                await self.reader.read()
            except ConnectionResetError:
                return True
        return False

    def finish(self) -> None:
        """Send a FIN, and go on reading."""
        self.writer.write_eof()

    def abort(self) -> None:
        """Reset the connection."""
        if not self.writer.transport.is_closing():
            linger = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


class Rig:
    def __init__(
        self, proxy: HttpProxy, port: int, dispatcher: FirstOf, meter: Tally, clock: Clock, parser: Parser
    ) -> None:
        self.proxy, self.port, self.dispatcher, self.meter, self.clock = proxy, port, dispatcher, meter, clock
        self.parser = parser
        self.state = proxy.state
        self.engines = dispatcher.engines
        self.clients: list[Client] = []

    @property
    def engine(self) -> MockEngine:
        return self.engines[0]

    @property
    def placements(self) -> list[RecordedPlacement]:
        return self.dispatcher.placements

    async def client(self, address: str = "127.0.0.1") -> Client:
        """Connect from an address of this machine."""
        local = (address, 0)
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 25, local_addr=local))
        self.clients.append(client)
        return client

    async def ask(self, data: bytes) -> tuple[bytes, bytes]:
        """Ask on a connection of its own."""
        return await (await self.client()).ask(data)

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds
        self.proxy.tick()

    async def check_idle(self) -> None:
        """Assert that nothing is held, once all clients are gone."""
        for client in self.clients:
            client.abort()
        try:
            await eventually(lambda: not self.state.clients)
        except TimeoutError:
            raise AssertionError(f"left over: {self.state.clients}") from None
        admission = self.state.admission
        assert not any((admission._waiting, admission._waiting_of, admission._sending))
        assert not any((admission._count_of, admission._refused))
        assert self.state.in_flight == 0
        assert self.state.buffered_bytes == 0
        assert self.dispatcher.waiting == 0
        not_ended = [place.ask for place in self.placements if place.outcome is None]
        assert not_ended == [], not_ended
        failures = [repr(failure) for engine in self.engines for failure in engine.failures]
        assert failures == [], failures


@asynccontextmanager
async def proxy_rig(*engines: MockEngine, limits: Limits | None = None, drain_s: float = 0.0) -> AsyncIterator[Rig]:
    """A proxy over engines ("w0" that echoes, when none are given), on a clock of its own."""
    group = list(engines) or [MockEngine("w0")]
    loop = asyncio.get_running_loop()
    errors: list[dict[str, Any]] = []
    sockets = _open_sockets()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    for engine in group:
        await engine.start()
    dispatcher, meter, clock, parser = FirstOf(group), Tally(), Clock(), Parser()
    proxy = HttpProxy(dispatcher, LocalPages(), parser, meter, router="t", limits=limits, clock=clock)
    rig = Rig(proxy, await proxy.start("127.0.0.1", 0), dispatcher, meter, clock, parser)
    yield rig
    await rig.check_idle()
    await _bounded(proxy.stop(drain_s))
    assert proxy.state.pools.open_count == 0
    for engine in group:
        await engine.stop()
    await eventually(lambda: _open_sockets() <= sockets)
    with suppress(TimeoutError):
        await eventually(lambda: not _other_tasks())  # One that is cancelled ends in a later turn of the loop.
    assert _other_tasks() == []
    assert errors == [], errors


async def _bounded(wait: Awaitable[None]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await wait


def _other_tasks() -> list[str]:
    return [str(task.get_coro()) for task in asyncio.all_tasks() - {asyncio.current_task()}]


def _open_sockets() -> int:
    folder = Path("/proc/self/fd")
    count = 0
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):  # The listing's own.
            count += os.readlink(folder / name).startswith("socket:")
    return count
