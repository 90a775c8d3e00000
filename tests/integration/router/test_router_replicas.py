"""Several routers without Redis: told that they are several, they send the same prompt to the same engine."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from ghostcacher_router.app import Router
from ghostcacher_router.config import RouterSettings
from ghostcacher_simulator.http_server import Peer, Received
from tests.support.mock_engine import MiniEngine, content
from tests.support.proxy_rig import Client, on_loop

PROMPTS = 64
"""So many that each of three engines gets some, whatever its port is."""


class Engine(MiniEngine):
    """Answers probes well, and completions with nothing; prompts are those that it got."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[str] = []
        self.handler = self._answer

    async def _answer(self, peer: Peer, request: Received) -> None:
        if request.method != "POST":
            await self.api(peer, request)
            return
        self.prompts.append(json.loads(request.body)["prompt"])
        peer.send(content(b"{}"))


@pytest.fixture(autouse=True)
def patient_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is."""
    monkeypatch.setattr("ghostcacher_router.warm_up.FLEET_S_MAX", 60.0)


async def ask_all(router: Router) -> None:
    """Send every prompt, one after the other."""
    client = Client(*await asyncio.open_connection("127.0.0.1", int(router.url.rpartition(":")[2])))
    for number in range(PROMPTS):
        body = json.dumps({"model": "m", "prompt": f"{number} " * 1_000}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        assert b" 200 " in (await client.ask(head + body))[0]
    client.writer.close()


@on_loop
async def test_replicas_without_redis_agree_on_the_engine_of_each_prompt() -> None:
    """They exchange nothing, and know nothing of what the other sent; the order of their workers does not matter."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(Engine()) for _ in range(3)]
        urls = [engine.endpoint.url for engine in engines]
        for workers in (urls, urls[::-1]):
            settings = {"listen": "127.0.0.1:0", "redis": False, "workers": tuple(workers), "log_level": "error"}
            router = Router(RouterSettings(**settings, replicas=2))
            await router.start()
            stack.push_async_callback(router.stop)
            await ask_all(router)
    assert all(engine.prompts for engine in engines)
    for engine in engines:
        assert len(engine.prompts) == 2 * len(set(engine.prompts))
