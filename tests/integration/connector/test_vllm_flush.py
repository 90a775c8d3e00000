"""Orders to flush under vLLM's real scheduler: what they name is found by nobody any more (enginesim.py)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from benchmarks.harness.redis_server import RedisServer

pytest.importorskip("vllm")

from ghostcacher_connector.core.coordination.flushes import ORDER_BYTES, FlushOrder, FlushReport, TierDropped
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.sections import SectionEnd, encode_hint, session_tag, with_tags
from ghostcacher_connector.core.types import SectionType, Tier
from ghostcacher_connector.publish.flush_desk import Engine
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, expected_output, prompts, tokens_of
from tests.integration.connector.simfleet import cached_tokens
from tests.integration.connector.test_vllm_host_tier import ledger, tier_of
from tests.integration.connector.windowsim import KEEP_ALL, LAYERS, WindowEngine
from tests.support.index_parts import wait_until

pytestmark = pytest.mark.engine

WAIT_S = 60.0
BLOCKS = 6
PROMPT = tokens_of(1, BLOCKS * BLOCK_TOKENS + 1)
ALICE = session_tag("alice", 7)


@pytest.fixture
def router(redis_server: RedisServer) -> Iterator[RedisCoordinationStore]:
    """The store as a router sees it."""
    with closing(RedisCoordinationStore(redis_server.url, timeout_s=10.0)) as store:
        yield store


def order(scope: str, blocks: tuple[bytes, ...] = (), session: bytes = b"", number: int = 1) -> FlushOrder:
    return FlushOrder(number.to_bytes(ORDER_BYTES, "little"), scope, blocks, session, "router-1")


def ready(engine: SimEngine) -> SimEngine:
    """Wait until an engine takes orders."""
    wait_until(lambda: engine.connector._scheduler._fleet.flushes._cursor is not None, WAIT_S)
    return engine


def answer(router: RedisCoordinationStore, wanted: FlushOrder, *workers: str) -> dict[str, int]:
    """Give an order; return how many blocks each worker's engine has dropped, once all have answered."""
    router.append_flush(wanted)
    found: list[FlushReport | None] = []

    def all_answered() -> bool:
        found[:] = router.flush_reports(wanted.order, workers)
        return all(report is not None for report in found)

    wait_until(all_answered, WAIT_S)
    return {name: report.dropped[0].blocks for name, report in zip(workers, found, strict=True) if report is not None}


def chat_id(session: bytes, shared_blocks: int) -> str:
    """Return the id of a request whose first blocks are a system text."""
    ends = [SectionEnd(SectionType.SYS, shared_blocks * BLOCK_TOKENS), SectionEnd(SectionType.USER, len(PROMPT))]
    return f"chatcmpl-r{with_tags(encode_hint(ends), session=session)}-0a1b2c3d"


def test_idle_engine_forgets_all_and_says_how_much(make: Make, router: RedisCoordinationStore) -> None:
    """Its own cache, too; and nobody finds anything of it in the index."""
    engine = ready(make())
    assert cached_tokens(engine, "r1", PROMPT) == 0
    assert cached_tokens(engine, "r2", PROMPT) == BLOCKS * BLOCK_TOKENS
    router.append_flush(order("all"))
    wait_until(lambda: router.flush_reports(order("all").order, ["a"]) != [None], WAIT_S)
    slot_bytes = engine.connector._scheduler._fleet.record.ranks[0].bytes_per_slot
    assert router.flush_reports(order("all").order, ["a"]) == [
        FlushReport((TierDropped(Tier.DEVICE, BLOCKS, BLOCKS * slot_bytes),))
    ]
    fleet = engine.connector._scheduler._fleet
    wait_until(engine.all_published, WAIT_S)
    assert fleet.index.lookup([ref_of(fleet.record)], engine.requests["r1"].block_hashes, locations_for=1) == []
    assert cached_tokens(engine, "r3", PROMPT) == 0
    assert cached_tokens(engine, "r4", PROMPT) == BLOCKS * BLOCK_TOKENS


def test_session_loses_its_history_and_keeps_what_it_shares(make: Make, router: RedisCoordinationStore) -> None:
    """Two sessions with one system text: the other one's history stays."""
    engine = ready(make())
    other = PROMPT[: 2 * BLOCK_TOKENS] + tokens_of(2, 4 * BLOCK_TOKENS + 1)
    cached_tokens(engine, chat_id(ALICE, 2), PROMPT)
    cached_tokens(engine, chat_id(session_tag("bob", 7), 2).replace("-r", "-s"), other)
    assert answer(router, order("session", session=ALICE), "a") == {"a": BLOCKS - 2}
    assert cached_tokens(engine, "r3", PROMPT) == 2 * BLOCK_TOKENS
    assert cached_tokens(engine, "r4", other) == BLOCKS * BLOCK_TOKENS


def test_prefix_goes_with_all_that_follows_it_on_every_worker(make: Make, router: RedisCoordinationStore) -> None:
    """By the hash of one of its blocks; what a worker has pulled, too."""
    a, b = ready(make("a")), ready(make("b"))
    for engine in (a, b):
        wait_until(lambda engine=engine: engine.peers_ready(1), WAIT_S)  # type: ignore[misc]
    cached_tokens(a, "r1", PROMPT)
    wait_until(a.all_published, WAIT_S)
    assert cached_tokens(b, "r1", PROMPT) == BLOCKS * BLOCK_TOKENS
    middle = a.requests["r1"].block_hashes[BLOCKS // 2]
    assert answer(router, order("prefix", (middle,)), "a", "b") == {"a": BLOCKS, "b": BLOCKS}
    for engine in (a, b):
        wait_until(engine.all_published, WAIT_S)
    assert cached_tokens(b, "r2", PROMPT) == 0
    assert b.counted("gc_pulls_total") == 1


def test_peer_that_has_looked_a_block_up_cannot_read_it_any_more(make: Make, router: RedisCoordinationStore) -> None:
    """The slots have new generations, which the ranks learn with the next step."""
    engine = ready(make())
    cached_tokens(engine, "r1", PROMPT)
    held = engine.connector._scheduler._fleet.publisher.held_blocks
    before = {slot: engine.worker._worker._table.generation(slot) for slot in held.blocks_by_slot()}
    answer(router, order("all"), "a")
    cached_tokens(engine, "r2", tokens_of(3, BLOCK_TOKENS))
    table = engine.worker._worker._table
    assert all(table.generation(slot) > generation for slot, generation in before.items())


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("scope", ["all", "prefix"])
def test_request_that_runs_publishes_nothing_on_top_of_what_was_dropped(
    make: Make, router: RedisCoordinationStore, scope: str, in_flight: int
) -> None:
    """It computes on, and ends with the right answer; the next one publishes again."""
    engine = ready(make(step_tokens=2 * BLOCK_TOKENS, in_flight=in_flight))
    engine.add("r1", PROMPT)
    held = engine.connector._scheduler._fleet.publisher.held_blocks
    while not len(held):
        engine.step()
    assert len(held) < BLOCKS
    first = engine.requests["r1"].block_hashes[0]
    engine.connector._scheduler._fleet.flushes._orders.append(order(scope, (first,)))
    engine.run()
    assert engine.outputs("r1") == expected_output(PROMPT, 4)
    assert len(held) == 0
    cached_tokens(engine, "r2", PROMPT)
    assert len(held) == BLOCKS


@pytest.mark.parametrize("in_flight", [1, 2])
def test_flushes_in_the_midst_of_traffic_never_make_an_answer_wrong(
    make: Make, router: RedisCoordinationStore, in_flight: int
) -> None:
    """Any scope, at any moment between two steps, while two engines pull from each other."""
    engines = [ready(make(name, blocks=40, in_flight=in_flight, step_tokens=48)) for name in "ab"]
    for engine in engines:
        wait_until(lambda engine=engine: engine.peers_ready(1), WAIT_S)  # type: ignore[misc]
    published = [engine.watch_published() for engine in engines]
    source, texts = random.Random(in_flight), prompts(in_flight, documents=3, blocks=9, tail=40)
    for number in range(60):
        engine = engines[number % 2]
        prompt = next(texts)
        engine.add(f"r{number}", prompt)
        for _ in range(source.randrange(6)):
            for each in engines:
                each.step()
        hashes = tuple(source.sample(list(engine.requests[f"r{number}"].block_hashes), 1)) if len(prompt) > 32 else ()
        wanted = order(source.choice(["all", "prefix", "doc", "tools"]), hashes, number=number + 1)
        flushes = engine.connector._scheduler._fleet.flushes
        flushes._orders.append(wanted)
        for each, entries in zip(engines, published, strict=True):
            assert each.lies(entries) == []
    for engine in engines:
        engine.run()
        for request_id, request in engine.requests.items():
            assert engine.outputs(request_id) == expected_output(list(request.prompt_token_ids), 4)
        assert engine.wrong == []


def test_desk_never_stands_in_for_an_engine_with_requests(make: Make, router: RedisCoordinationStore) -> None:
    """However long it takes no step: its blocks are in use."""
    engine = ready(make())
    scheduler = engine.connector._scheduler
    engine.add("r1", PROMPT)
    engine.step()
    assert isinstance(scheduler._fleet.flushes._engine, Engine)
    assert scheduler._fleet.flushes._engine.has_requests()
    engine.run()
    assert not scheduler._fleet.flushes._engine.has_requests()


def test_host_tier_is_flushed_and_its_load_reported(make: Make, router: RedisCoordinationStore) -> None:
    """What the engine's cache has given up, and what the tier alone holds; it says how much that was."""
    engine = ready(make(blocks=16, settings=tier_of(64)))
    texts = [tokens_of(seed, BLOCKS * BLOCK_TOKENS + 1) for seed in range(4)]
    for number, text in enumerate(texts):
        cached_tokens(engine, f"r{number}", text)
    load = engine.connector._scheduler._load
    (before,) = load.measure([]).tiers
    assert (before.tier, before.blocks_max, before.loaded_blocks) == (Tier.HOST, 64, 0)
    assert BLOCKS < before.blocks == sum(before.blocks_by_section) == before.blocks_by_section[SectionType.DOC]
    assert cached_tokens(engine, "r9", texts[0]) == BLOCKS * BLOCK_TOKENS
    (after,) = load.measure([]).tiers
    assert after.loaded_blocks == BLOCKS
    first = engine.requests["r1"].block_hashes[0]
    router.append_flush(order("prefix", (first,)))
    wait_until(lambda: router.flush_reports(order("prefix").order, ["a"]) != [None], WAIT_S)
    (report,) = router.flush_reports(order("prefix").order, ["a"])
    assert report is not None
    assert [dropped.tier for dropped in report.dropped] == [Tier.DEVICE, Tier.HOST]
    assert sum(dropped.blocks for dropped in report.dropped) >= BLOCKS
    assert cached_tokens(engine, "again1", texts[1]) == 0
    assert cached_tokens(engine, "again2", texts[2]) == BLOCKS * BLOCK_TOKENS
    answer(router, order("all", number=2), "a")
    (empty,) = load.measure([]).tiers
    assert (empty.blocks, sum(empty.blocks_by_section)) == (0, 0)
    assert all(cached_tokens(engine, f"last{number}", text) == 0 for number, text in enumerate(texts))
    ledger(engine).check_invariants()


@pytest.mark.parametrize("scope", ["prefix", "doc"])
def test_block_that_is_only_on_its_way_to_the_host_tier_is_flushed(make: Make, scope: str) -> None:
    """The engine has given it up, and its copy is not reported yet: the order names it all the same."""
    engine = ready(make(blocks=16, settings={**tier_of(64), "hbm_swap_threshold": 0.0}))
    scheduler, copier = engine.connector._scheduler, engine.worker._worker._runtime.copier
    poll, copier.poll = copier.poll, list
    engine.add("r1", PROMPT)
    while ledger(engine).copies_under_way < 1 or engine.requests["r1"].num_output_tokens < 4:
        engine.step()
    wait_until(lambda: not copier.queue_length, WAIT_S)
    held = scheduler._fleet.publisher.held_blocks
    for seed in (2, 3, 4):  # their blocks take the place of all of the first one's
        engine.add(f"r{seed}", tokens_of(seed, BLOCKS * BLOCK_TOKENS + 1), pull=False)
        while f"r{seed}" in engine.scheduler.requests:
            engine.step()
    first = engine.requests["r1"].block_hashes[0]
    assert first not in held.blocks_by_slot().values()
    assert ledger(engine).knows(first)
    scheduler._fleet.flushes._orders.append(order(scope, (first,)))
    engine.add("r5", tokens_of(5, BLOCK_TOKENS + 1))
    copier.poll = poll
    engine.run()
    assert not ledger(engine).holds(first)
    assert cached_tokens(engine, "r6", PROMPT) == 0


def test_flush_of_an_idle_engine_does_not_wait_for_a_copy(make: Make, router: RedisCoordinationStore) -> None:
    """An engine in lockstep takes no steps for its copies, so that nobody tells how the last ones ended."""
    engine = ready(make(blocks=16, settings={**tier_of(64), "hbm_swap_threshold": 0.0}))
    engine.connector._scheduler._lockstep = True
    while not ledger(engine).copies_under_way:
        cached_tokens(engine, f"r{len(engine.requests)}", tokens_of(len(engine.requests), 97))
    answer(router, order("all"), "a")
    assert ledger(engine).copies_under_way == 0


@pytest.mark.parametrize("scope", ["all", "prefix"])
def test_order_drops_what_it_names_in_every_cache_group(make: Make, router: RedisCoordinationStore, scope: str) -> None:
    """Orders name blocks by their hashes; the windows of these go, too, and those of other prompts stay."""
    engine: Any = ready(make(kind=WindowEngine, **KEEP_ALL))
    other = tokens_of(2, 4 * BLOCK_TOKENS + 1)
    for name, prompt in (("r1", PROMPT), ("o1", other)):
        cached_tokens(engine, name, prompt)
    held = engine.connector._scheduler._fleet.publisher.held_blocks
    assert len(held) == (BLOCKS + 4) * len(LAYERS)
    named = () if scope == "all" else (engine.requests["r1"].block_hashes[BLOCKS // 2],)
    dropped = answer(router, order(scope, named), "a")["a"]
    left = 0 if scope == "all" else 4
    assert (dropped, len(held)) == ((BLOCKS + 4 - left) * len(LAYERS), left * len(LAYERS))
    assert cached_tokens(engine, "r2", PROMPT) == 0
    assert cached_tokens(engine, "o2", other) == left * BLOCK_TOKENS
