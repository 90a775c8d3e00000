"""What routers hear of a worker, under vLLM's real scheduler: chains, computed prompts, load (enginesim.py)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from benchmarks.harness.redis_server import RedisServer

pytest.importorskip("vllm")

from ghostcacher_connector.core.coordination.base import STREAM_START, Cursor, LoadReport, PromptChain, WorkerEvents
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.types import MissReason
from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.pull.step_times import STEPS_MIN
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, RunnerRequest, prompts
from tests.support.index_parts import wait_until

pytestmark = pytest.mark.engine

SETTLE_S = 60.0


@pytest.fixture
def make(make: Make) -> Make:
    """Engines that report often."""
    return partial(make, settings={"report_interval_ms": 20.0})


@pytest.fixture
def router(redis_server: RedisServer) -> Iterator[RedisCoordinationStore]:
    """The store as a router sees it; workers know that one listens."""
    with closing(RedisCoordinationStore(redis_server.url, timeout_s=10.0)) as store:
        store.heartbeat("router-1", ttl_s=600)
        yield store


def heard(engine: SimEngine) -> SimEngine:
    """Wait until an engine knows that a router listens."""
    wait_until(lambda: reporter_of(engine).listening, timeout_s=SETTLE_S, what="the worker knows of the router")
    return engine


def reporter_of(engine: SimEngine) -> Any:
    return engine.connector._scheduler._fleet.reporter


def events(router: RedisCoordinationStore, ends: Callable[[list[WorkerEvents]], bool]) -> list[WorkerEvents]:
    """Read worker events until there are enough of them."""
    found: list[WorkerEvents] = []
    cursor = Cursor(STREAM_START, STREAM_START)
    for _ in range(int(SETTLE_S)):
        if ends(found):
            return found
        batch = router.read(cursor, count=100, block_s=1.0)
        cursor = batch.cursor
        found += batch.events
    raise AssertionError(f"not within {SETTLE_S} s, found {found}")


def computed_in(found: list[WorkerEvents]) -> list[str]:
    return [request for one in found for request in one.computed]


def tokens_of(seed: int, count: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(1000) for _ in range(count)]


class Spy:
    """Takes the place of the reporter: notes what it is told, and whether each computed prompt was true that moment."""

    listening = True

    def __init__(self, engine: SimEngine) -> None:
        self.chains: list[PromptChain] = []
        self.done: list[str] = []
        self.lies: list[str] = []
        self._engine = engine
        engine.connector._scheduler._prompts._sink = self

    def chain(self, chain: PromptChain) -> None:
        self.chains.append(chain)

    def computed(self, request: str) -> None:
        self.done.append(request)
        if not self._true(self._engine.requests[f"chatcmpl-{request}-00000000"]):
            self.lies.append(request)

    def _true(self, request: Any) -> bool:
        """Say whether the index offers all full blocks of the prompt, and each slot that it names holds the block."""
        numbers = RunnerRequest(list(request.prompt_token_ids), [])
        offered = self._engine.connector._scheduler._fleet.publisher.held_blocks._advertised
        slots = [offered.get(block) for block in request.block_hashes[: request.num_prompt_tokens // BLOCK_TOKENS]]
        return all(
            slot is not None and self._engine.holds(slot, BLOCK_TOKENS - 1, numbers.number((n + 1) * BLOCK_TOKENS - 1))
            for n, slot in enumerate(slots)
        )


def test_router_hears_of_a_prompt_when_it_arrives_and_can_find_it_when_it_is_computed(
    make: Make, router: RedisCoordinationStore
) -> None:
    """The chain comes before any step, with the hashes that the index knows; the second report means: look now."""
    engine = heard(make())
    request = engine.add("cmpl-mine-0-0a1b2c3d", tokens_of(1, 200))
    (first,) = events(router, bool)
    assert first.chains == (
        PromptChain("mine", 200, (1, 8, 12), tuple(request.block_hashes[count - 1] for count in (1, 8, 12))),
    )
    engine.run()
    found = events(router, lambda found: bool(computed_in(found)))
    assert computed_in(found) == ["mine"]
    fleet = engine.connector._scheduler._fleet
    (hit,) = fleet.index.lookup([ref_of(fleet.record)], first.chains[0].hashes, locations_for=0)
    assert hit.length == 3
    assert (first.namespace, first.worker, first.incarnation) == ref_of(fleet.record)


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("abort_every", [0, 5])
def test_computed_is_never_said_too_early(make: Make, in_flight: int, abort_every: int) -> None:
    """At the moment of the report every block of the prompt is there and offered; each prompt is reported once."""
    engine = make(blocks=60, in_flight=in_flight, step_tokens=48)
    spy, source, aborted = Spy(engine), prompts(in_flight, documents=3, blocks=9, tail=40), set()
    entries = engine.watch_published()
    for number in range(40):
        engine.add(f"chatcmpl-r{number}-00000000", next(source), max_tokens=3)
        engine.step()
        if abort_every and number % abort_every == 0:
            engine.abort(f"chatcmpl-r{number}-00000000")
            aborted.add(f"r{number}")
        assert engine.lies(entries) == []
    engine.run()
    assert spy.lies == []
    long_enough = {chain.request for chain in spy.chains}
    assert len(spy.done) == len(set(spy.done))
    assert long_enough - aborted <= set(spy.done) <= long_enough
    assert len(long_enough) > 30


def test_what_aborted_requests_leave_in_flight_is_published_when_its_step_is_done(make: Make) -> None:
    """An abort publishes nothing by itself and takes nothing away: steps in flight go on, and prove their blocks."""
    engine = make(in_flight=4, role="kv_producer", step_tokens=128)
    spy, entries = Spy(engine), engine.watch_published()
    for name in ("first", "aborted", "last"):
        engine.add(f"chatcmpl-{name}-00000000", tokens_of(1, 90))
        engine.step()
    assert engine.connector._scheduler._tracked["chatcmpl-last-00000000"].evidence.given == 5
    for name in ("aborted", "first", "last"):
        engine.abort(f"chatcmpl-{name}-00000000")
        assert (entries, spy.done) == ([], [])
    engine.run()
    assert (spy.done, spy.lies) == (["first", "aborted", "last"], [])
    assert len(entries) == 5
    assert engine.lies(entries) == []


def test_prompt_that_needs_many_steps_is_computed_after_the_last(make: Make) -> None:
    """vLLM gives all blocks their hashes long before they are computed."""
    engine = make(step_tokens=16, in_flight=1)
    spy = Spy(engine)
    engine.add("chatcmpl-r-00000000", tokens_of(1, 100), max_tokens=20)
    steps = 0
    while not spy.done:
        engine.step()
        steps += 1
    assert steps >= 6
    assert spy.lies == []


def test_prompt_that_is_here_already_is_computed_at_once(make: Make) -> None:
    """Nothing is left to publish, and the router learns that too."""
    engine = make()
    spy = Spy(engine)
    for name in ("first", "again"):
        engine.add(f"chatcmpl-{name}-00000000", tokens_of(1, 90))
        engine.run()
    assert spy.done == ["first", "again"]
    assert spy.lies == []


def test_pulled_prompt_is_computed_when_it_has_landed(make: Make, router: RedisCoordinationStore) -> None:
    """While it loads nothing is said; afterwards this worker holds the prompt as well."""
    a, b = heard(make("a")), make("b")
    wait_until(lambda: a.peers_ready(1) and b.peers_ready(1), timeout_s=SETTLE_S, what="peers")
    prompt = tokens_of(1, 90)
    a.add("chatcmpl-a-00000000", prompt)
    a.run()
    wait_until(a.all_published, timeout_s=SETTLE_S, what="a has published")
    spy = Spy(b)
    b.add("chatcmpl-b-00000000", prompt)
    tracked = b.connector._scheduler._tracked["chatcmpl-b-00000000"]
    while tracked.phase is not Phase.LOADING:
        b.step()
    assert spy.done == []
    b.run()
    assert b.counted("gc_cache_hits_total") == 5
    assert (spy.done, spy.lies) == (["b"], [])


def test_requests_of_nobody_are_not_reported(make: Make) -> None:
    """An id that no router made, a prompt without a full block, and all others of several prompts say nothing."""
    engine = make()
    spy = Spy(engine)
    for request_id, count in (("r", 90), ("chatcmpl-short-00000000", BLOCK_TOKENS - 1), ("cmpl-r-1-00000000", 90)):
        engine.add(request_id, tokens_of(1, count))
    engine.run()
    assert not spy.chains
    assert not spy.done


def test_consumer_reports_chains_but_never_computed(make: Make) -> None:
    """Peers cannot pull from a worker that does not publish."""
    engine = make(role="kv_consumer")
    spy = Spy(engine)
    engine.add("chatcmpl-r-00000000", tokens_of(1, 90))
    engine.run()
    assert [chain.request for chain in spy.chains] == ["r"]
    assert spy.done == []


def measured(engine: SimEngine) -> LoadReport:
    half = engine.connector._scheduler
    load = half._load.measure(half._tracked.values())
    assert isinstance(load, LoadReport)
    return load


def test_load_counts_what_is_still_to_be_computed(make: Make) -> None:
    """Waiting and running prompts count with what is neither computed nor in this engine's cache."""
    engine = make(blocks=65, step_tokens=64)
    engine.add("r0", tokens_of(0, 100), max_tokens=30)
    engine.add("r1", tokens_of(1, 100), max_tokens=30)
    before = measured(engine)
    assert (before.running, before.waiting, before.waiting_tokens, before.kv_blocks_used) == (0, 2, 200, 0)
    assert (before.kv_blocks_total, before.block_tokens) == (64, BLOCK_TOKENS)
    assert min(before.block_bytes, before.prefill_tokens_per_s, before.pull_fixed_s) > 0
    while (after := measured(engine)).running == 0:  # a step may pass while the index is asked
        engine.step()
    assert (after.running, after.waiting, after.waiting_tokens) == (1, 1, 136)
    assert after.kv_blocks_used >= 4
    engine.run()
    engine.add("again", tokens_of(0, 100))
    assert measured(engine).waiting_tokens == 100 - 6 * BLOCK_TOKENS
    engine.run()


def test_load_counts_what_the_step_that_begins_is_to_compute(make: Make) -> None:
    """The load is measured when a step has been scheduled: vLLM has given blocks their hashes, and computed none."""
    engine, begun = make(blocks=65, step_tokens=256, in_flight=1), list[LoadReport]()
    prefill = engine.connector._scheduler._prefill
    scheduled = prefill.scheduled

    def begins(step: int, output: Any) -> None:
        begun.append(measured(engine))
        scheduled(step, output)

    prefill.scheduled = begins
    engine.add("r0", tokens_of(0, 100))
    engine.run()
    engine.add("more", tokens_of(0, 160))
    engine.run()
    computing = [load.waiting_tokens for load in begun if load.running and load.waiting_tokens]
    assert computing == [100, 160 - 6 * BLOCK_TOKENS]


def test_load_tells_how_long_decode_steps_take(make: Make) -> None:
    """Steps that only decode are timed, with their batch; the prefill rate is a calibration until a prompt tells it."""
    engine = make()
    engine.add("first", tokens_of(0, 40), max_tokens=4 * STEPS_MIN)
    assert measured(engine).decode_step_s == 0.0
    assert measured(engine).prefill_rate_stale
    for number in range(4):
        engine.add(f"later{number}", tokens_of(number, 40), max_tokens=STEPS_MIN)
    engine.run()
    load = measured(engine)
    assert load.decode_step_s > 0.0
    assert 0.0 <= load.decode_request_s <= load.decode_step_s
    assert not load.prefill_rate_stale


def test_load_tells_what_requests_found_in_the_fleet(make: Make) -> None:
    """Blocks that came from a peer, and those that nobody had, by the reason: what its metrics count, too."""
    a, b = make("a"), make("b")
    wait_until(lambda: a.peers_ready(1) and b.peers_ready(1), timeout_s=SETTLE_S, what="peers")
    prompt = tokens_of(1, 90)
    a.add("a", prompt)
    a.run()
    wait_until(a.all_published, timeout_s=SETTLE_S, what="a has published")
    for name, tokens in (("b", prompt), ("new", tokens_of(2, 90))):
        b.add(name, tokens)
        b.run()
    for engine in (a, b):
        load = measured(engine)
        missed = {reason.value: count for reason, count in zip(MissReason, load.missed_blocks, strict=True) if count}
        assert load.hit_blocks == engine.counted("gc_cache_hits_total")
        assert missed == {"not_indexed": 5}
    assert (measured(a).hit_blocks, measured(b).hit_blocks) == (0, 5)


def test_idle_engine_has_no_load(make: Make, router: RedisCoordinationStore) -> None:
    """An engine that stops taking steps tells that it has nothing to do, whether its requests ended or were aborted."""
    engine = make()
    ref = ref_of(engine.connector._scheduler._fleet.record)

    def published() -> tuple[int, int, int, int] | None:
        stored = router.loads([ref])[1][0]
        if stored is None:
            return None
        load = stored.load
        return load.running, load.waiting, load.waiting_tokens, load.kv_blocks_used

    def busy() -> bool:
        engine.step()
        return published() not in (None, (0, 0, 0, 0))

    wait_until(lambda: published() == (0, 0, 0, 0), timeout_s=SETTLE_S, what="a fresh engine is idle")
    for request_id in ("ends", "aborted"):
        engine.add(request_id, tokens_of(1, 90), max_tokens=400)
        wait_until(busy, timeout_s=SETTLE_S, what="the load is published")
        if request_id == "aborted":
            engine.abort(request_id)
        else:
            engine.run()
        wait_until(lambda: published() == (0, 0, 0, 0), timeout_s=SETTLE_S, what="the idle load is published")
