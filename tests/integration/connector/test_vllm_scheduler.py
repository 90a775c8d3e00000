"""The connector under vLLM's real scheduler, with real NIXL and Redis; only the forward pass is ours (enginesim.py)."""

from __future__ import annotations

import itertools
import urllib.request
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from benchmarks.harness.redis_server import RedisServer

pytest.importorskip("vllm")

from vllm.config import KVTransferConfig

from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.engines.vllm.stats import GhostCacherPromMetrics
from tests.conftest import SOAK
from tests.integration.connector.conftest import Make
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, expected_output, prompts, tokens_of
from tests.integration.connector.simfleet import (
    OUTPUT_TOKENS,
    ROUNDS,
    drive,
    meet,
    resume_after_preemption,
    settled,
    wait_for,
)

pytestmark = pytest.mark.engine

REQUESTS = 20_000 if SOAK else 120
PROMETHEUS = {kind: kind for kind in (Counter, Gauge, Histogram)}


@pytest.mark.parametrize("tokens", [1, BLOCK_TOKENS - 1, BLOCK_TOKENS, BLOCK_TOKENS + 1, 5 * BLOCK_TOKENS, 90])
def test_prompt_held_by_a_peer_is_pulled_up_to_its_last_token(make: Make, tokens: int) -> None:
    """Every full block but one that holds the last token is pulled, whatever boundary the prompt ends at."""
    a, b = make("a"), make("b")
    meet(a, b)
    prompt = tokens_of(tokens, tokens)
    for engine in (a, b):
        engine.add("r", prompt)
        engine.run()
        settled(engine)
        assert engine.outputs("r") == expected_output(prompt, 4)
        assert engine.wrong == []
    assert b.counted("gc_cache_hits_total") == (tokens - 1) // BLOCK_TOKENS
    assert b.counted("gc_cache_misses_total") == 0


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("abort_every", [0, 7])
def test_slots_reused_all_the_time_never_give_a_wrong_token(
    make: Make, lagging_url: str, in_flight: int, abort_every: int
) -> None:
    """With a pool of a few prompts, an index that lags, and aborts, stale blocks are met and every output is right."""
    engines = [make(name, blocks=30, in_flight=in_flight, settings={"redis_url": lagging_url}) for name in "ab"]
    meet(*engines)
    source = prompts(in_flight, documents=6, blocks=8, tail=20)
    for _ in range(ROUNDS):
        wrong = drive(engines, REQUESTS, source, abort_every=abort_every)
        assert [engine.wrong for engine in engines] == [[], []]
        assert wrong == 0
        # How many requests meet a stale block depends on how much an engine does while the index lags.
        stale = sum(engine.counted("gc_cache_misses_total", reason="stale_generation") for engine in engines)
        if stale:
            break
    assert stale > 0
    assert sum(engine.counted("gc_cache_hits_total") for engine in engines) > 0
    assert all(engine.free_blocks() == 29 for engine in engines)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_an_entry_that_passes_the_seal_never_lies(make: Make, in_flight: int) -> None:
    """At any moment, also right after a forward pass has written, an entry that a reader would accept is true."""
    engine = make("a", blocks=24, in_flight=in_flight)
    entries = engine.watch_published()
    lies: list[tuple[int, int, int]] = []
    engine.rank.after_forward = lambda: lies.extend(engine.lies(entries))
    source = prompts(3, documents=5, blocks=8, tail=20)
    for number in range(REQUESTS):
        engine.add(f"r{number}", next(source), max_tokens=OUTPUT_TOKENS)
        for _ in range(2):
            engine.step()
        assert lies == engine.lies(entries) == []
    engine.run(timeout_s=120)
    assert lies == engine.lies(entries) == []
    assert len(entries) > REQUESTS / 4


def test_preempted_requests_resume_with_right_tokens(make: Make) -> None:
    """Requests that are preempted for want of room come back, are pulled for or recomputed, and are right."""
    a, b = make("a", blocks=40), make("b", blocks=20)
    meet(a, b)
    resume_after_preemption(a, b)
    assert b.counted("gc_cache_hits_total") > 0


def test_reset_of_the_prefix_cache_withdraws_everything(make: Make) -> None:
    """After a reset (new weights, for instance) no peer can use what was published before."""
    a, b = make("a"), make("b")
    meet(a, b)
    prompt = tokens_of(1, 90)
    entries = a.watch_published()
    a.add("r", prompt)
    a.run()
    settled(a)
    assert a.scheduler.reset_prefix_cache()
    a.add("other", tokens_of(2, 20))  # bumps travel with the next step
    a.run()
    settled(a)
    table = a.worker._worker._table
    assert all(table.generation(slot) != generation for slot, generation, _ in entries[:5])
    b.add("r", prompt)
    b.run()
    assert b.counted("gc_cache_hits_total") == 0
    assert b.outputs("r") == expected_output(prompt, 4)


def test_shutdown_breaks_the_seal_first(make: Make) -> None:
    """Once a rank shuts down, its memory is about to be freed: every entry is refused from that moment on."""
    a = make("a")
    a.add("r", tokens_of(1, 90))
    a.run()
    table = a.worker._worker._table
    before = table.incarnation
    a.worker.shutdown()
    assert table.incarnation != before


def test_aborted_loads_leave_nothing_behind(make: Make) -> None:
    """A request that is aborted while it loads frees its blocks and is forgotten by both halves."""
    a, b = make("a"), make("b")
    meet(a, b)
    prompt = tokens_of(1, 90)
    a.add("r", prompt)
    a.run()
    settled(a)
    tracked = b.connector._scheduler._tracked
    for number in range(5):
        b.add(f"r{number}", prompt)
        while tracked[f"r{number}"].phase is not Phase.LOADING:
            b.step()
        b.abort(f"r{number}")
        b.run()
    half = b.connector._scheduler
    assert half._tracked == half._matcher._reports == {}
    assert b.free_blocks() == 31


@pytest.mark.parametrize(("role", "publishes"), [("kv_producer", True), ("kv_consumer", False)])
def test_role_limits_what_a_worker_does(make: Make, role: str, publishes: bool) -> None:
    """A producer publishes and never pulls; a consumer pulls and never publishes."""
    both, other = make("both"), make("other", role=role)
    meet(both, other)
    for number, (first, second) in enumerate([(other, both), (both, other)]):
        prompt = tokens_of(number, 90)
        for engine in (first, second):
            engine.add(f"r{number}", prompt)
            engine.run()
            settled(engine)
    assert (both.counted("gc_cache_hits_total") > 0) is publishes
    assert (other.counted("gc_cache_hits_total") > 0) is not publishes
    assert other.wrong == both.wrong == []


def test_client_can_turn_pulling_off(make: Make) -> None:
    """`kv_transfer_params: {"gc_pull": false}` computes a prompt that a peer holds."""
    a, b = make("a"), make("b")
    meet(a, b)
    prompt = tokens_of(1, 90)
    a.add("r", prompt)
    a.run()
    settled(a)
    b.add("r", prompt, pull=False)
    b.run()
    assert b.counted("gc_cache_hits_total") == 0
    assert b.outputs("r") == expected_output(prompt, 4)


AWAY = {"lease_ttl_s": 3.0, "redis_timeout_s": 1.0, "lookup_deadline_ms": 1000.0}


def test_index_away_is_a_miss_within_the_deadline(make: Make, redis_server: RedisServer) -> None:
    """Without Redis an engine computes, at once, and goes on sharing when Redis is back and empty."""
    a, b = make("a", settings=AWAY), make("b", settings=AWAY)
    meet(a, b)
    prompt = tokens_of(1, 90)
    redis_server.kill()
    for engine in (a, b):
        engine.add("away", prompt)
        engine.run()
        assert engine.outputs("away") == expected_output(prompt, 4)
    assert b.counted("gc_cache_hits_total") == 0
    redis_server.start()
    rounds = itertools.count()

    def shares_again() -> bool:
        number = next(rounds)
        fresh = tokens_of(100 + number, 90)
        for engine in (a, b):
            engine.add(f"back{number}", fresh)
            engine.run()
            settled(engine)
            assert engine.outputs(f"back{number}") == expected_output(fresh, 4)
        return b.counted("gc_cache_hits_total") >= (90 - 1) // BLOCK_TOKENS

    wait_for(shares_again, "the engines share again")
    assert b.wrong == []


def test_own_metrics_page_shows_both_halves(make: Make) -> None:
    """With `metrics_port` the counters of scheduler and rank are on a page of our own."""
    engine = make("a", settings={"metrics_port": 0})
    engine.add("r", tokens_of(1, 90))
    engine.run()
    settled(engine)
    page = engine.connector._scheduler._fleet._page
    numbers = itertools.count()

    def shown() -> bool:
        # What has been counted is shown with the next step; this prompt fills no block, so that it counts nothing more.
        engine.add(f"again-{next(numbers)}", tokens_of(2, BLOCK_TOKENS // 2))
        engine.run()
        text = urllib.request.urlopen(f"http://127.0.0.1:{page.port}/metrics", timeout=10).read().decode()
        return "gc_published_entries_total 5.0" in text and 'gc_self_check_ok{rank="0"} 1.0' in text

    wait_for(shown, "the counters of both halves")


def test_idle_engines_gauges_are_on_vllms_page(make: Make) -> None:
    """The process of the page asks for them: nothing but time passes, and no engine takes a step."""
    a, b = make("a"), make("b")
    wait_for(
        lambda: all(engine.connector._scheduler._fleet.gauges()["gc_peers_live"][""] for engine in (a, b)), "peers"
    )
    page = GhostCacherPromMetrics(
        a.config, {Counter: Counter, Gauge: Gauge, Histogram: Histogram}, ["idle"], {0: ["a"]}
    )

    def shown(name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(name, {"idle": "a", **labels})

    wait_for(lambda: shown("gc_peers_live") == 1.0, "the peer on the page")
    assert shown("gc_self_check_ok", rank="0") == 1.0
    b.close()
    wait_for(lambda: shown("gc_peers_live") == 0.0, "the peer to leave the page")
    page._asking.stop(10)


def test_gauges_of_data_parallel_replicas_are_asked_for_by_their_own_ids() -> None:
    """Each replica is an engine of its own, with the id that vLLM gives it."""
    config = SimpleNamespace(
        kv_transfer_config=KVTransferConfig(engine_id="e", kv_role="kv_both", kv_connector="GhostCacherConnector"),
        parallel_config=SimpleNamespace(data_parallel_size=2),
    )
    page = GhostCacherPromMetrics(config, PROMETHEUS, ["idle"], {0: ["x"], 1: ["y"]})
    page._asking.stop(10)
    assert page._engine_ids == {0: "e_dp0", 1: "e_dp1"}
