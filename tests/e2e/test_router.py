"""The router in front of real engines: what it learns, where it sends requests, what its clients notice of faults."""

from __future__ import annotations

import http.client
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.harness import Client, Completion, ServerError, run_concurrently
from benchmarks.harness.router import RouterProcess
from tests.clients.served import HERE, Served
from tests.e2e.fleet import BLOCK_TOKENS, REQUEST_TIMEOUT_S, TOLERANCE, Fleet, assert_same, running, until
from tests.e2e.routed import Asking, ask, followers, loads_reported, once_undisturbed, respond, sessions_at

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

NAMES = ("a", "b")
DOCUMENT_TOKENS = 40 * BLOCK_TOKENS
"""About 4 KiB of text: several boundaries of 1 KiB, and many blocks."""
COLD_TOKENS = 80 * BLOCK_TOKENS
"""Takes longer to compute than a burst of requests takes to arrive, and more than all their ends together."""
PLACES = 4
ENGINE = {
    "num_blocks": 512,
    "extra_args": ("--scheduling-policy", "priority", "--max-num-seqs", str(PLACES)),
}
"""Few enough requests at a time that more are easily asked for, and KV blocks for as many long ones."""
ROUTER = (
    *("--ghost-lock-tokens-min", "128", "--health-interval-s", "0.2", "--affinity-tolerance", "10"),
    *("--redis-timeout-s", "1"),
)


class RoutedFleet(NamedTuple):
    """Engines, and routers before them."""

    fleet: Fleet
    routers: list[RouterProcess]

    @property
    def client(self) -> Client:
        return Client(self.routers[0].url, timeout_s=REQUEST_TIMEOUT_S)

    def text(self, tokens: int) -> str:
        """Return a text of about so many tokens that nobody has seen."""
        return self.fleet.text(tokens)

    def computed(self) -> float:
        """Return the prompt tokens that all engines together have computed since they started."""
        pages = [self.fleet.client(name).metrics() for name in NAMES]
        return sum(page.sum("vllm:prompt_tokens_total") - page.sum("vllm:prompt_tokens_cached_total") for page in pages)


@pytest.fixture(scope="module")
def routed(model: Path, log_dir: Path) -> Iterator[RoutedFleet]:
    with running(model, dict.fromkeys(NAMES, ENGINE), log_dir=log_dir) as fleet, ExitStack() as stack:
        for name, other in (NAMES, NAMES[::-1]):
            fleet.prime(name, other)
        routers = [
            stack.enter_context(RouterProcess(redis_url=fleet.redis.url, arguments=ROUTER, log_dir=log_dir))
            for _ in range(2)
        ]
        for router in routers:
            router.wait_workers(len(NAMES))
            until(lambda url=router.url: loads_reported(url, NAMES), "the load of every engine")
        yield RoutedFleet(fleet, routers)


def chat(routed: RoutedFleet, messages: Sequence[dict[str, str]], *, router: int = 0, **headers: str) -> dict[str, str]:
    """Ask for one token of chat; return the answer's headers, and `cached`, what the engine found in a cache."""
    body = {"model": "m", "messages": list(messages), "max_tokens": 1, "temperature": 0}
    answer, got = ask(routed.routers[router].url, "/v1/chat/completions", body, headers)
    details = answer["usage"].get("prompt_tokens_details") or {}
    return {**got, "cached": str(details.get("cached_tokens") or 0), "prompt": str(answer["usage"]["prompt_tokens"])}


def test_answer_through_the_router_is_the_engines_own(routed: RoutedFleet) -> None:
    """Streamed through the router, an answer has the tokens and log-probabilities that the engine gives directly."""
    prompt = routed.fleet.document(100)
    through = routed.client.complete(prompt, max_tokens=16)
    again = {name: routed.fleet.client(name).complete(prompt, max_tokens=16) for name in NAMES}
    for direct in again.values():
        assert_same(through, direct, tolerance=TOLERANCE)


def test_chat_prefix_is_learned_and_found_again(routed: RoutedFleet) -> None:
    """After one chat, the next with the same system prompt goes to a worker that has it, and its hit is foretold."""
    system = {"role": "system", "content": routed.text(DOCUMENT_TOKENS)}
    first = chat(routed, [system, {"role": "user", "content": "One?"}])
    assert first["x-gc-cached-tokens"] == "0"

    def foretold() -> bool:
        found = chat(routed, [system, {"role": "user", "content": routed.text(20)}])
        assert found["x-gc-worker"] in NAMES
        told, cached = int(found["x-gc-cached-tokens"]), int(found["cached"])
        # Learned part by part. A hash in 128 tokens, a boundary in 1 KiB of text.
        return told > 0 and abs(told - cached) <= 8 * BLOCK_TOKENS

    until(foretold, "the prefix to be learned")


@pytest.mark.parametrize("stream", [False, True])
def test_next_turn_of_responses_is_known_to_the_other_replica(routed: RoutedFleet, stream: bool) -> None:
    """vLLM names these requests by the ids of their answers: what the prompt became is learned all the same."""
    text = routed.text(DOCUMENT_TOKENS)

    def known() -> bool:
        # Again and again, as below.
        first, _ = respond(routed.routers[0].url, text, stream=stream)
        items = [{"role": "user", "content": text}, *first["output"], {"role": "user", "content": "Two?"}]
        answer, _ = ask(routed.routers[1].url, "/gc/explain", {"model": "m", "input": items})
        return any(worker["local_tokens"] > 0 for worker in answer["workers"])

    until(known, "the other router to know the prefix")


def test_other_replica_knows_what_one_has_learned(routed: RoutedFleet) -> None:
    """A prefix that came through one router is known to the other, which never saw it."""
    system = {"role": "system", "content": routed.text(DOCUMENT_TOKENS)}

    def known() -> bool:
        # Again and again: what an engine tells of one prompt is a hint that may be lost.
        chat(routed, [system, {"role": "user", "content": "One?"}])
        body = {"model": "m", "messages": [system, {"role": "user", "content": "Two?"}]}
        answer, _ = ask(routed.routers[1].url, "/gc/explain", body)
        return any(worker["local_tokens"] > 0 for worker in answer["workers"])

    until(known, "the other router to know the prefix")


def test_cold_prefix_is_computed_once(routed: RoutedFleet) -> None:
    """Of many simultaneous requests on one cold prefix, through both routers, one computes it; each answer is right.

    Each router's requests are of a session that lives at another worker: nothing but a lock brings them together.
    """

    def burst() -> str:
        document = routed.text(COLD_TOKENS)
        prompts = [f"{document}\n# {number}" for number in range(8)]
        sessions = sessions_at(routed.fleet.redis.url, NAMES)
        urls = [router.url for router in routed.routers]
        before, followed = routed.computed(), followers(urls)

        def one(number: int) -> Completion:
            client = Client(routed.routers[number % 2].url, timeout_s=REQUEST_TIMEOUT_S)
            return client.complete(prompts[number], max_tokens=4, user=sessions[NAMES[number % 2]])

        answers = run_concurrently(one, range(len(prompts)), concurrency=len(prompts))
        computed, tokens = routed.computed() - before, answers[0].prompt_tokens
        reference = routed.fleet.recompute("a", prompts[3], max_tokens=4)
        assert_same(answers[3], reference, tolerance=TOLERANCE)
        once = computed <= tokens + len(prompts) * 6 * BLOCK_TOKENS
        followed = followers(urls) - followed
        return "" if once and followed else f"{computed:.0f} tokens computed of {tokens}, {followed:.0f} followers"

    once_undisturbed(burst)


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_sdk_that_vllm_brings_gets_what_the_engine_says(routed: RoutedFleet, name: str) -> None:
    """Texts, streams and errors are the same through the router; tests/clients has the other clients."""
    served = Served(routed.routers[0], routed.fleet.engines["a"].url)
    direct, through = served.compared([sys.executable, str(HERE / "python" / f"{name}_client.py")])
    assert through == direct
    assert "no error" not in str(direct)


def test_models_messages_and_tokenize_pass_through(routed: RoutedFleet) -> None:
    """The other endpoints of an engine work through the router, and unknown models are named."""
    url = routed.routers[0].url
    assert [model["id"] for model in routed.routers[0].get("/v1/models")["data"]] == ["m"]
    assert ask(url, "/tokenize", {"model": "m", "prompt": "def main():"})[0]["count"] > 0
    answer, _ = ask(
        url, "/v1/messages", {"model": "m", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}
    )
    assert answer["type"] == "message"
    with pytest.raises(ServerError, match=r"404.*model_not_found"):
        ask(url, "/v1/completions", {"model": "nobody", "prompt": "x"})


def test_client_that_leaves_aborts_its_request(routed: RoutedFleet) -> None:
    """When a client hangs up in the middle of a stream, the engine stops computing for it."""
    host, port = routed.routers[0].url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=REQUEST_TIMEOUT_S)
    body = {"model": "m", "prompt": "def", "max_tokens": 3000, "stream": True, "ignore_eos": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    reply = connection.getresponse()
    assert reply.read(10)
    until(lambda: _running(routed) == 1, "the engine to count the request")
    reply.close()
    connection.close()

    until(lambda: _running(routed) == 0, "the engine to end the request")


def test_drained_worker_gets_no_new_request(routed: RoutedFleet) -> None:
    """A drained worker is left alone by both routers until it is taken back."""
    for router in routed.routers:
        until(lambda r=router: len(_ready(r)) == len(NAMES), "both workers to be ready")
    ask(routed.routers[0].url, "/gc/pods/a/drain", {})
    try:
        until(lambda: _ready(routed.routers[1]) == ["b"], "the other router to see the drain")
        for router in (0, 1):
            for _ in range(4):
                answer = chat(routed, [{"role": "user", "content": routed.text(8)}], router=router)
                assert answer["x-gc-worker"] == "b"
    finally:
        ask(routed.routers[0].url, "/gc/pods/a/drain?drain=false", {})
    until(lambda: len(_ready(routed.routers[1])) == len(NAMES), "the worker to be taken back")


FLOW = """--flow-queue-max 6 --flow-worker-requests-max 4 --flow-worker-waiting-max 1 --flow-priorities client
--flow-priority-min -9 --flow-priority-to-engines --flow-tenants cache_salt --flow-deadlines"""


def test_what_engines_have_no_place_for_waits_in_the_router(routed: RoutedFleet, log_dir: Path) -> None:
    """And goes on by priority, then in turns of tenants, as places become free; at the bounds clients are told."""
    url = routed.fleet.redis.url
    with RouterProcess(redis_url=url, arguments=FLOW.split(), log_dir=log_dir) as router, Asking(router.url) as asking:
        router.wait_workers(len(NAMES))
        until(lambda: loads_reported(router.url, NAMES), "the load of every engine")
        asking.hold(len(NAMES) * PLACES)
        until(lambda: _running(routed) == len(NAMES) * PLACES, "all places to be taken")

        status, _ = asking.send("in a hurry", {"x-gc-deadline-ms": "100"}).result()
        assert status == http.HTTPStatus.GATEWAY_TIMEOUT
        waiting = [("flood 1", "flood", 0), ("flood 2", "flood", 0), ("flood 3", "flood", 0), ("small", "small", 0)]
        waiting += [("late", "flood", 7), ("urgent", "flood", -5)]
        for number, (name, tenant, priority) in enumerate(waiting, 1):
            header = {"x-gc-priority": str(priority)} if priority < 0 else {}
            asking.send(name, header, cache_salt=tenant, priority=0 if header else priority)
            until(lambda number=number: router.get("/gc/status")["queue"]["requests"] == number, f"{name} to wait")
        status, headers = asking.send("too many", cache_salt="flood", priority=7).result()
        assert status == http.HTTPStatus.TOO_MANY_REQUESTS
        assert int(headers["retry-after"]) > 0
        assert router.get("/gc/status")["queue"]["by_priority"] == {"-5": 1, "0": 4, "7": 1}
        assert _waiting(routed, *NAMES) == 0

        asking.let_go()
        until(lambda: len(asking.order) == len(waiting), "all that wait to be answered")
        assert asking.order == ["urgent", "flood 1", "small", "flood 2", "flood 3", "late"]
        assert _waiting(routed, *NAMES) == 0


def test_engine_orders_what_it_has_by_the_priority_that_counts(routed: RoutedFleet, log_dir: Path) -> None:
    """The router has written it into the bodies: without it, the engine would go by the order in which they came."""
    arguments = ("--flow-priorities", "header", "--flow-priority-to-engines")
    engine = routed.fleet.engines["a"].url
    with RouterProcess(workers=[engine], arguments=arguments, log_dir=log_dir) as router, Asking(router.url) as asking:
        router.wait_workers(1)
        asking.hold(PLACES)
        until(lambda: _running(routed) == PLACES, "all places to be taken")
        for number, (name, priority) in enumerate([("low", 9), ("middle", 5), ("high", 1)], 1):
            asking.send(name, {"x-gc-priority": str(priority)})
            until(lambda number=number: _waiting(routed, "a") == number, f"{name} to wait in the engine")
        asking.let_go()
        until(lambda: len(asking.order) == 3, "all that wait to be answered")
        assert asking.order == ["high", "middle", "low"]


@pytest.mark.parametrize("event", ["kill", "pause"])
def test_redis_that_goes_away_fails_no_request(routed: RoutedFleet, event: str) -> None:
    """Without Redis the router goes on with what it knows; with Redis back it learns again."""
    redis = routed.fleet.redis
    asked = threading.Semaphore(0)

    def one(number: int) -> None:
        if number == 0:
            for _ in range(4):
                assert asked.acquire(timeout=60)
            {"kill": redis.kill, "pause": redis.pause}[event]()
            for _ in range(12):
                assert asked.acquire(timeout=60)
            {"kill": redis.start, "pause": redis.resume}[event]()
            return
        routed.client.complete(routed.text(60), max_tokens=2)
        asked.release()

    run_concurrently(one, range(30), concurrency=3)
    until(lambda: routed.routers[0].get("/gc/status")["redis_available"], "the router to see Redis again")
    until(lambda: all(routed.fleet.record(name) for name in NAMES), "the workers to be back in Redis")


def test_killed_worker_fails_only_what_was_streaming(routed: RoutedFleet) -> None:
    """Requests that had not been answered when their worker was killed are answered by the other one."""
    asked, failed = threading.Semaphore(0), []

    def one(number: int) -> None:
        if number == 0:
            for _ in range(6):
                assert asked.acquire(timeout=60)
            routed.fleet.engines["b"].kill()
            return
        try:
            routed.client.complete(routed.text(200), max_tokens=1, **{"stream": True})
        except (ServerError, OSError, http.client.HTTPException) as exc:
            failed.append(exc)
        asked.release()

    run_concurrently(one, range(40), concurrency=4)

    assert _ready(routed.routers[0]) == ["a"]
    assert len(failed) <= 3, failed  # at most those whose first token was on its way
    # A stream that had begun ends with an error event; nobody gets a status that says so.
    refused = [exc for exc in failed if isinstance(exc, ServerError) and "broke off its answer" not in str(exc)]
    assert not refused, failed


def _ready(router: RouterProcess) -> list[str]:
    return sorted(pod["id"] for pod in router.get("/gc/pods")["pods"] if pod["state"] == "ready")


def _running(routed: RoutedFleet) -> float:
    return sum(routed.fleet.client(name).metrics().sum("vllm:num_requests_running") for name in NAMES)


def _waiting(routed: RoutedFleet, *names: str) -> float:
    return sum(routed.fleet.client(name).metrics().sum("vllm:num_requests_waiting") for name in names)
