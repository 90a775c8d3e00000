"""A server that answers /health and /v1/models as an engine does, and can be told to behave badly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable

from ghostcacher_router.types import Endpoint


class MiniEngine:
    """One engine on loopback. status: of /health. asked: paths, in order. mute: take connections, and say nothing.

    raw: sent in place of any answer. key: what /v1/* asks for.
    """

    def __init__(self, models: Iterable[str] = ("m",), *, key: str | None = None) -> None:
        self.models = list(models)
        self.status = 200
        self.mute = False
        self.raw: bytes | None = None
        self.key = key
        self.asked: list[str] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint("127.0.0.1", self.port, False, "")

    async def start(self) -> None:
        """Listen; on the same port as before, if there was one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in self._open:
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def __aenter__(self) -> MiniEngine:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split()[1]
            self.asked.append(path)
            if self.mute:
                await reader.read()
                return
            writer.write(self._answer(path, head) if self.raw is None else self.raw)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    def _answer(self, path: str, head: str) -> bytes:
        if path == "/health":
            return answer(self.status, b"")
        if self.key is not None and f"authorization: Bearer {self.key}\r\n" not in head:
            return answer(401, b"{}")
        data = [{"id": model, "object": "model", "max_model_len": 512} for model in self.models]
        return answer(200, json.dumps({"object": "list", "data": data}).encode())


def answer(status: int, body: bytes) -> bytes:
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def until(condition: Callable[[], bool], what: str = "condition", timeout_s: float = 10.0) -> None:
    """Let the loop run until a condition holds; fail when it does not in time."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
