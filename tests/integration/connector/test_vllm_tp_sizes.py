"""Engines of other tensor-parallel sizes: replicas are read from whichever rank has them, shards at one size alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

import torch
from vllm.config import VllmConfig
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_connector.transfer.shares import WHOLE, Piece, Share
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import (
    BLOCK_TOKENS,
    RunnerRequest,
    expected_output,
    prompts,
    tokens_of,
)
from tests.integration.connector.simcaches import LAYERS, SimCache
from tests.integration.connector.simfleet import drive, meet, settled
from tests.integration.connector.simranks import SimRank
from tests.integration.connector.test_vllm_host_tier import BLOCKS, compute
from tests.integration.connector.test_vllm_kinds import rows
from tests.integration.connector.test_vllm_objects import knows_the_store, objects_at
from tests.support.index_parts import wait_until

pytestmark = pytest.mark.engine

REQUESTS = 60
WAIT_S = 60.0
HEADS = 4
SIZES = [(1, 2), (4, 2), (2, 4)]


def ask_both(a: SimEngine, b: SimEngine) -> list[int]:
    """Put one prompt to `a`, and to `b` once `a` has published it; return the prompt."""
    prompt = tokens_of(1, 5 * BLOCK_TOKENS + 3)
    a.add("first", prompt)
    a.run()
    settled(a)
    b.add("second", prompt)
    b.run()
    return prompt


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize(("owners", "readers"), SIZES)
def test_replicas_are_pulled_whatever_the_sizes(make: Make, owners: int, readers: int, stages: int) -> None:
    """Every rank has the bytes of its stage, and the answer is that of an engine alone."""
    a = make("a", blocks=64, cache="mla", ranks=owners, stages=stages)
    b = make("b", blocks=64, cache="mla", ranks=readers, stages=stages)
    meet(a, b)
    prompt = tokens_of(1, 5 * BLOCK_TOKENS + 3)
    first = a.add("first", prompt)
    a.run()
    settled(a)
    second = b.add("second", prompt)
    b.run()
    settled(b)
    assert (b.wrong, b.outputs("second")) == ([], expected_output(prompt, 4))
    assert b.counted("gc_cache_hits_total") == 5
    for stage in range(stages):
        for rank in range(readers):
            pulled = rows(b, stage * readers + rank, second, 5)
            assert pulled.any()
            assert torch.equal(rows(a, stage * owners, first, 5), pulled)


def test_shards_are_shared_among_engines_of_one_size(make: Make) -> None:
    """What a rank holds of a block is another part of it in an engine of another size."""
    one, two, replicas = make("one"), make("two", ranks=2), make("replicas", cache="mla", ranks=2)
    namespaces = {engine.connector._scheduler._fleet.record.namespace for engine in (one, two, replicas)}
    assert len(namespaces) == 3


@pytest.mark.parametrize(("stages", "sizes"), [(1, (1, 2, 4)), (2, (1, 2))])
def test_replicas_of_reused_slots_never_give_a_wrong_token(make: Make, stages: int, sizes: tuple[int, ...]) -> None:
    """Engines of several sizes pull from each other while slots are reused."""
    engines = [make(f"tp{ranks}", blocks=30, cache="mla", ranks=ranks, stages=stages) for ranks in sizes]
    meet(*engines)
    wrong = drive(engines, REQUESTS, prompts(1, documents=6, blocks=8, tail=20), abort_every=7)
    assert ([engine.wrong for engine in engines], wrong) == ([[] for _ in sizes], 0)
    assert all(engine.counted("gc_cache_hits_total") > 0 for engine in engines)


def test_replicas_read_from_another_stage_would_be_seen(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above prove something: read by its number alone, a rank gets the layers of another stage."""
    monkeypatch.setattr(Share, "pieces_in", lambda share, rank_count: (Piece(share.rank % rank_count, WHOLE, WHOLE),))
    a, b = make("a", cache="mla", stages=3), make("b", cache="mla", stages=3, ranks=2)
    meet(a, b)
    ask_both(a, b)
    assert b.wrong


def test_objects_of_replicas_are_those_of_every_size(make: Make, tmp_path: Path) -> None:
    """One object for each stage, whichever rank has written it, is what every rank of that stage reads."""
    settings = objects_at(f"file://{tmp_path}/objects", slots=256)
    options = {"cache": "mla", "stages": 2, "blocks": 16, "settings": settings}
    before = make("before", **options)
    knows_the_store(before)
    assert [compute(before, seed) for seed in range(3)] == [0] * 3
    tiers = [rank.connector._worker._runtime.objects.tier for rank in before.ranks]
    wait_until(lambda: all(tier.catalogue.block_count == 3 * BLOCKS for tier in tiers), WAIT_S)
    before.close()
    after = make("after", ranks=2, **options)
    knows_the_store(after)
    assert all(rank.connector._worker._runtime.objects.tier.wait_listed(WAIT_S) for rank in after.ranks)
    assert [compute(after, seed) for seed in range(3)] == [BLOCKS] * 3


# -- heads ------------------------------------------------------------------------------------------------------------


class HeadRank(SimRank):
    """Has some of a model's heads, in rows in which each head's tokens lie side by side."""

    def __init__(self, config: VllmConfig, kv_config: KVCacheConfig, number: int, **options: Any) -> None:
        self._heads = kv_config.kv_cache_groups[0].kv_cache_spec.num_kv_heads  # type: ignore[attr-defined]
        self._tokens_first = config.cache_config.kv_cache_layout == "LBNHC"
        self._first_head = number * self._heads
        super().__init__(config, kv_config, number, **options)

    def _make_memory(self, blocks: int) -> dict[str, torch.Tensor]:  # type: ignore[override]
        shape = (blocks, self._heads, BLOCK_TOKENS, 2)
        if self._tokens_first:
            shape = (blocks, BLOCK_TOKENS, self._heads, 2)
        memory = {f"layer.{number}": torch.zeros(shape, dtype=torch.int64) for number in range(LAYERS)}
        return {name: rows.transpose(1, 2) for name, rows in memory.items()} if self._tokens_first else memory

    def _words_of(self, layer: int, head: int, number: int) -> tuple[int, int]:
        return number, number ^ (layer + 1) ^ ((self._first_head + head) << 8)

    def _store(self, request_id: str, state: RunnerRequest, position: int, number: int) -> None:  # noqa: ARG002
        block, offset = state.blocks[position // BLOCK_TOKENS], position % BLOCK_TOKENS
        for layer, memory in enumerate(self.memory.values()):
            for head in range(self._heads):
                memory[block, head, offset] = torch.tensor(self._words_of(layer, head, number))

    def holds(self, block: int, offset: int, number: int) -> bool:
        return all(
            tuple(memory[block, head, offset].tolist()) == self._words_of(layer, head, number)
            for layer, memory in enumerate(self.memory.values())
            for head in range(self._heads)
        )


class HeadEngine(SimEngine):
    """An engine of a model with four heads for keys and values."""

    rank_class = HeadRank

    def __init__(
        self, name: str, model: Path, settings: dict[str, Any], *, layout: str = "LBHNC", **options: Any
    ) -> None:
        def lay_out(config: VllmConfig) -> None:
            config.cache_config.kv_cache_layout = layout

        more = {"hf_overrides": {"num_key_value_heads": HEADS}, "adapt": lay_out}
        super().__init__(name, model, settings, **(more | options))

    def _make_kv_config(self, cache: SimCache, blocks: int) -> KVCacheConfig:  # noqa: ARG002 - it has its own kind
        heads = HEADS // self.config.parallel_config.tensor_parallel_size
        spec = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=heads, head_size=2, dtype=torch.float32)
        group = KVCacheGroupSpec([f"layer.{number}" for number in range(LAYERS)], spec)
        return KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[group])


@pytest.fixture
def make_heads(model: Path, redis_server: RedisServer) -> Iterator[Make]:
    """Makes engines of one fleet whose ranks have heads of a row."""
    engines: list[HeadEngine] = []

    def factory(name: str, **options: Any) -> HeadEngine:
        patient = {"redis_timeout_s": 10.0, "lookup_deadline_ms": 30_000.0, "pull_timeout_s": 60.0, "lease_ttl_s": 60.0}
        settings = {"redis_url": redis_server.url, "pull": "always", **patient, **options.pop("settings", {})}
        engines.append(HeadEngine(name, model, settings, **options))
        return engines[-1]

    yield factory
    for engine in engines:
        engine.close()


@pytest.mark.parametrize(("owners", "readers"), [(1, 2), (2, 1), (4, 2), (2, 4), (1, 4), (4, 1), (2, 2)])
def test_heads_are_pulled_whatever_the_sizes(make_heads: Make, owners: int, readers: int) -> None:
    """Each from the rank that has it, into its place; answers are those of an engine alone."""
    a, b = make_heads("a", blocks=64, ranks=owners), make_heads("b", blocks=64, ranks=readers)
    meet(a, b)
    prompt = ask_both(a, b)
    assert (b.wrong, b.outputs("second")) == ([], expected_output(prompt, 4))
    assert b.counted("gc_cache_hits_total") == 5


def test_heads_of_reused_slots_never_give_a_wrong_token(make_heads: Make) -> None:
    """Engines of three sizes pull from each other while slots are reused."""
    engines = [make_heads(f"tp{ranks}", blocks=30, ranks=ranks) for ranks in (1, 2, 4)]
    meet(*engines)
    wrong = drive(engines, REQUESTS, prompts(1, documents=6, blocks=8, tail=20), abort_every=7)
    assert ([engine.wrong for engine in engines], wrong) == ([[], [], []], 0)
    assert all(engine.counted("gc_cache_hits_total") > 0 for engine in engines)


@pytest.mark.parametrize(
    "break_it",
    [
        pytest.param(lambda pieces: pieces[:1], id="one rank's heads are taken for all"),
        pytest.param(lambda pieces: tuple(replace_part(piece, pieces[0]) for piece in pieces), id="all in one place"),
    ],
)
def test_heads_in_another_place_would_be_seen(
    make_heads: Make, monkeypatch: pytest.MonkeyPatch, break_it: Callable[[Any], Any]
) -> None:
    """The tests above prove something."""
    pieces_in = Share.pieces_in
    monkeypatch.setattr(Share, "pieces_in", lambda share, rank_count: break_it(pieces_in(share, rank_count)))
    a, b = make_heads("a", ranks=2), make_heads("b")
    meet(a, b)
    ask_both(a, b)
    assert b.wrong


def replace_part(piece: Piece, other: Piece) -> Piece:
    return piece._replace(ours=other.ours)


def test_block_that_one_of_several_ranks_lacks_is_missing(make_heads: Make) -> None:
    """Half of its heads are right, and that is not enough."""
    a, b = make_heads("a", ranks=2), make_heads("b")
    meet(a, b)
    prompt = tokens_of(1, 5 * BLOCK_TOKENS + 3)
    a.add("first", prompt)
    a.run()
    settled(a)
    entries = a.connector._scheduler._fleet.publisher.held_blocks.blocks_by_slot()
    slots = [slot for slot, block in entries.items() if block in a.requests["first"].block_hashes[2:]]
    table = a.ranks[1].connector._worker._table
    table.bump(np.array(slots, np.int64), np.array([table.generation(slot) + 1 for slot in slots], np.uint64))
    b.add("second", prompt)
    b.run()
    assert (b.wrong, b.outputs("second")) == ([], expected_output(prompt, 4))
    assert b.counted("gc_cache_hits_total") == 2
    assert b.counted("gc_cache_misses_total", reason="stale_generation") == 3


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"settings": {"object_url": "file:///nowhere", "host_tier_gib": 0.001}}, id="objects"),
        pytest.param({"layout": "LBNHC"}, id="another layout"),
    ],
)
def test_heads_that_cannot_be_told_apart_keep_sizes_apart(make_heads: Make, options: dict[str, Any]) -> None:
    two, one = make_heads("two", ranks=2, **options), make_heads("one", **options)
    records = [engine.connector._scheduler._fleet.record for engine in (one, two)]
    assert records[0].namespace != records[1].namespace
