"""Servers in an engine's place: one answers with scripted bytes, one as an engine does. Both are the simulator's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from ghostcacher_router.types import Endpoint
from ghostcacher_simulator.api import EngineApi
from ghostcacher_simulator.http_server import (
    LAST_CHUNK,
    EngineServer,
    Handler,
    Peer,
    Received,
    chunk,
    content,
    stream_head,
)

CHUNKED = stream_head()
CHAT_PATH = "/v1/chat/completions"


def chunks(*bodies: bytes) -> bytes:
    """Return a chunked body."""
    return b"".join(map(chunk, bodies)) + LAST_CHUNK


def says(answer: bytes) -> Handler:
    """A script that always answers the same."""
    return lambda peer, _: peer.send(answer)


def echo(peer: Peer, request: Received) -> None:
    """Answer with the request's body."""
    peer.send(content(request.body))


class MockEngine(EngineServer):
    """A server without an engine. script: what it does with each request; it may be changed at any time."""

    def __init__(self, name: str, script: Handler = echo) -> None:
        super().__init__(script)
        self.name = name

    @property
    def script(self) -> Handler:
        return self.handler

    @script.setter
    def script(self, script: Handler) -> None:
        self.handler = script

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.port, False, "")


class MiniEngine(EngineServer):
    """A server that tells its health and its models, and computes nothing. api: says how it behaves."""

    def __init__(self, models: Iterable[str] = ("m",), *, key: str | None = None) -> None:
        self.api = EngineApi(models=models, key=key, max_model_len=512)
        super().__init__(self.api)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.port, False, "")

    @property
    def asked(self) -> list[str]:
        """The paths that were asked for, in order."""
        return [request.path for request in self.received]


class ChatEngine(MiniEngine):
    """Answers chats with two events, of which the first has its port. held: whether the second comes at `end_held`."""

    def __init__(self) -> None:
        super().__init__()
        self.held = False
        self._ended = asyncio.Event()
        tells = self.handler

        async def answer(peer: Peer, request: Received) -> None:
            if request.path != CHAT_PATH:
                await tells(peer, request)
                return
            peer.send(stream_head(), chunk(b"data: %d\n\n" % self.port))
            if self.held:
                left, ended = asyncio.ensure_future(peer.left()), asyncio.ensure_future(self._ended.wait())
                await asyncio.wait({left, ended}, return_when=asyncio.FIRST_COMPLETED)
                if left.done():
                    ended.cancel()
                    return
                left.cancel()
            peer.send(chunk(b"data: [DONE]\n\n"), LAST_CHUNK)

        self.handler = answer

    def end_held(self) -> None:
        """Let the answers that are held go on to their end."""
        self._ended.set()
        self._ended = asyncio.Event()

    @property
    def chats(self) -> list[Received]:
        return [request for request in self.received if request.path == CHAT_PATH]


async def until(condition: Callable[[], bool], what: str = "condition", timeout_s: float = 60.0) -> None:
    """Let the loop run until a condition holds; fail when it does not in time."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
