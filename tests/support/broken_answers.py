"""A worker that breaks off its answers, and what its clients see of that."""

from __future__ import annotations

import asyncio
import socket
import struct

from tests.support.mock_engine import MockEngine, Peer, Received
from tests.support.proxy_rig import PATIENCE_S, Client, post


def reset(peer: Peer) -> None:
    """Close a worker's connection with a reset."""
    linger = struct.pack("ii", 1, 0)
    peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    peer.writer.transport.abort()


class BreakingEngine(MockEngine):
    """Sends `answer`, and resets its connection, or falls silent, once `gate` is set."""

    def __init__(self, answer: bytes, *, silent: bool = False) -> None:
        super().__init__("w0", self.begin)
        self.answer, self.silent = answer, silent
        self.gate = asyncio.Event()

    async def begin(self, peer: Peer, _: Received) -> None:
        peer.send(self.answer)
        if self.silent:
            await peer.left()
        await self.gate.wait()
        reset(peer)


def request(version: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
    return post(b"{}").replace(b"HTTP/1.1", b"HTTP/" + version).replace(b"/v1/chat/completions", path)


async def cut(client: Client, head: bytes) -> tuple[bool, bytes]:
    """Return whether the client saw a reset, and what came before that."""
    rest = bytearray()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while data := await client.reader.read(1 << 16):
                rest += data
    except ConnectionResetError:
        return True, bytes(rest)
    assert b"content-length" in head.lower() or b"chunked" in head.lower(), "looks like a whole answer"
    return False, bytes(rest)
