"""One router before a mixed fleet: two SGLang engines and one of vLLM serve one model, each sharing with its kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.harness import run_concurrently
from benchmarks.harness.router import RouterProcess
from ghostcacher_connector.identity.fingerprint import differences
from tests.e2e.fleet import Fleet, running, until
from tests.e2e.routed import ask, followers, loads_reported, once_undisturbed, sessions_at
from tests.e2e.sglang import engine, engine_marks

pytestmark = engine_marks(900)

SGLANG = ("s1", "s2")
ROUTER = ("--ghost-lock-tokens-min", "128", "--health-interval-s", "0.2", "--affinity-tolerance", "10")
TOKENS = 1200


class RoutedFleet(NamedTuple):
    """Engines, and a router before them."""

    fleet: Fleet
    router: RouterProcess

    def complete(self, text: str, **headers: str) -> tuple[str, int]:
        """Complete a text through the router; return the worker that did, and the tokens that it had cached."""
        body = {"model": "m", "prompt": text, "max_tokens": 2, "temperature": 0}
        answer, got = ask(self.router.url, "/v1/completions", body, headers)
        details = answer["usage"].get("prompt_tokens_details") or {}
        return got["x-gc-worker"], int(details.get("cached_tokens") or 0)


@pytest.fixture(scope="module")
def routed(model: Path, log_dir: Path) -> Iterator[RoutedFleet]:
    engines = {name: engine() for name in SGLANG} | {"v": {}}
    with running(model, engines, log_dir=log_dir) as fleet, ExitStack() as stack:
        fleet.prime("s2", "s1")
        router = stack.enter_context(RouterProcess(redis_url=fleet.redis.url, arguments=ROUTER, log_dir=log_dir))
        router.wait_workers(len(engines))
        yield RoutedFleet(fleet, router)


def test_engines_of_two_kinds_differ_by_name(routed: RoutedFleet) -> None:
    """Their fingerprints differ in the engine, so that neither sees the other's blocks; equal kinds are equal."""
    records = {name: routed.fleet.record(name) for name in (*SGLANG, "v")}
    one, two, other = records["s1"], records["s2"], records["v"]
    assert one is not None
    assert two is not None
    assert other is not None
    assert one.namespace == two.namespace != other.namespace
    assert ("engine", "sglang", "vllm") in differences(one.fingerprint, other.fingerprint)
    assert (one.shares_prefill, other.shares_prefill) == (False, True)


def test_prompt_comes_back_to_the_worker_that_has_it(routed: RoutedFleet) -> None:
    """The router learns a prompt from what its engine reports, whichever kind it is, and sends it there again."""
    for _ in range(4):
        text = routed.fleet.text(TOKENS)
        worker, cached = routed.complete(text)
        assert cached == 0
        until(lambda text=text, worker=worker: goes_to(routed, text) == worker, "the router to learn the prompt")
        again, found = routed.complete(text + " And then?")
        assert again == worker
        assert found > TOKENS // 2


def test_load_is_reported(routed: RoutedFleet) -> None:
    """Every engine tells the router of its load: forecasts are made from measured rates, not from guesses."""
    until(lambda: loads_reported(routed.router.url, (*SGLANG, "v")), "the load of every engine")


def test_cold_prefix_is_computed_once_by_one_kind(routed: RoutedFleet) -> None:
    """Many requests for one cold prefix at once: one engine computes it, whoever follows finds it there or pulls it.

    One of each kind may: when that is sooner than waiting for the only one of the other. The requests are of two
    sessions that live at two workers: nothing but a lock brings them together.
    """

    def burst() -> str:
        text, sessions = routed.fleet.text(TOKENS), sessions_at(routed.fleet.redis.url, SGLANG)
        followed = followers([routed.router.url])

        def one(number: int) -> tuple[str, int]:
            session = sessions[SGLANG[number % 2]]
            return routed.complete(f"{text} {number}", **{"x-session-id": session})

        answers = run_concurrently(one, range(6), concurrency=6)
        kinds = ["vllm" if worker == "v" else "sglang" for worker, cached in answers if cached < TOKENS // 2]
        followed = followers([routed.router.url]) - followed
        once = len(set(kinds)) == len(kinds) and followed
        return "" if once else f"{followed:.0f} followers; worker, cached tokens: {answers}"

    once_undisturbed(burst)


def test_sglang_engines_pull_from_each_other_through_the_router(routed: RoutedFleet) -> None:
    """A request that is sent to the other SGLang engine finds there what the first has computed."""
    text = routed.fleet.text(TOKENS)
    first = routed.fleet.client("s1").complete(text, max_tokens=2)
    before = routed.fleet.counters("s2")
    until(lambda: len(routed.fleet.entries("s1")) > 0, "entries of s1")
    second = routed.fleet.client("s2").complete(text, max_tokens=2)
    assert second.tokens == first.tokens
    assert before.hits() > 0


def test_flush_of_all_empties_engines_of_both_kinds(routed: RoutedFleet) -> None:
    """Each says how much that was; whoever serves the prompt next computes it."""
    text = routed.fleet.text(TOKENS)
    for name in (*SGLANG, "v"):
        routed.fleet.client(name).complete(text, max_tokens=2)
    answer, _ = ask(routed.router.url, "/gc/flush", {"scope": "all"})
    found = {worker["worker"]: worker for worker in answer["workers"]}
    assert set(found) == {*SGLANG, "v"}
    for worker in found.values():
        (device,) = worker["tiers"]
        assert (worker["answered"], worker["supported"], device["error"]) == (True, True, None), worker
        assert device["blocks"] > 0
        assert device["bytes"] > 0
    assert routed.complete(text)[1] == 0


def goes_to(routed: RoutedFleet, text: str) -> str | None:
    """Return the worker that a prompt with this text would go to for what it has of it; None: for something else."""
    answer, _ = ask(routed.router.url, "/gc/explain", {"model": "m", "prompt": text + " And then?"})
    best = answer["workers"][0]
    return str(best["worker"]) if best["local_tokens"] > TOKENS // 2 else None
