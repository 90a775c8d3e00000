"""What goes wrong, over real sockets: each failure has its error, and is tried again only where that can help."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import pytest

from benchmarks.harness.router import RouterProcess
from ghostcacher.client import AsyncGhostCacherClient
from ghostcacher_cli.up.machine import free_port
from tests.integration.sdk.conftest import Used
from tests.integration.sdk.drivers import AsyncPython, Driver, Result
from tests.support.index_parts import wait_until
from tests.support.spoken_engine import PIECES, TEXT, SpokenEngine

_numbers = count()
RETRY_AFTER = ["Retry-After: 1"]
EVENTS = len(PIECES) + 2
"""Of a chat, before the one that ends it."""


def fault(kind: str, **how: Any) -> dict[str, Any]:
    """Return one fault of its own."""
    return {"kind": kind, "name": f"{kind}-{next(_numbers)}", **how}


def fail(use: Used, failure: dict[str, Any], options: dict[str, Any] | None = None, **given: Any) -> Result:
    return use(options={"extra_body": {"fault": failure}, **(options or {})}, **given)


def tries(use: Used, failure: dict[str, Any]) -> int:
    return len(use.engine.api.tried_at[failure["name"]])


def test_busy_worker_is_asked_again_when_it_says(use_directly: Used) -> None:
    """After what `retry-after` names, and not before."""
    use = use_directly
    busy = fault("status", status=429, headers=RETRY_AFTER, times=1)
    assert fail(use, busy, {"retries_max": 1})["text"] == TEXT
    first, second = use.engine.api.tried_at[busy["name"]]
    assert second - first >= 1.0


def test_busy_fleet_is_an_error_that_says_when_to_come_back(use: Used) -> None:
    """Through the router, which has no other worker to ask."""
    busy = fault("status", status=429, headers=RETRY_AFTER)
    result = fail(use, busy)
    assert (result["error"], result["status"], result["code"]) == ("StatusError", 429, "busy")
    assert (result["retry_after_s"], result["message"]) == (1.0, "429: busy")
    assert result["request_id"]


def test_long_pause_is_left_to_the_caller(use_directly: Used) -> None:
    busy = fault("status", status=503, headers=["Retry-After: 3600"])
    assert fail(use_directly, busy, {"retries_max": 5})["retry_after_s"] == 3600.0
    assert tries(use_directly, busy) == 1


@pytest.mark.parametrize("status", [400, 500, 502, 504])
def test_what_the_router_has_tried_already_is_final(use_directly: Used, status: int) -> None:
    broken = fault("status", status=status, body="not JSON")
    result = fail(use_directly, broken, {"retries_max": 5})
    assert (result["error"], result["status"], result["message"]) == ("StatusError", status, f"{status}: not JSON")
    assert tries(use_directly, broken) == 1


def test_refused_by_the_router_names_the_field(use: Used) -> None:
    result = use(messages=[{"role": "user", "content": 7}])
    assert (result["status"], result["param"]) == (400, "messages[0].content")
    assert "expected a string or an array, got integer" in result["message"]


def test_unknown_model_in_either_form(use: Used) -> None:
    assert use(model="nobody")["code"] == "model_not_found"
    result = use(client={"provider": "anthropic"}, model="nobody", max_tokens=1)
    assert (result["status"], result["code"]) == (404, "not_found_error")


def test_nobody_listens(use: Used) -> None:
    result = use(client={"ghostcacher_url": f"http://127.0.0.1:{free_port()}", "retries_max": 1})
    assert result["error"] == "ConnectFailed"
    assert "/v1/chat/completions: no answer: " in result["message"]


def test_closed_without_a_byte_is_tried_again_so_often(use_directly: Used) -> None:
    closed = fault("reset")
    assert fail(use_directly, closed, {"retries_max": 2})["error"] == "ConnectFailed"
    assert tries(use_directly, closed) == 3


@pytest.mark.parametrize("provider", ["anthropic", "openai"])
@pytest.mark.parametrize("kind", ["cut_stream", "end_stream"])
def test_stream_that_breaks_off_is_no_whole_answer(use: Used, use_directly: Used, kind: str, provider: str) -> None:
    """Through the router and without; what had come is good, and nothing is asked for twice."""
    given = {"client": {"provider": provider, "retries_max": 3}, "stream": True, "max_tokens": 9}
    for used in (use, use_directly):
        broken = fault(kind)
        result = fail(used, broken, **given)
        assert result["error"] == "AnswerBroken"
        assert [text for text in result["texts"] if text] == list(PIECES)
        assert tries(used, broken) == 1


@pytest.mark.parametrize(("provider", "code"), [("anthropic", "overloaded_error"), ("openai", "500")])
def test_error_in_a_stream(use: Used, provider: str, code: str) -> None:
    result = fail(use, fault("error_event"), client={"provider": provider}, stream=True, max_tokens=9)
    assert (result["error"], result["message"], result["code"]) == ("AnswerBroken", "out of memory", code)
    assert [text for text in result["texts"] if text] == list(PIECES)


def test_answer_that_breaks_off(use: Used) -> None:
    broken = fault("cut")
    assert fail(use, broken, {"retries_max": 3})["error"] == "AnswerBroken"
    assert tries(use, broken) == 1


def test_something_else_than_an_answer(use: Used) -> None:
    result = fail(use, fault("garbage"))
    assert result["error"] == "AnswerMalformed"
    assert "<html>" in result["message"]


@pytest.mark.parametrize(("kind", "stream"), [("mute", False), ("mute", True), ("stall", True)])
def test_answer_that_does_not_come(use: Used, kind: str, stream: bool) -> None:
    """It is not asked for again, and the engine does not go on for nobody."""
    silent = fault(kind)
    result = fail(use, silent, {"timeout_s": 1.5, "retries_max": 3}, stream=stream)
    assert result["error"] == "AnswerTimeout"
    assert tries(use, silent) == 1
    wait_until(lambda: silent["name"] in use.engine.api.left)
    if kind == "stall":
        assert [text for text in result["texts"] if text] == list(PIECES)


@pytest.mark.parametrize("stop_after", [3, EVENTS])
def test_stream_that_is_left_ends_the_request(use: Used, driver: Driver, stop_after: int) -> None:
    """By close, a cancelled task or a signal: at once, but that a task ends where it waits for the next bytes."""
    left = fault("stall")
    texts = fail(use, left, stream=True, stop_after=stop_after)["texts"]
    assert stop_after <= len(texts) <= (EVENTS if isinstance(driver, AsyncPython) else stop_after)
    wait_until(lambda: left["name"] in use.engine.api.left)


def test_async_stream_that_is_closed_ends_the_request(fleet: tuple[RouterProcess, SpokenEngine]) -> None:
    """Without a cancelled task, and while the client stays open."""
    router, engine = fleet
    left = fault("stall")

    async def main() -> None:
        async with AsyncGhostCacherClient(provider="openai", ghostcacher_url=router.url) as client:
            messages = [{"role": "user", "content": "Why?"}]
            async with await client.messages.create(
                model="m", messages=messages, stream=True, extra_body={"fault": left}
            ) as stream:
                await anext(stream)
            await asyncio.to_thread(wait_until, lambda: left["name"] in engine.api.left)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)

    asyncio.run(main())
