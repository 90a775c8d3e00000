"""A worker as a process of its own, so that it can be stopped in its tracks: `EngineProcess`, and the program it runs.

    python -m tests.support.engine_process PORT NAME

It answers probes, and requests with its name at once. A streamed answer has one event, and does not end.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path

from ghostcacher_cli.up.machine import free_port
from ghostcacher_connector.core.process.guarded import GuardedProcess
from ghostcacher_simulator.api import EngineApi
from ghostcacher_simulator.http_server import EngineServer, Peer, Received, chunk, content, stream_head


class EngineProcess:
    """One worker; it is killed when the stack ends."""

    def __init__(self, stack: ExitStack, folder: Path, name: str, *, host: str = "127.0.0.1") -> None:
        """Start it. host: the name under which routers are to know it."""
        self.name = name
        self.host = host
        self.port = free_port()
        command = [sys.executable, "-m", "tests.support.engine_process", str(self.port), name]
        self.process = GuardedProcess(command, log=folder / f"engine-{name}.log", grace_s=5.0)
        stack.callback(self.process.kill)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def id(self) -> str:
        """Its name in a router that knows it by its URL."""
        return f"{self.host}:{self.port}"

    def pause(self) -> None:
        self.process.pause()

    def resume(self) -> None:
        self.process.resume()


async def main(port: str, name: str) -> None:
    """Serve until killed."""
    api = EngineApi()

    async def answer(peer: Peer, request: Received) -> None:
        if request.method == "GET":
            await api(peer, request)
        elif b'"stream": true' in request.body:
            peer.send(stream_head() + chunk(b'data: {"from": "%b"}\n\n' % name.encode()))
            await peer.left()
        else:
            peer.send(content(name.encode()))

    server = EngineServer(answer)
    server.port = int(port)
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
