"""An engine's server that keeps answers, files and batches in its memory, as engines do, behind whole routers."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from uuid import uuid4

from ghostcacher_router.app import Router
from ghostcacher_router.config import RouterSettings
from ghostcacher_simulator.http_server import LAST_CHUNK, EngineServer, Peer, Received, chunk, content, stream_head

COLLECTIONS = {"responses": "resp_", "files": "file-", "batches": "batch_"}
NEEDS = ("previous_response_id", "input_file_id")
SESSIONS = ("/open_session", "/close_session", "/generate")


class KeepingEngine(EngineServer):
    """Makes objects with ids, and knows its own ones only.

    kept: what it has, by id. gate: streams wait for it behind their first event.
    adapters: LoRA adapters that it lists beside its models. findable: those that it finds when it is asked for them.
    metrics: its page of metrics.
    """

    def __init__(self, name: str, models: Iterable[str] = ("m",)) -> None:
        super().__init__(self._answer)
        self.name = name
        self.models = list(models)
        self.adapters: list[str] = []
        self.findable: set[str] = set()
        self.metrics = b""
        self.kept: dict[str, dict[str, Any]] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def served(self) -> list[Received]:
        """All requests but those of probes."""
        return [request for request in self.received if request.path not in ("/health", "/v1/models", "/metrics")]

    async def _answer(self, peer: Peer, request: Received) -> None:
        path, _, _ = request.path.partition("?")
        _, _, collection, *rest = (*path.split("/"), "", "")
        if path == "/health":
            peer.send(content(b""))
        elif path == "/v1/models":
            adapters = [{"id": name, "parent": self.models[0]} for name in self.adapters]
            peer.send(_json({"object": "list", "data": [{"id": name} for name in self.models] + adapters}))
        elif path == "/metrics":
            peer.send(content(self.metrics))
        elif collection in COLLECTIONS and rest[0]:
            found = self.kept.get(rest[0])
            if request.method == "DELETE":
                self.kept.pop(rest[0], None)
            peer.send(_missing(rest[0]) if found is None else _json(found))
        elif collection in COLLECTIONS and request.method == "POST":
            await self._make(peer, COLLECTIONS[collection], request)
        elif path in SESSIONS:
            peer.send(self._session(path, json.loads(request.body)))
        elif path == "/v1/completions" and not self._has(json.loads(request.body)["model"]):
            peer.send(_json({"error": {"message": "The model does not exist.", "code": 404}}, 404))
        else:
            peer.send(_json({"engine": self.name, "path": request.path}))

    def _has(self, model: str) -> bool:
        if model in self.findable and model not in self.adapters:
            self.adapters.append(model)
        return model in (*self.models, *self.adapters)

    def _session(self, path: str, body: dict[str, Any]) -> bytes:
        if path == "/open_session":
            name = uuid4().hex
            self.kept[name] = {}
            return _json(name)
        name = body["session_id"] if path == "/close_session" else body["session_params"]["id"]
        if name not in self.kept:
            return _missing(name)
        if path == "/close_session":
            del self.kept[name]
        return _json({"engine": self.name})

    async def _make(self, peer: Peer, prefix: str, request: Received) -> None:
        body = json.loads(request.body) if request.body.startswith(b"{") else {}
        for field in NEEDS:
            if field in body and body[field] not in self.kept:
                peer.send(_missing(body[field]))
                return
        made = {"id": f"{prefix}{uuid4().hex}", "engine": self.name}
        if body.get("store") is not False:
            self.kept[made["id"]] = made
        if not body.get("stream"):
            peer.send(_json(made))
            return
        event = json.dumps({"type": "response.created", "response": made})
        peer.send(stream_head(), chunk(f"event: response.created\ndata: {event}\n\n".encode()))
        await self.gate.wait()
        peer.send(chunk(b"event: response.completed\ndata: {}\n\n"), LAST_CHUNK)


class Reply(NamedTuple):
    """An answer as a client has it."""

    status: int
    head: bytes
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    router: Router, method: str, target: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """Send one request on a connection of its own. body: bytes, or what becomes JSON."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(router.url.rpartition(":")[2]))
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    more = {"content-length": str(len(data)), "connection": "close", **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in more.items())
    writer.write(f"{method} {target} HTTP/1.1\r\nhost: localhost\r\n{lines}\r\n".encode() + data)
    async with asyncio.timeout(60):
        head = await reader.readuntil(b"\r\n\r\n")
        rest = await reader.read()
    writer.close()
    return Reply(int(head.split(b" ", 2)[1]), head, rest)


@asynccontextmanager
async def routers(
    count: int, *engines: KeepingEngine, redis_url: str | None = None, **more: Any
) -> AsyncIterator[list[Router]]:
    """Run routers that know all of these engines. more: settings."""
    settings = RouterSettings(
        listen="127.0.0.1:0",
        redis=redis_url is not None,
        redis_url=redis_url,
        redis_timeout_s=5.0,
        workers=tuple(engine.url for engine in engines),
        drain_timeout_s=1.0,
        **more,
    )
    running = [Router(settings) for _ in range(count)]
    threshold = gc.get_threshold()
    try:
        for router in running:
            await router.start()
            async with asyncio.timeout(60):
                while (await ask(router, "GET", "/gc/status")).json["workers"]["ready"] < len(engines):
                    await asyncio.sleep(0.01)
        yield running
    finally:
        for router in running:
            await router.stop()
        # What a router sets for its process.
        gc.unfreeze()
        gc.set_threshold(*threshold)


def _json(value: object, status: int = 200) -> bytes:
    return content(json.dumps(value).encode(), status=status)


def _missing(object_id: str) -> bytes:
    return _json({"error": {"message": f"Response with id '{object_id}' not found.", "code": 404}}, 404)
