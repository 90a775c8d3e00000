"""The object tier under vLLM's real scheduler: blocks come back after everything was restarted, right or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from benchmarks.harness.redis_server import RedisServer
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import expected_output, tokens_of
from tests.integration.connector.test_vllm_host_tier import BLOCKS, PROMPT_TOKENS, compute, ledger, tier_of
from tests.support.index_parts import wait_until

pytestmark = pytest.mark.engine

WAIT_S = 60.0


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/objects"


def objects_at(url: str, *, slots: int = 64) -> dict[str, Any]:
    """Return the settings of an engine that copies everything down, and into objects."""
    return {**tier_of(slots), "hbm_swap_threshold": 0.0, "object_url": url, "object_compression": "never"}


def orders(engine: SimEngine) -> Any:
    return engine.connector._scheduler._copying.objects


def tier(engine: SimEngine) -> Any:
    return engine.worker._worker._runtime.objects.tier


def knows_the_store(engine: SimEngine) -> None:
    """Wait until scheduler and rank have read what is noted in the store."""
    assert orders(engine).directory.wait_listed(WAIT_S)
    assert tier(engine).wait_listed(WAIT_S)


def store_prompts(make: Make, url: str, *, count: int = 3, **options: Any) -> None:
    """Compute prompts on an engine, and end it once all their blocks are in objects."""
    engine = make("before", blocks=16, settings=objects_at(url), **options)
    knows_the_store(engine)
    for seed in range(count):
        assert compute(engine, seed) == 0
    wait_until(lambda: tier(engine).catalogue.block_count == count * BLOCKS, WAIT_S)
    engine.close()


def hold_stores(engine: SimEngine) -> Callable[[], None]:
    """Hold up what a rank would write to objects; return what has it written after all, and waits for that."""
    copier = engine.worker._worker._runtime.copier
    take_turn, held = copier.take_turn, list[Any]()
    copier.take_turn = lambda turn: held.append(turn) if turn.unread is None else take_turn(turn)

    def carry_out() -> None:
        wait_until(lambda: engine.step() or not (ledger(engine).copies_under_way or orders(engine).waiting), WAIT_S)
        assert held
        copier.take_turn = take_turn
        for turn in held:
            take_turn(turn)
        wait_until(lambda: copier.queue_length == 0, WAIT_S)
        assert tier(engine).wait_written(WAIT_S)

    return carry_out


@pytest.fixture
def stored(make: Make, url: str) -> Callable[..., SimEngine]:
    """Stores prompts by an engine that is ended; returns what makes an engine that knows of them."""
    store_prompts(make, url)

    def after(name: str = "after", **settings: Any) -> SimEngine:
        engine = make(name, blocks=16, settings={**objects_at(url), **settings})
        knows_the_store(engine)
        return engine

    return after


def files(url: str, folder: str = "v1/objects") -> list[Path]:
    return sorted(path for path in (Path(url.removeprefix("file://")) / folder).rglob("*") if path.is_file())


@pytest.mark.parametrize(("writes", "reads"), [("fp8", "never"), ("never", "fp8")])
def test_rounded_blocks_and_exact_ones_never_meet(make: Make, url: str, writes: str, reads: str) -> None:
    """Not in objects, and not from one engine's cache to the other's."""
    before = make("before", blocks=64, settings={**objects_at(url), "object_compression": writes})
    knows_the_store(before)
    assert compute(before, 1) == 0
    wait_until(lambda: tier(before).catalogue.block_count == BLOCKS and before.all_published(), WAIT_S)
    after = make("after", blocks=64, settings={**objects_at(url), "object_compression": reads})
    knows_the_store(after)
    assert compute(after, 1) == 0


@pytest.mark.parametrize("in_flight", [1, 2])
def test_everything_restarted_with_an_empty_redis_finds_its_prompts(make: Make, url: str, in_flight: int) -> None:
    """Bit by bit: each block's numbers are checked at every step that would read them."""
    store_prompts(make, url)
    with RedisServer(tcp=True) as empty:
        engine = make("after", blocks=16, in_flight=in_flight, settings={**objects_at(url), "redis_url": empty.url})
        knows_the_store(engine)
        for seed in range(3):
            assert compute(engine, seed) == BLOCKS
        assert compute(engine, 99) == 0
        assert engine.counted("gc_object_hits_total") == 3 * BLOCKS
        assert engine.counted("gc_rdma_transfers_total", transport="local") == 3
        ledger(engine).check_invariants()
        engine.close()


def test_fetched_blocks_are_not_written_again(stored: Callable[..., SimEngine], url: str) -> None:
    before = files(url)
    engine = stored()
    for seed in range(3):
        assert compute(engine, seed) == BLOCKS
    engine.run()
    assert not orders(engine).waiting
    assert tier(engine).wait_written(WAIT_S)
    assert files(url) == before


def test_longer_prompt_computes_what_is_in_no_object(stored: Callable[..., SimEngine]) -> None:
    """And what it has computed is in objects later."""
    engine = stored()
    tokens = tokens_of(0, PROMPT_TOKENS - 1) + tokens_of(50, 3 * 16 + 1)
    engine.add("long", tokens)
    engine.run()
    assert engine.outputs("long") == expected_output(tokens, 4)
    assert engine.wrong == []
    assert engine.counted("gc_cache_hits_total") == BLOCKS
    wait_until(lambda: tier(engine).catalogue.block_count == 3 * BLOCKS + 3, WAIT_S)


def test_requests_that_want_the_same_blocks_share_one_fetch(stored: Callable[..., SimEngine]) -> None:
    engine = stored()
    for number in range(3):
        engine.add(f"r{number}", tokens_of(0, PROMPT_TOKENS))
    engine.run()
    assert engine.wrong == []
    for number in range(3):
        assert engine.outputs(f"r{number}") == expected_output(tokens_of(0, PROMPT_TOKENS), 4)
    assert engine.counted("gc_object_hits_total") == BLOCKS
    assert engine.counted("gc_tokens_cached_total") >= BLOCKS * 16


def test_damaged_object_is_computed(stored: Callable[..., SimEngine], url: str) -> None:
    """The others are found; the damaged one is put aside, and nothing wrong is read."""
    engine = stored()
    for path in files(url):
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    for seed in range(3):
        tokens = tokens_of(seed, PROMPT_TOKENS)
        engine.add(f"r{seed}", tokens)
        engine.run()
        assert engine.outputs(f"r{seed}") == expected_output(tokens, 4)
    assert engine.wrong == []
    assert engine.counted("gc_object_misses_total", reason="damaged") > 0
    assert files(url, "v1/quarantine")


def test_objects_that_somebody_has_deleted_are_computed(stored: Callable[..., SimEngine], url: str) -> None:
    engine = stored()
    for path in files(url):
        path.unlink()
    assert compute(engine, 0) == 0
    # For a moment nothing is fetched, so that a store which has failed holds up one request and not each.
    assert orders(engine).longest(engine.requests["p0-0"].block_hashes) == 0
    assert compute(engine, 1) == 0
    ledger(engine).check_invariants()


def test_store_that_hangs_costs_one_request_its_wait(stored: Callable[..., SimEngine]) -> None:
    """It is bounded by the timeout of a pull; then the request computes, and the next ones do not ask."""
    engine = stored(pull_timeout_s=0.5)
    over = threading.Event()
    tier(engine)._objects.store.read = lambda *_: over.wait(WAIT_S) and memoryview(b"")
    for seed in range(3):
        assert compute(engine, seed) == 0
    over.set()
    assert engine.counted("gc_object_misses_total", reason="deadline") == BLOCKS
    wait_until(lambda: engine.step() or ledger(engine).copies_under_way == 0, WAIT_S)
    ledger(engine).check_invariants()


def test_fetch_that_is_never_reported_is_waited_for_no_longer_than_a_pull(stored: Callable[..., SimEngine]) -> None:
    engine = stored(pull_timeout_s=0.5)
    engine.worker._worker._runtime.copier.poll = list
    assert compute(engine, 0) == 0


def test_store_that_is_away_is_as_none(make: Make, tmp_path: Path) -> None:
    """Where the folder cannot be made, nothing is written, nothing found, and every prompt is right."""
    (tmp_path / "file").write_text("in the way")
    engine = make(blocks=16, settings=objects_at(f"file://{tmp_path}/file/objects"))
    for seed in (0, 1, 2, 0):
        tokens = tokens_of(seed, PROMPT_TOKENS)
        name = f"r{len(engine.requests)}"
        engine.add(name, tokens)
        engine.run()
        assert engine.outputs(name) == expected_output(tokens, 4)
    assert engine.wrong == []
    assert engine.counted("gc_object_hits_total") == 0


def test_nothing_is_read_under_other_weights(stored: Callable[..., SimEngine]) -> None:
    """Whoever has the new weights later finds what was computed under them."""
    engine = stored()
    engine.rpc("update_weights", 7)
    for seed in range(3):
        assert compute(engine, seed) == 0
    wait_until(lambda: engine.step() or tier(engine).catalogue.block_count == 3 * BLOCKS, WAIT_S)
    engine.close()
    later = stored("later")
    later.rpc("update_weights", 7)
    assert compute(later, 9) == 0
    knows_the_store(later)
    for seed in range(3):
        assert compute(later, seed) == BLOCKS


def test_nothing_that_was_there_is_read_after_a_reset_of_the_prefix_cache(stored: Callable[..., SimEngine]) -> None:
    """Whoever resets it wants it computed; what others write from then on is found."""
    engine = stored()
    assert engine.scheduler.reset_prefix_cache()
    for seed in range(3):
        assert compute(engine, seed) == 0
    other = stored("other")
    tokens = tokens_of(77, PROMPT_TOKENS)
    assert compute(other, 77) == 0
    wait_until(lambda: other.step() or tier(other).catalogue.block_count == 4 * BLOCKS, WAIT_S)
    other.close()
    blocks = other.requests["p77-0"].block_hashes[:BLOCKS]
    wait_until(lambda: orders(engine).longest(blocks) == BLOCKS and tier(engine).longest(blocks) == BLOCKS, WAIT_S)
    engine.add("r", tokens)
    engine.run()
    assert engine.outputs("r") == expected_output(tokens, 4)
    assert engine.counted("gc_object_hits_total") == BLOCKS


def test_store_ordered_before_the_weights_changed_is_in_no_object_of_the_new_ones(make: Make, url: str) -> None:
    """It is carried out behind the change: under the namespace of its time, or not at all."""
    engine = make("before", blocks=16, settings=objects_at(url))
    knows_the_store(engine)
    carry_out = hold_stores(engine)
    compute(engine, 0)
    engine.rpc("update_weights", 7)
    assert engine.scheduler.reset_prefix_cache()
    assert compute(engine, 9) == 0
    carry_out()
    engine.close()
    later = make("later", blocks=16, settings=objects_at(url))
    later.rpc("update_weights", 7)
    assert compute(later, 8) == 0
    knows_the_store(later)
    assert compute(later, 9) == BLOCKS
    assert compute(later, 0) == 0


def test_request_that_is_aborted_while_it_waits_leaves_nothing_pinned(stored: Callable[..., SimEngine]) -> None:
    engine = stored()
    engine.add("r", tokens_of(0, PROMPT_TOKENS))
    while not ledger(engine).copies_under_way:
        engine.step()
    engine.abort("r")
    engine.run()
    wait_until(lambda: engine.step() or not ledger(engine).copies_under_way, WAIT_S)
    assert not ledger(engine)._loads
    assert compute(engine, 0) == BLOCKS
    ledger(engine).check_invariants()


def test_slot_that_is_reused_before_it_is_stored_is_in_no_object(make: Make, url: str) -> None:
    """Whoever looks for the blocks that were to be stored computes them."""
    engine = make("before", blocks=16, settings=objects_at(url, slots=BLOCKS))
    knows_the_store(engine)
    carry_out = hold_stores(engine)
    compute(engine, 0)
    assert ledger(engine).drop(lambda _: True) == BLOCKS
    compute(engine, 1)
    assert len(ledger(engine)) == BLOCKS
    carry_out()
    engine.close()
    after = make("after", blocks=16, settings=objects_at(url))
    knows_the_store(after)
    assert compute(after, 0) == 0
    assert compute(after, 1) == BLOCKS
