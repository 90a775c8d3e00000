"""Clients that keep asking through a router while its processes are replaced, and note every request that fails."""

from __future__ import annotations

import asyncio
import json
from typing import Final

from ghostcacher_simulator.http_server import LAST_CHUNK, Peer, Received, chunk, content, stream_head
from tests.support.mock_engine import MiniEngine

PATIENCE_S: Final = 60.0
STREAM_REQUESTS: Final = 40
"""A stream ends when so many requests have come after it: it spans what happens meanwhile on any machine."""


class EchoEngine(MiniEngine):
    """Answers with the request's prompt; a stream begins with it, and ends a number of requests later."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._come = asyncio.Condition()
        self.handler = self._answer

    async def _answer(self, peer: Peer, request: Received) -> None:
        if request.method != "POST":
            await self.api(peer, request)
            return
        asked = json.loads(request.body)
        prompt = asked["prompt"].encode()
        async with self._come:
            self.count += 1
            until = self.count + STREAM_REQUESTS
            self._come.notify_all()
            if not asked.get("stream"):
                peer.send(content(prompt))
                return
            peer.send(stream_head(), chunk(b"data: " + prompt + b"\n\n"))
            await self._come.wait_for(lambda: self.count >= until)
        peer.send(chunk(b"data: [DONE]\n\n"), LAST_CHUNK)


class RestartLoad:
    """Asks until it is stopped.

    clients, streams: keep their connections, as long as the router does not say otherwise. fresh: those that never do.
    """

    def __init__(self, port: int, *, clients: int, streams: int = 0, fresh: int = 0) -> None:
        self._port = port
        self.answered = self.streamed = self.closed = 0
        """Requests that went well; connections that the router has asked to give up."""
        self.failures: list[str] = []
        self._ending = False
        self._streams = [asyncio.create_task(self._ask_on(f"s{number}", True)) for number in range(streams)]
        self._clients = [asyncio.create_task(self._ask_on(f"c{number}", False)) for number in range(clients)]
        self._clients += [asyncio.create_task(self._ask_on(f"f{number}", False)) for number in range(fresh)]

    async def stop(self) -> None:
        """End it. Streams end only while there are other requests, so that those go on until then."""
        self._ending = True
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*self._streams, *self._clients)

    async def _ask_on(self, name: str, stream: bool) -> None:
        number, connection = 0, None
        while not self._ending or (not stream and not all(task.done() for task in self._streams)):
            number += 1
            fresh = connection is None
            try:
                async with asyncio.timeout(PATIENCE_S):
                    if connection is None:
                        connection = await asyncio.open_connection("127.0.0.1", self._port)
                    keep = await self._ask(*connection, f"{name}-{number}", stream)
            except (OSError, EOFError, TimeoutError, AssertionError) as exc:
                self.failures.append(f"{name}-{number}, connection {'new' if fresh else 'kept'}: {exc!r}")
                keep = False
            self.closed += not keep
            if not keep or name.startswith("f"):
                if connection is not None:
                    connection[1].close()
                connection = None
        if connection is not None:
            connection[1].close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, prompt: str, stream: bool) -> bool:
        """Ask, and check the whole answer; say whether the connection may be used again."""
        body = json.dumps({"model": "m", "prompt": prompt, "stream": stream}).encode()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        if stream:
            answer = await reader.readuntil(LAST_CHUNK)
            assert answer.endswith(chunk(b"data: [DONE]\n\n") + LAST_CHUNK), answer
            assert prompt.encode() in answer, answer
            self.streamed += 1
        else:
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            answer = await reader.readexactly(length)
            assert answer == prompt.encode(), answer
            self.answered += 1
        return b"connection: close" not in head
