"""The host tier under vLLM's real scheduler: what the engine evicts comes back from there, right or not at all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.types import Tier
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import BLOCK_TOKENS, LAYERS, SimEngine
from tests.integration.connector.prefix_numbers import expected_output, prompts, tokens_of
from tests.support.index_parts import wait_until

pytestmark = pytest.mark.engine

WAIT_S = 60.0
BLOCKS = 6
PROMPT_TOKENS = BLOCKS * BLOCK_TOKENS + 1
BLOCK_BYTES = LAYERS * BLOCK_TOKENS * 2 * 8
GIB = 1 << 30


def tier_of(blocks: int) -> dict[str, Any]:
    """Return the settings of an engine with so many host slots."""
    return {"host_tier_gib": (blocks + 0.5) * BLOCK_BYTES / GIB}


def ledger(engine: SimEngine) -> Any:
    return engine.connector._scheduler._copying.tier.ledger


def compute(engine: SimEngine, seed: int, *, blocks: int = BLOCKS, **options: Any) -> float:
    """Complete a prompt, rightly; return how many of its blocks were loaded or pulled."""
    tokens = tokens_of(seed, blocks * BLOCK_TOKENS + 1)
    before = engine.counted("gc_cache_hits_total")
    name = f"p{seed}-{len(engine.requests)}"
    engine.add(name, tokens, **options)
    engine.run()
    assert engine.outputs(name) == expected_output(tokens, 4, engine.rank.weight)
    assert engine.wrong == []
    return engine.counted("gc_cache_hits_total") - before


@pytest.mark.parametrize("in_flight", [1, 2])
def test_evicted_prompt_comes_back_from_the_host_tier(make: Make, in_flight: int) -> None:
    """Bit by bit: each block's numbers are checked at every step that would read them."""
    engine = make(blocks=16, in_flight=in_flight, settings=tier_of(64))
    for seed in range(4):
        assert compute(engine, seed) == 0
    for seed in range(4):
        assert compute(engine, seed) == BLOCKS
    assert engine.counted("gc_pulls_total", outcome="done") == 4
    assert engine.counted("gc_rdma_transfers_total", transport="local") == 4
    ledger(engine).check_invariants()
    scheduler = engine.connector._scheduler
    assert scheduler._copying.tier._engine.keys() == scheduler._watch._published, "the tier follows what is published"


def test_idle_engine_takes_steps_until_its_copies_are_done(make: Make) -> None:
    """Then the last prompt's blocks are safe as well, and the engine rests."""
    engine = make(blocks=16, settings={**tier_of(64), "hbm_swap_threshold": 0.0})
    engine.add("r", tokens_of(1, PROMPT_TOKENS))
    engine.run()
    assert len(ledger(engine)) == BLOCKS
    assert not engine.scheduler.has_requests()


def test_block_is_copied_once(make: Make) -> None:
    """However often it is used, as long as the tier has room."""
    engine = make(blocks=16, settings={**tier_of(64), "hbm_swap_threshold": 0.0})
    for _ in range(5):
        compute(engine, 1)
        compute(engine, 2)
    assert engine.counted("gc_tier_copied_blocks_total") == 2 * BLOCKS


def test_later_request_can_have_a_prompt_kept_and_metrics_say_so(make: Make) -> None:
    """The first one asked for nothing, so that its blocks came to the tier like any others."""
    engine = make(blocks=16, settings={**tier_of(64), "hbm_swap_threshold": 0.0})
    compute(engine, 1)
    assert ledger(engine).retained_bytes == 0
    compute(engine, 1, transfer={"gc_retain_s": 600})
    scheduler = engine.connector._scheduler
    tier = scheduler._copying.tier
    assert ledger(engine).retained_bytes == BLOCKS * tier.block_bytes
    scheduler.take_metrics()
    tier._record_at = 0.0
    assert scheduler.take_metrics()["gc_tier_retained_bytes"] == {"host": BLOCKS * tier.block_bytes}


def test_worker_without_a_host_tier_copies_nothing(make: Make) -> None:
    engine = make(blocks=16)
    for seed in (1, 2, 3, 1):
        assert compute(engine, seed) == 0
    assert engine.connector._scheduler._copying is None


def test_host_tier_of_a_worker_that_publishes_nothing_is_refused(make: Make) -> None:
    """Nothing would ever be in it, and its memory be taken all the same."""
    with pytest.raises(ConfigError, match="host_tier_gib: expected 0 with kv_role kv_consumer, got"):
        make(role="kv_consumer", settings=tier_of(64))


def test_peer_pulls_from_a_host_slot(make: Make) -> None:
    """What the holder's engine has evicted, straight into the reader's engine; half of it in either tier, too."""
    holder, reader = make("a", blocks=16, settings=tier_of(64)), make("b", blocks=16)
    for engine in (holder, reader):
        wait_until(lambda engine=engine: engine.peers_ready(1), WAIT_S)  # type: ignore[misc]
    for seed in range(4):
        compute(holder, seed)
    wait_until(holder.all_published, WAIT_S)
    for seed in range(4):
        assert compute(reader, seed) == BLOCKS
    assert reader.counted("gc_rdma_transfers_total", transport="nixl") == 4
    assert reader.counted("gc_seal_checks_total", result="stale") == 0


@pytest.mark.parametrize("in_flight", [1, 2])
def test_rank_has_bumped_a_host_slot_when_it_is_given_a_copy_into_it(make: Make, in_flight: int) -> None:
    """Of every slot that was published: a reader of before must find another generation than it was told of."""
    engine = make(blocks=16, in_flight=in_flight, settings={**tier_of(8), "hbm_swap_threshold": 0.0})
    tier, rank = engine.connector._scheduler._copying.tier, engine.worker._worker
    told: dict[int, int] = {}
    reused: list[int] = []
    publish, submit = tier._sink.publish, rank._runtime.copier.submit

    def published(slot: int, block: bytes, root: bytes, generation: int) -> None:
        told[slot] = generation
        publish(slot, block, root, generation)

    def submitted(job: Any) -> None:
        again = [slot for slot in job.host_slots.tolist() if slot in told]
        assert all(rank._table.generation(slot) > told[slot] for slot in again)
        reused.extend(again)
        submit(job)

    tier._sink = SimpleNamespace(publish=published, withdraw=tier._sink.withdraw)
    rank._runtime.copier.submit = submitted
    for seed in range(6):
        compute(engine, seed)
    assert reused


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("lost", [0, 2, BLOCKS - 1])
def test_host_slot_that_is_given_away_before_it_is_loaded_is_computed(make: Make, lost: int, in_flight: int) -> None:
    """With all that follows it; what comes before is used."""
    engine = make(blocks=16, in_flight=in_flight, settings=tier_of(64))
    for seed in range(4):
        compute(engine, seed)
    block = engine.requests["p0-0"].block_hashes[lost]
    held = ledger(engine)._held[block]
    table = engine.worker._worker._table
    table.bump(np.array([held.slot]), np.array([held.generation + 1], dtype=np.uint64))
    assert compute(engine, 0) == lost
    assert not ledger(engine)._loads
    assert compute(engine, 1) == BLOCKS


def test_own_tier_and_a_peer_hold_a_prompt_together(make: Make) -> None:
    """The peer has all of it and is gone, the own tier has its beginning: that is used, and the rest computed."""
    holder, reader = make("a", blocks=32), make("b", blocks=16, settings=tier_of(64))
    for engine in (holder, reader):
        wait_until(lambda engine=engine: engine.peers_ready(1), WAIT_S)  # type: ignore[misc]
    for seed in range(1, 5):
        compute(reader, seed)
    tokens = tokens_of(1, PROMPT_TOKENS - 1) + tokens_of(50, 3 * BLOCK_TOKENS + 1)
    holder.add("long", tokens, pull=False)
    holder.run()
    wait_until(holder.all_published, WAIT_S)
    holder.worker._worker._table.renew_incarnation()
    reader.add("long", tokens)
    reader.run()
    assert reader.wrong == []
    assert reader.outputs("long") == expected_output(tokens, 4)
    assert reader.counted("gc_seal_checks_total", result="stale") > 0
    assert reader.counted("gc_cache_hits_total") == BLOCKS
    assert not ledger(reader)._loads


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("slots", [3, 20])
def test_nothing_wrong_is_served_while_all_slots_are_reused(make: Make, in_flight: int, slots: int) -> None:
    """Two engines with far too few blocks, and tiers that are full all the time: copies, loads and pulls race."""
    engines = [make(name, blocks=24, in_flight=in_flight, settings=tier_of(slots)) for name in "ab"]
    for engine in engines:
        wait_until(lambda engine=engine: engine.peers_ready(1), WAIT_S)  # type: ignore[misc]
    source = prompts(5, documents=6, blocks=8, tail=20)
    asked: dict[str, list[int]] = {}
    for number in range(160):
        engine = engines[number % 2]
        asked[f"r{number}"] = next(source)
        engine.add(f"r{number}", asked[f"r{number}"])
        for _ in range(3):
            for one in engines:
                one.step()
    for engine in engines:
        engine.run()
        assert engine.wrong == []
        ledger(engine).check_invariants()
    for number, (name, tokens) in enumerate(asked.items()):
        assert engines[number % 2].outputs(name) == expected_output(tokens, 4)
    assert sum(engine.counted("gc_tier_copied_blocks_total", result="valid") for engine in engines) > slots
    loaded = sum(engine.counted("gc_rdma_transfers_total", transport="local") for engine in engines)
    assert loaded > 0 or slots < 8, "a tier of a few blocks rarely has the one that is needed next"


def test_nothing_old_is_served_after_the_weights_have_changed(make: Make) -> None:
    """From no tier; what is computed under the new ones is."""
    engine = make(blocks=16, settings=tier_of(64))
    for seed in range(4):
        compute(engine, seed)
    engine.rpc("update_weights", 7)
    assert engine.scheduler.reset_prefix_cache()
    for seed in range(4):
        assert compute(engine, seed) == 0
    for seed in range(4):
        assert compute(engine, seed) == BLOCKS


def test_nothing_is_served_after_a_reset_of_the_prefix_cache(make: Make) -> None:
    """Whoever resets it wants it computed."""
    engine = make(blocks=16, settings=tier_of(64))
    for seed in range(4):
        compute(engine, seed)
    assert engine.scheduler.reset_prefix_cache()
    assert len(ledger(engine)) == 0
    assert compute(engine, 0) == 0


def test_copy_under_way_when_the_weights_change_is_of_no_use(make: Make) -> None:
    """Its report comes after the reset, and brings nothing back."""
    engine = make(blocks=16, settings={**tier_of(64), "hbm_swap_threshold": 0.0})
    copier = engine.worker._worker._runtime.copier
    results: list[Any] = []
    poll, copier.poll = copier.poll, list
    engine.add("r", tokens_of(1, PROMPT_TOKENS))
    while not ledger(engine).copies_under_way:
        engine.step()
    engine.rpc("update_weights", 7)
    assert engine.scheduler.reset_prefix_cache()
    wait_until(lambda: bool(results.extend(poll()) or results), WAIT_S)
    copier.poll = lambda: [results.pop()] if results else poll()
    assert compute(engine, 1) == 0
    assert compute(engine, 1, blocks=BLOCKS) == 0
    assert engine.wrong == []


def test_own_tier_serves_while_redis_is_away(make: Make, redis_server: Any) -> None:
    """It needs no index."""
    engine = make(blocks=16, settings={**tier_of(64), "redis_timeout_s": 0.5})
    for seed in range(4):
        compute(engine, seed)
    redis_server.stop()
    for seed in range(4):
        assert compute(engine, seed) == BLOCKS


def test_request_that_is_aborted_while_it_loads_leaves_nothing_pinned(make: Make) -> None:
    engine = make(blocks=16, settings=tier_of(64))
    for seed in range(3):
        compute(engine, seed)
    (local, *_) = engine.worker._worker._runtime.puller._transports
    assert local.name == "local"
    engine.add("r", tokens_of(0, PROMPT_TOKENS))
    while not ledger(engine)._loads:
        engine.step()
    engine.abort("r")
    engine.run()
    wait_until(lambda: engine.step() or not ledger(engine)._loads, WAIT_S)
    assert compute(engine, 0) > 0
    assert engine.free_blocks() == 15


def test_preempted_requests_of_a_full_engine_stay_right(make: Make) -> None:
    """More requests at once than the pool has blocks for, all of them revisited."""
    engine = make(blocks=20, settings=tier_of(12))
    source = random.Random(3)
    names: dict[str, list[int]] = {}
    for number in range(40):
        tokens = tokens_of(source.randrange(4), PROMPT_TOKENS)
        names[f"r{number}"] = tokens
        engine.add(f"r{number}", tokens, max_tokens=40)
        engine.step()
    engine.run()
    assert engine.wrong == []
    for name, tokens in names.items():
        assert engine.outputs(name) == expected_output(tokens, 40)
    assert sum(request.num_preemptions for request in engine.requests.values()) > 0
    ledger(engine).check_invariants()


def test_host_tier_keeps_apart_what_is_hashed_apart(make: Make) -> None:
    """A tenant's salt is in the hash; an adapter: see test_vllm_lora.py."""
    engine = make(blocks=16, settings=tier_of(64))
    for options in ({"cache_salt": "a"}, {"cache_salt": "b"}, {}):
        assert compute(engine, 0, **options) == 0
    for seed in range(1, 4):
        compute(engine, seed)
    assert compute(engine, 0, pull=False) == 0
    for seed in range(1, 4):
        compute(engine, seed)
    for options in ({"cache_salt": "a"}, {"cache_salt": "b"}, {}):
        assert compute(engine, 0, **options) == BLOCKS
    assert compute(engine, 0, cache_salt="c") == 0


def test_lost_step_empties_the_tier(make: Make) -> None:
    """A rank that missed generations cannot say what a copy has copied."""
    engine = make(blocks=16, settings=tier_of(64))
    for seed in range(4):
        compute(engine, seed)
    engine.worker._worker._step -= 1
    assert compute(engine, 9) == 0
    for seed in range(4):
        assert compute(engine, seed) == 0
    for seed in range(4):
        assert compute(engine, seed) == BLOCKS


def test_entries_of_host_slots_name_their_tier(make: Make) -> None:
    """What the engine still has is advertised there."""
    engine = make(blocks=16, settings=tier_of(64))
    for seed in range(4):
        compute(engine, seed)
    wait_until(engine.all_published, WAIT_S)
    tiers = [location.tier for location in locations(engine, 0)]
    assert tiers == [Tier.HOST] * BLOCKS
    assert [location.tier for location in locations(engine, 3)] == [Tier.DEVICE] * BLOCKS


def locations(engine: SimEngine, seed: int) -> Iterator[Any]:
    """Yield what the index says of a prompt's blocks."""
    from ghostcacher_connector.core.index.base import ref_of

    fleet = engine.connector._scheduler._fleet
    request = next(request for name, request in engine.requests.items() if name.startswith(f"p{seed}-"))
    (hit,) = fleet.index.lookup([ref_of(fleet.record)], request.block_hashes[:BLOCKS])
    yield from hit.locations
