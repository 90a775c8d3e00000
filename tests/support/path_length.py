"""How long the way of one request through a router is, counted instead of timed.

Counted are the lines and calls of the router's code that run from the request's last byte read to its answer's last
byte written: for the same request the same number each time, however slow the machine is.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, cast

import ghostcacher_router
from ghostcacher_router.http.clients.client_connection import ClientConnection
from ghostcacher_router.http.protocol.local_response import LocalRequest, LocalResponse
from ghostcacher_router.http.proxy import HttpProxy
from ghostcacher_router.parsing.parser import BodyParser
from ghostcacher_router.types import Body, Endpoint, RequestShape
from ghostcacher_router.upstreams.worker_connection import WorkerConnection
from ghostcacher_simulator.text import text_of
from ghostcacher_simulator.virtual_time import run_virtual
from tests.support.routing_sim import Sim, make_sim

PLACEMENT = ("placement", "signals", "ghostlock", "prefix_map", "fleet", "flow")
"""The packages that choose a worker and keep what is known of workers. All others are the way there and back."""

SEED = 7
PATH = "/v1/chat/completions"
ENGINES = 8
WARM_REQUESTS = 4
_ROOT = f"{Path(ghostcacher_router.__file__).parent}/"
_REQUEST_ID = re.compile(rb"\r\nX-Request-Id: ([^\r\n]*)\r\n")
_JSON = b'{"id":"chatcmpl-1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant"}}]}'
PLAIN = (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_JSON), _JSON),)
STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
    *[b'f\r\ndata: {"a":1}\n\n\r\n'] * 4,
    b"0\r\n\r\n",
)


class Steps(NamedTuple):
    """Lines and calls of a router's code: those that choose a worker, those that read the body, and all others."""

    placement: int
    parsing: int
    forwarding: int


class Socket:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def writelines(self, pieces: Sequence[bytes]) -> None:
        self.written += pieces

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 1) if name == "peername" else default

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def abort(self) -> None: ...


class _NothingLocal:
    def match(self, method: str, path: str) -> bool:  # noqa: ARG002 - the proxy's port
        return False

    async def handle(self, request: LocalRequest) -> LocalResponse:
        raise AssertionError(request)


def chat_body(size: int, question: int, *, stream: bool = False) -> bytes:
    """Return a chat request of `size` bytes: seven parts of a system prompt that all share, one of a question."""

    def packed(system: str, asked: str) -> bytes:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": asked}]
        return json.dumps({"model": "m", "messages": messages, "max_tokens": 16, "stream": stream}).encode()

    room = size - len(packed("", ""))
    shared = room * 7 // 8
    asked = f"{question:08d} " + text_of("question", room)[: room - shared - 9].decode()
    body = packed(text_of("system", room)[:shared].decode(), asked)
    assert len(body) == size, len(body)
    return body


class CountedRouter:
    """A router whose engines are simulated, and a client, with transports between them that keep what is written."""

    def __init__(self, sim: Sim) -> None:
        self._sim, router = sim, sim.routers[0]
        self._parser = BodyParser(1 << 20)
        self._proxy = HttpProxy(
            router.routing.dispatcher, _NothingLocal(), self._parse, router.metrics, router="r0", clock=sim.now
        )
        self._client, self._to_client = ClientConnection(self._proxy.state), Socket()
        self._client.connection_made(cast(Any, self._to_client))
        self._workers: dict[Socket, tuple[str, WorkerConnection]] = {}
        for number, (name, engine) in enumerate(sim.engines.items()):
            engine.worker.endpoint = endpoint = Endpoint("127.0.0.1", 1 + number, False, "")
            pool = self._proxy.state.pools[endpoint]
            connection, socket = WorkerConnection(pool), Socket()
            connection.connection_made(cast(Any, socket))
            pool.open.add(connection)
            pool.put(connection)
            self._workers[socket] = name, connection

    async def warm(self, body: bytes) -> None:
        """Answer a request as an engine does that computes its prompt, reports it and publishes it."""
        self.send(body)
        name, connection, sent = self._taken()
        found = _REQUEST_ID.search(sent)
        assert found is not None, sent
        engine = self._sim.engines[name]
        engine.release(await engine.prefill(found[1].decode(), body))
        self.answer(connection, PLAIN)
        await self._sim.settle(1.0)

    def serve(self, body: bytes, answer: Sequence[bytes]) -> None:
        """Pass a request and its answer on, in one go."""
        self.send(body)
        _, connection, _ = self._taken()
        self.answer(connection, answer)

    def send(self, body: bytes) -> None:
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._client.data_received(head.encode() + body)

    def answer(self, connection: WorkerConnection, answer: Sequence[bytes]) -> None:
        self._to_client.written.clear()
        for piece in answer:
            connection.data_received(piece)
        assert self._to_client.written[0].startswith(b"HTTP/1.1 200 OK\r\n"), self._to_client.written

    def _taken(self) -> tuple[str, WorkerConnection, bytes]:
        """Return the worker that was sent a request, its connection, and the head."""
        ((name, connection, socket),) = ((*there, socket) for socket, there in self._workers.items() if socket.written)
        head = socket.written[0]
        socket.written.clear()
        return name, connection, head

    def _parse(self, path: str, body: Body, headers: Mapping[bytes, bytes]) -> RequestShape | Awaitable[RequestShape]:
        return self._parser.parse(path, body, headers, SEED)


async def steps_of_request(size: int, answer: Sequence[bytes], *, plain_engines: bool) -> Steps:
    """Return the steps of a request whose prefix is known. plain_engines: there is no index."""
    found = await steps_by_file(size, answer, plain_engines=plain_engines)

    def of(*packages: str) -> int:
        return sum(count for name, count in found.items() if name.partition("/")[0] in packages)

    placement, parsing = of(*PLACEMENT), of("prompt", "parsing")
    return Steps(placement, parsing, found.total() - placement - parsing)


async def steps_by_file(size: int, answer: Sequence[bytes], *, plain_engines: bool) -> Counter[str]:
    """Return the same for each file of the router, at the second time that nothing is new."""
    router = CountedRouter(await make_sim(ENGINES, plain=plain_engines))
    stream = answer is STREAM
    for number in range(WARM_REQUESTS):
        await router.warm(chat_body(size, number, stream=stream))
    router.serve(chat_body(size, WARM_REQUESTS, stream=stream), answer)
    body = chat_body(size, WARM_REQUESTS + 1, stream=stream)
    return counted(lambda: router.serve(body, answer))


def counted(run: Callable[[], object]) -> Counter[str]:
    """Return how many lines and calls of each file of the router run, by its path in the package."""
    found: Counter[str] = Counter()

    def on_line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            found[frame.f_code.co_filename] += 1
        return on_line

    def on_call(frame: FrameType, _: str, __: Any) -> Any:
        return on_line if frame.f_code.co_filename.startswith(_ROOT) else None

    def on_profiled(frame: FrameType, event: str, _: Any) -> None:
        if event in ("call", "c_call"):
            found[frame.f_code.co_filename] += 1

    before = sys.gettrace(), sys.getprofile()
    sys.setprofile(on_profiled)
    sys.settrace(on_call)
    try:
        run()
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
    return Counter({name.removeprefix(_ROOT): count for name, count in found.items() if name.startswith(_ROOT)})


def main() -> None:
    for size in (2, 32, 256):
        for answer, plain_engines in ((PLAIN, False), (PLAIN, True), (STREAM, False)):
            found = run_virtual(steps_by_file(size << 10, answer, plain_engines=plain_engines))
            kind = f"{'stream' if answer is STREAM else 'plain'}, {'no index' if plain_engines else 'index'}"
            print(f"{size} KiB, {kind}: {found.total()}")
            for name, count in found.most_common():
                print(f"{count:7d} {name}")


if __name__ == "__main__":
    main()
