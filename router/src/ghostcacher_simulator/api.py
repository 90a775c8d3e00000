"""What a simulated engine answers over HTTP: health, models and completions; or what it is told to answer instead."""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from ghostcacher_simulator.engine import Engine, Refused
from ghostcacher_simulator.http_server import LAST_CHUNK, Peer, Received, chunk, content, stream_head

COMPLETIONS = {"/v1/chat/completions", "/v1/completions"}
DONE = b"data: [DONE]\n\n"
EVENTS = 6
"""Of each answer, before the one that ends it: one output token each."""


def events_of(body: bytes) -> list[bytes]:
    """Return the one right answer to a request, event by event: none of it fits another request or place."""
    request = sha256(body).hexdigest()
    places = [sha256(f"{request}/{at}".encode()).hexdigest() for at in range(EVENTS)]
    return [b"data: %b\n\n" % (place * (1 + 9 * at)).encode() for at, place in enumerate(places)] + [DONE]


def prompt_text(request: dict[str, Any]) -> bytes:
    """Return the text that an engine would prefill: of all messages, or of the prompt."""
    if "messages" in request:
        return "".join(str(message.get("content", "")) for message in request["messages"]).encode()
    return str(request.get("prompt", "")).encode()


class EngineApi:
    """The handler of an `EngineServer` that answers as an engine does.

    engine: computes the completions; None: there are none, only health and models.
    models: names that it serves.
    headers: whole header lines of each completion.
    key: what /v1/* asks for as a bearer token; None: nothing.
    status: of /health.
    metrics: the page of /metrics; None: there is none.
    mute: read requests, and never answer.
    raw: bytes sent in place of any answer; then the connection is closed.
    """

    def __init__(
        self,
        engine: Engine | None = None,
        models: Iterable[str] = ("m",),
        *,
        headers: Iterable[bytes] = (),
        key: str | None = None,
        max_model_len: int = 32_768,
    ) -> None:
        self.engine = engine
        self.models = list(models)
        self.headers = tuple(headers)
        self.key = key
        self.status = 200
        self.metrics: bytes | None = None
        self.mute = False
        self.raw: bytes | None = None
        self._max_model_len = max_model_len

    async def __call__(self, peer: Peer, request: Received) -> None:
        """Answer one request, or do what was asked for instead."""
        if self.mute:
            await peer.left()
        elif self.raw is not None:
            peer.send(self.raw)
            await peer.writer.drain()
            peer.close()
        elif request.path in COMPLETIONS and request.method == "POST" and self.engine is not None:
            await self._complete(self.engine, peer, request)
        else:
            peer.send(self._page(request))

    def _page(self, request: Received) -> bytes:
        if request.path == "/health":
            return content(b"", status=self.status)
        if request.path == "/metrics" and self.metrics is not None:
            return content(self.metrics)
        if self.key is not None and request.headers.get(b"authorization") != f"Bearer {self.key}".encode():
            return content(b"{}", status=401)
        if request.path == "/v1/models":
            data = [{"id": name, "object": "model", "max_model_len": self._max_model_len} for name in self.models]
            return content(json.dumps({"object": "list", "data": data}).encode())
        return content(b"{}", status=404)

    async def _complete(self, engine: Engine, peer: Peer, request: Received) -> None:
        body = json.loads(request.body)
        events = events_of(request.body)
        streamed = bool(body.get("stream"))
        head = stream_head(*self.headers) if streamed else b""
        if len(request.body) % 2:
            # Engines differ: some send a stream's head at once, some with the first token.
            peer.send(head)
            head = b""
        try:
            prefilled = await engine.prefill(request.headers.get(b"x-request-id", b"").decode(), prompt_text(body))
        except Refused:
            peer.abort()
            return
        try:
            for event in events[:-1]:
                if streamed:
                    peer.send(head + chunk(event))
                    head = b""
                await engine.decode(1)
        finally:
            engine.release(prefilled)
        peer.send(chunk(DONE) + LAST_CHUNK if streamed else content(b"".join(events), *self.headers))
