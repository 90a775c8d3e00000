"""Drafters with KV of their own: pulled rows are as good as those of the engine's own cache, and answers are right.

What makes it so is in docs/DESIGN.md, under 11; each of its steps is broken here once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch

from ghostcacher_connector.engines.vllm import worker as worker_module
from ghostcacher_connector.engines.vllm.scheduling import parts, publishing
from tests.conftest import SOAK
from tests.integration.connector import test_vllm_host_tier
from tests.integration.connector.conftest import Make
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, VOCABULARY, expected_output, tokens_of
from tests.integration.connector.simdrafter import LAYER, DraftingEngine, drafting
from tests.integration.connector.simfleet import drive, meet, settled
from tests.integration.connector.test_vllm_host_tier import tier_of
from tests.integration.connector.test_vllm_weights import meet as meet_as_they_are

pytestmark = pytest.mark.engine

REQUESTS = 10_000 if SOAK else 60
ROUNDS_MAX = 5
BLOCKS = 6


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> list[DraftingEngine]:
    """The engines whose ranks a wait for their device makes work; a test may leave them out."""
    engines: list[DraftingEngine] = []

    def finish(_: torch.device) -> None:
        for engine in engines:
            engine.rank.finish_device_work()

    monkeypatch.setattr(worker_module, "finish_device_work", finish)
    return engines


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return drafting(tmp_path / "drafter")


@pytest.fixture
def fleet(make: Make, device: list[DraftingEngine], options: dict[str, Any]) -> tuple[DraftingEngine, DraftingEngine]:
    a, b = make("a", blocks=64, **options), make("b", blocks=64, **options)
    assert isinstance(a, DraftingEngine)
    assert isinstance(b, DraftingEngine)
    device += [a, b]
    meet(a, b)
    return a, b


def hits(engine: DraftingEngine) -> float:
    return engine.counted("gc_cache_hits_total")


def complete(engine: DraftingEngine, name: str, tokens: list[int], *, max_tokens: int = 4) -> float:
    """Complete a prompt rightly; return how many blocks came from a peer. All that is computed is published then."""
    before = hits(engine)
    engine.add(name, tokens, max_tokens=max_tokens)
    engine.run()
    engine.add(f"{name}-after", tokens_of(99, 5), max_tokens=2)  # what the last step filled is proven by the next one
    engine.run()
    settled(engine)
    assert (engine.wrong, engine.outputs(name)) == ([], expected_output(tokens, max_tokens))
    return hits(engine) - before


def drafter_rows(engine: DraftingEngine, name: str, count: int) -> torch.Tensor:
    slots = {
        block: slot for slot, block in engine.connector._scheduler._fleet.publisher.held_blocks.blocks_by_slot().items()
    }
    return engine.rank.memory[LAYER][[slots[block] for block in engine.requests[name].block_hashes[:count]]]


def test_pulled_rows_of_the_drafter_are_those_that_were_computed(
    fleet: tuple[DraftingEngine, DraftingEngine],
) -> None:
    """Of prompts and answers; as many blocks are used as of the engine's own cache: all but the last one found."""
    a, b = fleet
    prompt = tokens_of(1, BLOCKS * BLOCK_TOKENS + 3)
    complete(a, "first", prompt, max_tokens=2 * BLOCK_TOKENS)
    turn = prompt + a.outputs("first")
    count = int(complete(b, "second", turn))
    assert BLOCKS <= count <= BLOCKS + 1
    assert (a.misdrafted, b.misdrafted) == ([], [])
    pulled = drafter_rows(b, "second", count)
    assert pulled.all()
    assert torch.equal(pulled, drafter_rows(a, "first", count))
    cached = b.scheduler.kv_cache_manager.get_computed_blocks(b.add("third", turn))
    assert len(cached[0].blocks[0]) >= count


def test_prompt_that_is_here_is_not_asked_for(fleet: tuple[DraftingEngine, DraftingEngine]) -> None:
    """vLLM computes its last block again, and others have nothing to do with that."""
    a, b = fleet
    prompt = tokens_of(1, BLOCKS * BLOCK_TOKENS + 3)
    complete(a, "first", prompt)
    assert complete(b, "second", prompt) == BLOCKS - 1
    missed = b.counted("gc_cache_misses_total")
    assert complete(b, "third", prompt) == 0
    assert b.counted("gc_cache_misses_total") == missed


def parted(a: DraftingEngine, b: DraftingEngine) -> float:
    """Have two engines compute prompts that part at the end of a block; return how many blocks the second one pulls."""
    prompt = tokens_of(1, BLOCKS * BLOCK_TOKENS)
    complete(a, "first", [*prompt, 1, 2, 3])
    return complete(b, "second", [*prompt, 3, 2, 1])


def test_block_before_a_parting_is_computed(fleet: tuple[DraftingEngine, DraftingEngine]) -> None:
    """Its last row depends on the token behind it, which its hash does not cover."""
    a, b = fleet
    assert parted(a, b) == BLOCKS - 1
    assert b.misdrafted == []


def test_last_block_that_is_found_would_spoil_drafts(
    monkeypatch: pytest.MonkeyPatch, make: Make, device: list[DraftingEngine], options: dict[str, Any]
) -> None:
    """The test above proves something: with all that is found, the drafter reads a row of another token."""
    monkeypatch.setattr(parts, "blocks_held_back", lambda _: 0)
    a, b = make("a", blocks=64, **options), make("b", blocks=64, **options)
    device += [a, b]
    meet(a, b)
    assert parted(a, b) == BLOCKS
    assert b.misdrafted


def published_too_early(engine: DraftingEngine) -> list[int]:
    """Serve some prompts; return the slots that were published before the drafter had written all its rows there."""
    publisher, early = engine.connector._scheduler._publisher, []
    sink = publisher._sink
    publish = sink.publish

    def watched(slot: int, *rest: Any) -> None:
        if any(block == slot for block, _, _ in engine.rank._launched):
            early.append(slot)
        publish(slot, *rest)

    sink.publish = watched
    for number in range(4):
        complete(engine, f"r{number}", tokens_of(number, BLOCKS * BLOCK_TOKENS + 3 * number), max_tokens=20)
    return early


def test_blocks_are_published_when_the_drafter_has_written_them(
    fleet: tuple[DraftingEngine, DraftingEngine],
) -> None:
    """It does so when the step has been reported already; the next step that computes proves it."""
    assert published_too_early(fleet[0]) == []


def test_publishing_a_step_early_would_be_seen(
    fleet: tuple[DraftingEngine, DraftingEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above proves something."""
    monkeypatch.setattr(publishing.BlockPublisher, "_finished_by", lambda _, step: step)
    assert published_too_early(fleet[0])


def pull_into_the_slots_of_one_that_has_ended(a: DraftingEngine, b: DraftingEngine) -> None:
    """Have a pull fill all slots of the second engine right behind a request's last step."""
    prompt = tokens_of(1, 20 * BLOCK_TOKENS + 3)
    complete(a, "first", prompt)
    b.add("before", tokens_of(2, 3 * BLOCK_TOKENS + 5), max_tokens=4)
    b.run()
    b.add("second", prompt)
    b.run()
    b.rank.finish_device_work()
    assert (b.wrong, b.outputs("second"), hits(b)) == ([], expected_output(prompt, 4), 19)


@pytest.mark.parametrize("waits", [True, False], ids=["waits", "would be seen"])
def test_pull_begins_when_the_device_has_left_its_slots(
    make: Make, device: list[DraftingEngine], options: dict[str, Any], waits: bool
) -> None:
    """A drafter may still write where a request has ended. Otherwise it would write over what is pulled."""
    a, b = make("a", blocks=64, **options), make("b", blocks=23, **options)
    device += [a, b] if waits else []
    meet(a, b)
    pull_into_the_slots_of_one_that_has_ended(a, b)
    assert bool(b.misdrafted) is not waits


def parting_inside_of_blocks(seed: int) -> Iterator[list[int]]:
    """Yield endless prompts that share documents, and part where no block ends: there vLLM's own cache mixes rows."""
    source, documents = random.Random(seed), [tokens_of(10 * seed + number, 8 * BLOCK_TOKENS) for number in range(6)]
    while True:
        text = source.choice(documents)
        cut = source.randrange(1, 8) * BLOCK_TOKENS + source.randrange(1, BLOCK_TOKENS)
        tail = [source.randrange(VOCABULARY) for _ in range(source.randrange(1, 20))]
        if tail[0] != text[cut]:
            yield [*text[:cut], *tail]


def test_slots_reused_all_the_time_give_no_wrong_row(
    make: Make, device: list[DraftingEngine], options: dict[str, Any], lagging_url: str
) -> None:
    """With a pool of a few prompts, an index that lags, and aborts, outputs and the drafter's rows are right."""
    engines = [make(name, blocks=30, settings={"redis_url": lagging_url}, **options) for name in "ab"]
    device += engines
    meet(*engines)
    for seed in range(1, ROUNDS_MAX + 1):
        assert drive(engines, REQUESTS, parting_inside_of_blocks(seed), abort_every=7) == 0
        assert [(engine.wrong, engine.misdrafted) for engine in engines] == [([], []), ([], [])]
        stale = sum(engine.counted("gc_cache_misses_total", reason="stale_generation") for engine in engines)
        if stale > 0 and sum(map(hits, engines)) > 0:
            break
    assert sum(map(hits, engines)) > 0
    assert stale > 0


def test_evicted_rows_come_back_from_the_host_tier(
    make: Make, device: list[DraftingEngine], options: dict[str, Any]
) -> None:
    """As many blocks as of the engine's own cache, with the drafter's rows."""
    engine = make(blocks=16, settings=tier_of(96), **options)
    device.append(engine)
    loaded = [test_vllm_host_tier.compute(engine, seed) for _ in range(2) for seed in range(4)]
    assert loaded == [0] * 4 + [test_vllm_host_tier.BLOCKS - 1] * 4
    assert engine.misdrafted == []


def test_other_drafter_weights_share_nothing(fleet: tuple[DraftingEngine, DraftingEngine]) -> None:
    """A drafter that is given other weights makes another epoch, as a model does; the same ones share again."""
    a, b = fleet
    prompt = tokens_of(1, BLOCKS * BLOCK_TOKENS + 3)
    complete(a, "first", prompt)
    for engine in fleet:
        assert complete(engine, "before", tokens_of(2, 20)) == 0
    b.rpc("update_drafter", 7)
    assert complete(b, "second", prompt) == 0
    assert b.connector._scheduler._fleet.record.namespace != a.connector._scheduler._fleet.record.namespace
    assert b.misdrafted == []
    a.scheduler.reset_prefix_cache()
    a.rpc("update_drafter", 7)
    b.scheduler.reset_prefix_cache()
    complete(b, "third", prompt)
    complete(a, "moved", tokens_of(3, 20))
    meet_as_they_are(a, b)
    assert complete(a, "fourth", prompt) == BLOCKS - 1
    assert a.misdrafted == []
