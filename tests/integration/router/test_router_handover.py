"""One worker computes the prompt, another one answers: two steps, as vLLM's own proxy makes them, over real sockets."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.client import metrics
from benchmarks.harness.router import RouterProcess
from ghostcacher_router.http.exchanges.handover import USABLE_S
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.types import Outcome
from ghostcacher_simulator.api import EngineApi
from ghostcacher_simulator.http_server import EngineServer
from tests.support.handover_rig import (
    COMPUTED,
    CONVERSATION,
    PARAMS,
    SHORT,
    asked,
    bodies,
    breaks,
    request,
    steps,
    two_steps,
)
from tests.support.mock_engine import CHUNKED, MockEngine, Peer, Received, chunks, content, says
from tests.support.prompts import CHAT, COMPLETIONS, say
from tests.support.proxy_rig import eventually, on_loop, proxy_rig

PATIENCE_S = 60.0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@on_loop
async def test_prompt_is_computed_by_one_worker_and_answered_by_another(path: str, stream: bool) -> None:
    """The first is asked for one token; the second gets what the client wrote, and where the first has the prompt."""
    answer = CHUNKED + chunks(b"data: x\n\n") if stream else content(b"answer")
    p, d = MockEngine("p", says(content(COMPUTED))), MockEngine("d", says(answer))
    async with proxy_rig(p, d, limits=SHORT) as rig:
        body = {"model": "m", "max_tokens": 9, "stream": stream, "stream_options": {"include_usage": True}}
        body |= {"messages": CONVERSATION["messages"]} if path == CHAT else {"prompt": "hello"}
        answered = (await two_steps(rig).ask(request(body, path)))[1]
        assert (b"data: x" if stream else b"answer") in answered
        one_token = {"max_tokens": 1, "max_completion_tokens": None, "min_tokens": 0, "stream": False}
        one_token |= {"stream_options": None, "kv_transfer_params": {"do_remote_decode": True}}
        assert bodies(p) == [body | one_token]
        assert bodies(d) == [body | {"kv_transfer_params": PARAMS}]
        assert p.received[0].headers[b"x-request-id"] == d.received[0].headers[b"x-request-id"]
        assert steps(rig) == [("p", "prefill", Outcome.DONE), ("d", "decode", Outcome.DONE)]
        first, second = (place.ask.shape.prompt for place in rig.placements)
        assert first is not None
        assert second is None
        assert rig.meter.handovers == [("handed",)]


@pytest.mark.parametrize(
    "script",
    [
        breaks,
        says(content(b"{}", status=500)),
        says(content(b"{}", status=400)),
        says(content(b"no json")),
        says(content(b'{"kv_transfer_params": null}')),
        says(content(b'{"kv_transfer_params": {"do_remote_prefill": false}}')),
    ],
)
@on_loop
async def test_worker_that_answers_computes_what_nobody_has_handed_over(script: Any) -> None:
    """Whatever goes wrong: the client gets its answer, to what it wrote, and that worker is placed by the prompt."""
    p, d = MockEngine("p", script), MockEngine("d", says(content(b"answer")))
    async with proxy_rig(p, d, limits=SHORT) as rig:
        assert (await two_steps(rig).ask(request(CONVERSATION)))[1] == b"answer"
        assert bodies(d) == [CONVERSATION]
        assert rig.placements[-1].ask.step is None
        assert rig.placements[-1].ask.shape.prompt is not None
        assert rig.meter.handovers == [("failed",)]


@on_loop
async def test_another_worker_computes_when_the_first_fails() -> None:
    """Once: then the one that answers does."""
    p1, p2, d = MockEngine("p1", breaks), MockEngine("p2", says(content(COMPUTED))), MockEngine("d")
    async with proxy_rig(p1, p2, d, limits=SHORT) as rig:
        await two_steps(rig).ask(request(CONVERSATION))
        assert [worker for worker, _, _ in steps(rig)] == ["p1", "p2", "d"]
        assert bodies(d)[0]["kv_transfer_params"] == PARAMS


@on_loop
async def test_two_workers_that_fail_are_enough() -> None:
    """The one that answers computes the prompt, and no third one is asked."""
    p1, p2, p3, d = MockEngine("p1", breaks), MockEngine("p2", breaks), MockEngine("p3"), MockEngine("d")
    async with proxy_rig(p1, p2, p3, d, limits=SHORT) as rig:
        await two_steps(rig).ask(request(CONVERSATION))
        assert [worker for worker, _, _ in steps(rig)] == ["p1", "p2", "d"]
        assert bodies(d) == [CONVERSATION]
        assert rig.meter.handovers == [("failed",)]


@on_loop
async def test_what_was_handed_over_is_sent_once() -> None:
    """The first engine lets go of it when it was read: a worker that comes second would read what lies there then."""
    p, d1, d2 = MockEngine("p", says(content(COMPUTED))), MockEngine("d1", breaks), MockEngine("d2")
    async with proxy_rig(p, d1, d2, limits=SHORT) as rig:
        await two_steps(rig).ask(request(CONVERSATION))
        assert bodies(d1)[0]["kv_transfer_params"] == PARAMS
        assert bodies(d2) == [CONVERSATION]


@on_loop
async def test_kept_connection_is_not_used_for_what_is_sent_once() -> None:
    """It may turn out closed, and then nobody knows whether the worker has read what was handed over."""
    p, d = MockEngine("p", says(content(COMPUTED))), MockEngine("d")
    async with proxy_rig(p, d, limits=SHORT) as rig:
        for _ in range(3):
            await two_steps(rig).ask(request(CONVERSATION))
        assert [received.connection for received in d.received] == [0, 1, 2]


@on_loop
async def test_worker_that_takes_no_connection_leaves_it_to_another() -> None:
    """It has read nothing."""
    p, d1, d2 = MockEngine("p", says(content(COMPUTED))), MockEngine("d1"), MockEngine("d2")
    async with proxy_rig(p, d1, d2, limits=SHORT) as rig:
        await d1.refuse()
        await two_steps(rig).ask(request(CONVERSATION))
        assert bodies(d2)[0]["kv_transfer_params"] == PARAMS


@on_loop
async def test_what_was_handed_over_is_not_used_late() -> None:
    """The first engine keeps it for a while only."""
    p, d = MockEngine("p", says(content(COMPUTED))), MockEngine("d")
    async with proxy_rig(p, d, limits=SHORT) as rig:
        two_steps(rig)
        answer = p.script

        def slow(peer: Peer, received: Received) -> None:
            rig.dispatcher.slow = asyncio.Event()
            answer(peer, received)

        p.script = slow
        client = await rig.client()
        client.send(request(CONVERSATION))
        await eventually(lambda: rig.dispatcher.waiting)
        rig.clock.now += USABLE_S + 1
        assert rig.dispatcher.slow is not None
        rig.dispatcher.slow.set()
        await client.answer()
        assert bodies(d) == [CONVERSATION]
        assert rig.meter.handovers == [("handed",), ("late",)]


@on_loop
async def test_client_that_leaves_ends_the_first_step() -> None:
    """The engine stops computing for nobody."""
    left = asyncio.Event()

    async def waits(peer: Peer, _: Received) -> None:
        await peer.left()
        left.set()

    p, d = MockEngine("p", waits), MockEngine("d")
    async with proxy_rig(p, d, limits=SHORT) as rig:
        client = await asked(rig, p)
        client.abort()
        async with asyncio.timeout(PATIENCE_S):
            await left.wait()
        assert d.received == []
        await eventually(lambda: steps(rig) == [("p", "prefill", Outcome.CANCELLED)])


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        (CHAT, {"n": 2}),
        (CHAT, {"kv_transfer_params": {"gc_pull": False}}),
        (CHAT, {"prompt_logprobs": 1}),
        (CHAT, {"use_beam_search": True}),
        (COMPLETIONS, {"prompt": ["a", "b"]}),
        (COMPLETIONS, {"prompt": [[1, 2], [3]]}),
        (COMPLETIONS, {"prompt": "a", "best_of": 3}),
        (COMPLETIONS, {"prompt": "a", "echo": True}),
        ("/v1/messages", {}),
    ],
)
@on_loop
async def test_request_with_several_prompts_or_answers_goes_to_one_worker(path: str, changes: dict[str, Any]) -> None:
    """What one engine hands over is one prompt, and is read once."""
    p, d = MockEngine("p"), MockEngine("d")
    async with proxy_rig(p, d, limits=SHORT) as rig:
        await two_steps(rig).ask(request(CONVERSATION | changes, path))
        assert steps(rig) == [("d", None, Outcome.DONE)]
        assert bodies(d) == [CONVERSATION | changes]


@on_loop
async def test_short_prompt_goes_to_one_worker() -> None:
    """Handing it over would take as long as computing it."""
    p, d = MockEngine("p", says(content(COMPUTED))), MockEngine("d")
    async with proxy_rig(p, d, limits=Limits(prefill_tokens_min=50)) as rig:
        await two_steps(rig).ask(request(CONVERSATION | {"messages": [say("user", "hello")]}))
        await rig.ask(request(CONVERSATION))
        assert [worker for worker, _, _ in steps(rig)] == ["d", "p", "d"]


class PdApi(EngineApi):
    """An engine beside NixlConnector, as far as HTTP shows it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.got: list[dict[str, Any]] = []
        self.hangs_next = False
        """Hang with the next prompt: answer nothing any more, no probe either."""

    async def __call__(self, peer: Peer, request: Received) -> None:
        self.mute |= self.hangs_next and request.path == CHAT
        if self.mute or request.path != CHAT:
            await super().__call__(peer, request)
            return
        self.got.append(json.loads(request.body))
        handed = {**PARAMS, "remote_engine_id": self.name} if self._hands_over else None
        peer.send(content(json.dumps({"from": self.name, "kv_transfer_params": handed}).encode()))

    @property
    def _hands_over(self) -> bool:
        return self.got[-1].get("kv_transfer_params") == {"do_remote_decode": True}


@on_loop
async def test_router_knows_roles_of_static_workers(tmp_path: Path) -> None:
    """A real router, told who does what: prompts of one prefix go to one of the two that compute, the third answers.

    Once that one hangs, with a prompt and with its probes, the other computes, and no request fails.
    """
    engines = [PdApi(name) for name in ("p1", "p2", "d")]
    servers = [EngineServer(engine) for engine in engines]
    for server in servers:
        await server.start()
    urls = [f"http://127.0.0.1:{server.port}" for server in servers]
    roles = ",".join(f"{url}={role}" for url, role in zip(urls, ("prefill", "prefill", "decode"), strict=True))
    try:
        await asyncio.to_thread(ask_router, urls, ["--roles", roles, *FAST_PROBES], engines, tmp_path)
    finally:
        for server in servers:
            await server.stop()
    p1, p2, d = engines
    assert len(p1.got) == len(p2.got) == 4
    assert [body["kv_transfer_params"]["remote_engine_id"] for body in d.got] == (
        [engine.name for engine in sorted((p1, p2), key=lambda engine: not engine.mute) for _ in range(4)]
    )


FAST_PROBES = ("--health-interval-s", "0.1", "--health-timeout-s", "0.5", "--health-failures-max", "2")


def ask_router(urls: list[str], arguments: list[str], engines: list[PdApi], folder: Path) -> None:
    """Have a router answer eight requests that begin alike; who has computed the first four hangs with the next."""
    with RouterProcess(workers=urls, arguments=arguments, log_dir=folder) as router:
        router.wait_workers(3, deadline_s=PATIENCE_S)
        names = [url.removeprefix("http://") for url in urls]
        explained = explain(router.url, {"model": "m", "prompt": "be brief " * 400})
        assert {row["worker"] for row in explained["prefill"]} == set(names[:2])
        assert [row["worker"] for row in explained["workers"]] == names[2:]
        assert explain(router.url, {"model": "m", "prompt": "short"})["prefill"] == []
        for number in range(8):
            if number == 4:
                (first,) = (engine for engine in engines[:2] if engine.got)
                first.hangs_next = True
            messages = [say("system", "be brief " * 400), say("user", f"question {number}")]
            data = json.dumps({"model": "m", "messages": messages}).encode()
            asked = urllib.request.Request(f"{router.url}{CHAT}", data, {"Content-Type": "application/json"})  # noqa: S310
            with urllib.request.urlopen(asked, timeout=PATIENCE_S) as reply:  # noqa: S310
                assert json.load(reply)["from"] == "d"
        assert metrics(router.url).sum("gc_router_handovers_total", result="handed") == 8
        assert metrics(router.url).sum("gc_router_retries_total", reason="hung") == 1


def explain(url: str, body: dict[str, Any]) -> dict[str, Any]:
    asked = urllib.request.Request(f"{url}/gc/explain", json.dumps(body).encode())  # noqa: S310
    with urllib.request.urlopen(asked, timeout=PATIENCE_S) as reply:  # noqa: S310
        found: dict[str, Any] = json.load(reply)
    return found
