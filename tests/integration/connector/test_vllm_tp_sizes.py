"""Engines of other tensor-parallel sizes: replicas are read from whichever rank has them, shards at one size alone."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm")

import torch

from ghostcacher_connector.transfer.shares import Share
from tests.integration.connector.conftest import Make
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, expected_output, prompts, tokens_of
from tests.integration.connector.test_vllm_host_tier import BLOCKS, compute
from tests.integration.connector.test_vllm_kinds import rows
from tests.integration.connector.test_vllm_objects import knows_the_store, objects_at
from tests.integration.connector.test_vllm_scheduler import drive, meet, settled
from tests.support.index_parts import wait_until

pytestmark = pytest.mark.engine

REQUESTS = 60
WAIT_S = 60.0
SIZES = [(1, 2), (4, 2), (2, 4)]


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
    monkeypatch.setattr(Share, "rank_in", lambda share, rank_count: share.rank % rank_count)
    a, b = make("a", cache="mla", stages=3), make("b", cache="mla", stages=3, ranks=2)
    meet(a, b)
    prompt = tokens_of(1, 5 * BLOCK_TOKENS + 3)
    a.add("first", prompt)
    a.run()
    settled(a)
    b.add("second", prompt)
    b.run()
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
