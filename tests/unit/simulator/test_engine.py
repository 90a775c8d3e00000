"""Simulated engines in virtual time: queueing, prefix hits, pulls, eviction, faults."""

from __future__ import annotations

import asyncio

import pytest

from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_simulator.connector import Connector
from ghostcacher_simulator.engine import Engine, Profile, Refused
from ghostcacher_simulator.text import BLOCK_TOKENS, block_hashes, sampled_chain, text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.index_parts import make_record

PROFILE = Profile(prefill_tokens_per_s=1_000.0, decode_s=0.01, arrival_s=0.0, publish_s=0.001)
DOC = text_of("document", 1_600)
BLOCKS = block_hashes(DOC)


class Pair:
    """Two engines that share one index in memory."""

    def __init__(self, profile: Profile = PROFILE) -> None:
        now = asyncio.get_running_loop().time
        self.index, self.store = MemoryIndex(clock=now), MemoryCoordinationStore(clock=now)
        self.records = [make_record("one"), make_record("two")]
        self.engines = []
        for record, other in zip(self.records, reversed(self.records), strict=True):
            connector = Connector(
                self.index, self.store, record, lease_ttl_s=1e6, peers=lambda other=other: [ref_of(other)], at_once=True
            )
            connector.join()
            self.engines.append(Engine(profile, connector))

    def indexed(self, number: int) -> int:
        """Return how many blocks of the document the index has of one engine."""
        hits = self.index.lookup([ref_of(self.records[number])], BLOCKS)
        return hits[0].length if hits else 0


async def took(engine: Engine, request_id: str, text: bytes) -> float:
    """Prefill and release; return the seconds that it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    engine.release(await engine.prefill(request_id, text))
    return loop.time() - began


@virtual
async def test_prefill_takes_its_rate_and_a_hit_nothing() -> None:
    """A cold prompt costs its tokens over the rate, the same one again only what fills no block."""
    engine = Engine(PROFILE)
    assert await took(engine, "a", DOC) == pytest.approx(1.6)
    assert await took(engine, "b", DOC + b"tail" * 4) == pytest.approx(0.004)
    assert engine.computed_tokens == 1_604
    assert engine.computed_blocks[BLOCKS[0]] == 1


@virtual
async def test_prompts_are_computed_one_at_a_time() -> None:
    """The second of two prompts waits for the first, and the load says what is to be computed."""
    engine = Engine(PROFILE)
    both = [asyncio.ensure_future(took(engine, name, text_of(name, 1_000))) for name in ("a", "b")]
    await asyncio.sleep(0.5)
    assert (engine.load().running, engine.load().waiting_tokens) == (2, 2_000)
    assert await asyncio.gather(*both) == pytest.approx([1.0, 2.0])
    assert engine.load().waiting_tokens == 0


@virtual
async def test_peer_pulls_what_is_published() -> None:
    """The second engine pays for the pull alone; before the blocks are published it would compute."""
    pair = Pair()
    one, two = pair.engines
    await took(one, "a", DOC)
    assert pair.indexed(0) == 0
    await asyncio.sleep(PROFILE.publish_s)
    assert pair.indexed(0) == len(BLOCKS)
    pulled_bytes = len(BLOCKS) * PROFILE.block_bytes
    assert await took(two, "b", DOC) == pytest.approx(PROFILE.pull_fixed_s + pulled_bytes / PROFILE.pull_bytes_per_s)
    assert two.computed_tokens == 0


@virtual
async def test_evicted_blocks_are_withdrawn() -> None:
    """A pool that holds one document forgets the first one when a second comes, in the index, too."""
    pair = Pair(PROFILE._replace(kv_blocks=len(BLOCKS)))
    one = pair.engines[0]
    await took(one, "a", DOC)
    await asyncio.sleep(0.1)
    assert pair.indexed(0) == len(BLOCKS)
    await took(one, "b", text_of("other", 800))
    assert pair.indexed(0) == len(BLOCKS) - 800 // BLOCK_TOKENS
    one.evict_all()
    assert pair.indexed(0) == 0


@virtual
async def test_prompt_waits_for_room() -> None:
    """What running requests hold is not evicted: the next prompt waits until one of them ends."""
    engine = Engine(PROFILE._replace(kv_blocks=len(BLOCKS)))
    first = await engine.prefill("a", DOC)
    waiting = asyncio.ensure_future(took(engine, "b", text_of("other", 160)))
    await asyncio.sleep(5)
    assert not waiting.done()
    engine.release(first)
    assert await waiting == pytest.approx(5.16)


@virtual
async def test_prompt_larger_than_the_pool_is_refused() -> None:
    with pytest.raises(Refused, match="expected at most 99 blocks, got 100"):
        await Engine(PROFILE._replace(kv_blocks=99)).prefill("a", DOC)


@virtual
async def test_death_breaks_what_runs_and_what_comes() -> None:
    """Running requests end with Refused, and their blocks are given back."""
    engine = Engine(PROFILE)
    running = asyncio.ensure_future(engine.prefill("a", DOC))
    await asyncio.sleep(0.1)
    engine.die()
    with pytest.raises(Refused, match="died"):
        await running
    with pytest.raises(Refused, match="dead"):
        await engine.prefill("b", DOC)
    assert len(engine.pool) == 0


@virtual
async def test_hung_engine_answers_nobody() -> None:
    """A request neither ends nor breaks until its client gives up."""
    engine = Engine(PROFILE)
    running = asyncio.ensure_future(engine.prefill("a", DOC))
    await asyncio.sleep(0.1)
    engine.hang()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(running, 1_000)
    assert engine.load().running == 0


@virtual
async def test_unreachable_index_costs_a_computation() -> None:
    """An engine whose index is away computes, and what it published at that time is not published later."""
    pair = Pair()
    pair.index.reachable = pair.store.reachable = False
    one, two = pair.engines
    await took(one, "a", DOC)
    assert await took(two, "b", DOC) == pytest.approx(1.6)
    pair.index.reachable = pair.store.reachable = True
    await asyncio.sleep(0.1)
    assert pair.indexed(0) == 0


def test_chain_of_a_short_prompt_is_its_last_block() -> None:
    """Routers are told one hash in eight, or the last one of fewer; nothing of a prompt without a block."""
    assert sampled_chain("r", 320, BLOCKS[:20]).block_counts == (8, 16)
    assert sampled_chain("r", 50, BLOCKS[:3]).hashes == (BLOCKS[2],)
    assert sampled_chain("r", 3, ()).block_counts == ()
