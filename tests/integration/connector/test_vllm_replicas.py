"""Copies in the fleet: who keeps what others have, too, and who reads from whom, on vLLM's real scheduler and NIXL."""

from __future__ import annotations

from hashlib import blake2b
from itertools import islice
from typing import Any

import pytest

pytest.importorskip("vllm")

from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.sections import SectionEnd, encode_hint
from ghostcacher_connector.core.types import PrefixHit, SectionType
from ghostcacher_connector.pull.forecast import PULL_BYTES_MIN
from ghostcacher_connector.tiers.replicas import Replicas
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import LAYERS, SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, expected_output, tokens_of
from tests.support.index_parts import wait_until

pytestmark = pytest.mark.engine

WAIT_S = 60.0
SYSTEM_BLOCKS = 4
BLOCKS = SYSTEM_BLOCKS + 2
BLOCK_BYTES = LAYERS * BLOCK_TOKENS * 2 * 8
GIB = 1 << 30
SLOW_BYTES_PER_S = 100.0
"""So that a pull of a few KiB is taken to last for longer than any test."""
SYSTEM = tokens_of(1, SYSTEM_BLOCKS * BLOCK_TOKENS)


def ask(engine: SimEngine, question: int, *, system: list[int] | None = SYSTEM) -> list[bytes]:
    """Serve a prompt, rightly; return its blocks. system: the text that it begins with; None for a document alone."""
    tokens = (system or []) + tokens_of(question, (BLOCKS if system is None else 2) * BLOCK_TOKENS + 1)
    ends = [SectionEnd(SectionType.DOC, len(tokens))]
    if system is not None:
        ends.insert(0, SectionEnd(SectionType.SYS, len(system)))
    name = f"cmpl-r{len(engine.requests)}{encode_hint(ends)}-0-0a1b2c3d"
    engine.add(name, tokens)
    engine.run()
    assert engine.wrong == []
    assert engine.outputs(name) == expected_output(tokens, 4)
    return list(engine.requests[name].block_hashes)


def press(engine: SimEngine) -> None:
    """Ask for more documents than engine and tier have room for."""
    for question in range(100, 108):
        ask(engine, question, system=None)


def keeps(engine: SimEngine, blocks: list[bytes]) -> bool:
    """Say whether an engine's tier has all of these blocks."""
    ledger = engine.connector._scheduler._copying.tier.ledger
    ledger.check_invariants()
    return all(map(ledger.holds, blocks))


@pytest.mark.parametrize(("replicas_min", "kept"), [(0, 0), (1, 1), (2, 2), (5, 2)])
def test_as_many_tiers_as_are_to_keep_a_system_text_under_pressure(make: Make, replicas_min: int, kept: int) -> None:
    """Both of two, where it is more than there are; whoever does not keep it gives it up like anything else."""
    settings: dict[str, Any] = {
        "host_tier_gib": 12.5 * BLOCK_BYTES / GIB,
        "replicas_min": replicas_min,
        "sys_budget": 0.5,
        "doc_budget": 1.0,
        "eviction_policy": "lru",
        "pull": "always",
    }
    holder = make("a", blocks=16, settings=settings)
    system = ask(holder, 2)[:SYSTEM_BLOCKS]
    hit = PrefixHit("a", b"i", SYSTEM_BLOCKS, ())
    later = next(name for name in "bcdefgh" if Replicas(name, 1).kept_from(system[0], [hit]))
    reader = make(later, blocks=16, settings=settings)
    for engine in (holder, reader):
        wait_until(lambda engine=engine: engine.peers_ready(1), WAIT_S)  # type: ignore[misc]
    wait_until(holder.all_published, WAIT_S)
    press(reader)
    assert ask(reader, 3)[:SYSTEM_BLOCKS] == system
    assert reader.counted("gc_rdma_transfers_total", transport="nixl") == 1
    for engine in (holder, reader):
        press(engine)
    assert sum(keeps(engine, system) for engine in (holder, reader)) == kept
    assert keeps(holder, system) or not kept
    wait_until(holder.all_published, WAIT_S)
    before = holder.counted("gc_tokens_cached_total")
    ask(holder, 4)
    assert (holder.counted("gc_tokens_cached_total") > before) == bool(kept), "what is kept is used"


def sources_of(engine: SimEngine) -> list[str]:
    """Return a growing list of whom an engine's pulls are asked of first."""
    found: list[str] = []
    forecaster = engine.connector._scheduler._forecaster
    ordered = forecaster.ordered

    def spy(pull_id: str, worker: str, *args: Any) -> None:
        found.append(worker)
        ordered(pull_id, worker, *args)

    forecaster.ordered = spy
    return found


def readers_that_prefer_others(holder: str, count: int) -> list[str]:
    """Return names of workers that read from nearly anybody else, where others hold the same (`LiveWorkers`)."""

    def is_last(name: str) -> bool:
        return blake2b(f"{name}\0{holder}".encode()).digest() >= b"\xf8"

    return list(islice((name for name in (f"r{number}" for number in range(10_000)) if is_last(name)), count))


def fleet(make: Make, names: list[str], **options: Any) -> list[SimEngine]:
    engines = [make(name, blocks=16, **options) for name in names]
    for engine in engines:
        wait_until(lambda engine=engine: engine.peers_ready(len(names) - 1), WAIT_S)  # type: ignore[misc]
    return engines


def test_readers_that_come_one_after_the_other_spread_over_the_new_holders(make: Make) -> None:
    """Each one that has pulled is a holder; the first one gives most of them nothing."""
    names = [f"w{number}" for number in range(8)]
    first, *readers = fleet(make, names)
    ask(first, 2)
    wait_until(first.all_published, WAIT_S)
    sources = []
    for question, reader in enumerate(readers, 3):
        asked = sources_of(reader)
        ask(reader, question)
        sources += asked
        wait_until(reader.all_published, WAIT_S)
    assert len(sources) == len(readers)
    assert sources[0] == "w0"
    assert len(set(sources)) >= 3
    assert max(map(sources.count, sources)) <= 3, "by the order that each of these names has"


@pytest.mark.parametrize("known", [True, False])
def test_readers_that_come_at_once_read_from_each_other(make: Make, known: bool) -> None:
    """One from the first holder; the others when there are more. Where a pull takes a moment, none waits."""
    names = readers_that_prefer_others("w0", 7)
    first, *readers = fleet(make, ["w0", *names])
    ask(first, 2)
    wait_until(first.all_published, WAIT_S)
    asked = [sources_of(reader) for reader in readers]
    prompts = [SYSTEM + tokens_of(question, 2 * BLOCK_TOKENS + 1) for question in range(3, 10)]
    for reader, prompt in zip(readers, prompts, strict=True):
        forecaster = reader.connector._scheduler._forecaster
        for worker in ["w0", *names] if known else ():
            for _ in range(60):
                forecaster.observe_pull(worker, PULL_BYTES_MIN, PULL_BYTES_MIN / SLOW_BYTES_PER_S)
        reader.add("r", prompt)
    while any(reader.scheduler.has_requests() for reader in readers):
        for reader in readers:
            reader.step()
    for reader, prompt in zip(readers, prompts, strict=True):
        assert reader.wrong == []
        assert reader.outputs("r") == expected_output(prompt, 4)
        assert reader.counted("gc_cache_hits_total") == SYSTEM_BLOCKS
    sources = [worker for one in asked for worker in one]
    assert len(sources) == len(readers)
    waited = sum(reader.counted("gc_pull_turns_total") for reader in readers)
    assert waited == (len(readers) - 1 if known else 0)
    if known:
        assert sources.count("w0") == 1


def claim(engine: SimEngine, block: bytes, worker: str = "ghost") -> None:
    """Have somebody say that it is about to pull a prefix; it never does."""
    index, record = engine.connector._scheduler._fleet.index, engine.connector._scheduler._fleet.record
    index.line_up(ref_of(record)._replace(worker=worker), block, ttl_s=600.0)


@pytest.mark.parametrize(
    ("before", "bytes_per_s", "kept"),
    [
        (None, SLOW_BYTES_PER_S, False),
        ("ghost", 1e9, True),
        ("a", 1e9, False),
        ("a", SLOW_BYTES_PER_S, True),
    ],
    ids=["alone", "at once", "one after the other", "one after the other on a link that is soon full"],
)
def test_copies_of_what_many_pull_are_kept_by_a_full_tier(
    make: Make, before: str | None, bytes_per_s: float, kept: bool
) -> None:
    """Else it takes no copy of what a peer has still. before: who has pulled the document; "a" holds it since."""
    settings: dict[str, Any] = {
        "host_tier_gib": 12.5 * BLOCK_BYTES / GIB,
        "doc_budget": 1.0,
        "eviction_policy": "lru",
        "hbm_swap_threshold": 0.0,
    }
    holder, reader = fleet(make, ["a", "b"], settings=settings)
    press(reader)
    document = ask(holder, 50, system=None)
    wait_until(holder.all_published, WAIT_S)
    if before is not None:
        claim(holder, document[-1], before)
    for _ in range(60):
        reader.connector._scheduler._forecaster.observe_pull("a", PULL_BYTES_MIN, PULL_BYTES_MIN / bytes_per_s)
    assert ask(reader, 50, system=None) == document
    assert reader.counted("gc_rdma_transfers_total", transport="nixl") == 1
    ledger = reader.connector._scheduler._copying.tier.ledger
    assert sum(map(ledger.holds, document)) == (BLOCKS if kept else 0)


def test_reader_that_never_pulls_costs_others_a_bounded_wait(make: Make) -> None:
    """Whoever can write to Redis can say that it reads; or dies before it has what it wanted."""
    holder, reader = fleet(make, ["a", "b"])
    document = ask(holder, 50, system=None)
    wait_until(holder.all_published, WAIT_S)
    claim(holder, document[-1])
    for _ in range(60):
        reader.connector._scheduler._forecaster.observe_pull("a", PULL_BYTES_MIN, PULL_BYTES_MIN / 20_000.0)
    assert ask(reader, 50, system=None) == document
    assert reader.counted("gc_pull_turns_total") == 1
    assert reader.counted("gc_cache_hits_total") == BLOCKS


def test_worker_that_only_consumes_stands_in_no_line(make: Make) -> None:
    """Nobody finds it as a holder after it: others would wait in vain."""
    holder, consumer = make("a", blocks=16), make("c", blocks=16, role="kv_consumer")
    wait_until(lambda: consumer.peers_ready(1), WAIT_S)
    document = ask(holder, 50, system=None)
    wait_until(holder.all_published, WAIT_S)
    assert ask(consumer, 50, system=None) == document
    assert consumer.counted("gc_cache_hits_total") == BLOCKS
    fleet_of = holder.connector._scheduler._fleet
    assert fleet_of.index.line_up(ref_of(fleet_of.record), document[-1], ttl_s=1.0) == []
