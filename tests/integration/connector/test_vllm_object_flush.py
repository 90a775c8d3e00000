"""Orders to flush reach objects, under vLLM's real scheduler: what they name comes back from nowhere (enginesim.py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.harness.redis_server import RedisServer

pytest.importorskip("vllm")

from ghostcacher_connector.core.coordination.flushes import FlushOrder, FlushReport, TierDropped
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_connector.core.sections import SectionEnd, encode_hint, session_tag, with_tags
from ghostcacher_connector.core.types import SectionType, Tier
from ghostcacher_connector.objects import directory as directory_module
from ghostcacher_connector.objects.stores.base import StoreError, StoreFault
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, tokens_of
from tests.integration.connector.test_vllm_flush import cached_tokens, order, ready
from tests.integration.connector.test_vllm_host_tier import BLOCKS, compute, ledger
from tests.integration.connector.test_vllm_objects import files, hold_stores, knows_the_store, objects_at, orders, tier
from tests.support.index_parts import wait_until

pytestmark = pytest.mark.engine

WAIT_S = 60.0
SHARED, STORED = 2, 5
"""Of the blocks of a chat so many are its tools, or its system text, and so many all that is kept: the rest is USER."""
ALICE, BOB = session_tag("alice", 7), session_tag("bob", 7)


@pytest.fixture(autouse=True)
def looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_module, "REFRESH_S", 0.1)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/objects"


@pytest.fixture
def router(redis_server: RedisServer) -> Iterator[RedisCoordinationStore]:
    """The store as a router sees it."""
    with closing(RedisCoordinationStore(redis_server.url, timeout_s=10.0)) as store:
        yield store


def start(make: Make, name: str, url: str, **options: int) -> SimEngine:
    engine = ready(make(name, blocks=16, settings=objects_at(url), **options))
    knows_the_store(engine)
    return engine


def chat(name: str, front: SectionType, session: bytes) -> str:
    """Return the id of a request of a session, whose first blocks are tools or a system text."""
    tokens = BLOCKS * BLOCK_TOKENS + 1
    ends = [(front, SHARED * BLOCK_TOKENS), (SectionType.SESSION, STORED * BLOCK_TOKENS), (SectionType.USER, tokens)]
    hint = encode_hint([SectionEnd(*end) for end in ends])
    return f"chatcmpl-{name}{with_tags(hint, session=session)}-0a1b2c3d"


def prompt(shared: int, own: int) -> list[int]:
    """Return a prompt whose shared blocks follow from one number, and the rest from another."""
    return tokens_of(shared, SHARED * BLOCK_TOKENS) + tokens_of(own, (BLOCKS - SHARED) * BLOCK_TOKENS + 1)


def stored(engine: SimEngine, blocks: int) -> None:
    """Wait until so many blocks are in objects, and the engine's scheduler knows of them."""
    (rank,) = orders(engine).directory._ranks
    wait_until(lambda: engine.step() or rank.catalogue.block_count == blocks, WAIT_S)


def answers(router: RedisCoordinationStore, wanted: FlushOrder, *workers: str) -> list[TierDropped]:
    """Give an order; return what each worker says of objects once that is all it says."""
    router.append_flush(wanted)
    found: list[FlushReport | None] = []

    def complete() -> bool:
        found[:] = router.flush_reports(wanted.order, workers)
        return all(report is not None and all(each.complete for each in report.dropped) for report in found)

    wait_until(complete, WAIT_S)
    return [each for report in found if report is not None for each in report.dropped if each.tier is Tier.OBJECT]


@pytest.mark.parametrize("scope", ["all", "prefix", "doc"])
def test_flushed_prompts_come_back_from_nowhere_and_their_bytes_are_told(
    make: Make, router: RedisCoordinationStore, url: str, scope: str
) -> None:
    """In an engine that starts later; what was not named does."""
    engine = start(make, "a", url)
    for seed in range(2):
        assert compute(engine, seed) == 0
    stored(engine, 2 * BLOCKS)
    sizes = {path: path.stat().st_size for path in files(url)}
    first = engine.requests["p0-0"].block_hashes[0]
    (dropped,) = answers(router, order(scope, () if scope == "all" else (first,)), "a")
    left = files(url)
    assert dropped.bytes == sum(size for path, size in sizes.items() if path not in left)
    assert (dropped.blocks, dropped.error) == (2 * BLOCKS if scope == "all" else BLOCKS, None)
    engine.close()
    after = start(make, "b", url)
    assert compute(after, 0) == 0
    assert compute(after, 1) == (0 if scope == "all" else BLOCKS)


@pytest.mark.parametrize("alive", [True, False])
def test_session_is_named_by_its_objects_wherever_it_was_computed(
    make: Make, router: RedisCoordinationStore, url: str, alive: bool
) -> None:
    """Also when nobody holds anything of it any more; what it shares, and another session, stay."""
    engine = start(make, "a", url)
    alice, bob = prompt(1, 2), prompt(1, 3)
    cached_tokens(engine, chat("r1", SectionType.SYS, ALICE), alice)
    cached_tokens(engine, chat("r2", SectionType.SYS, BOB), bob)
    stored(engine, SHARED + 2 * (STORED - SHARED))
    if not alive:
        engine.close()
        engine = start(make, "b", url)
    (dropped,) = answers(router, order("session", session=ALICE), "a" if alive else "b")
    assert dropped.blocks == STORED - SHARED
    engine.close()
    after = start(make, "c", url)
    assert cached_tokens(after, "r3", alice) == SHARED * BLOCK_TOKENS
    assert cached_tokens(after, "r4", bob) == STORED * BLOCK_TOKENS


@pytest.mark.parametrize("tools_are_stored", [True, False])
def test_what_follows_tools_goes_with_them_where_they_are_in_no_object(
    make: Make, router: RedisCoordinationStore, url: str, tools_are_stored: bool
) -> None:
    """They are used by everybody, never evicted, and so seldom stored: an object says that it follows some."""
    engine = start(make, "a", url)
    with_tools, without = prompt(1, 2), prompt(4, 5)
    cached_tokens(engine, chat("r1", SectionType.TOOLS, ALICE), with_tools)
    cached_tokens(engine, chat("r2", SectionType.SYS, BOB), without)
    stored(engine, 2 * STORED)
    engine.close()
    later = start(make, "b", url)
    if not tools_are_stored:
        (rank,) = orders(later).directory._ranks
        (gone,) = [one for one in rank.catalogue.objects() if one.section == SectionType.TOOLS]
        rank.catalogue.forget(gone.digest)
    (dropped,) = answers(router, order("tools"), "b")
    assert dropped.blocks == STORED - (0 if tools_are_stored else SHARED)
    assert cached_tokens(later, "r3", with_tools) == 0
    assert cached_tokens(later, "r4", without) == STORED * BLOCK_TOKENS


def test_workers_that_share_a_store_forget_alike_and_count_once(
    make: Make, router: RedisCoordinationStore, url: str
) -> None:
    """One deletes; the other, too, finds nothing any more by the time at which both have answered."""
    one = start(make, "a", url)
    assert compute(one, 0) == 0
    stored(one, BLOCKS)
    two = start(make, "b", url)
    first = one.requests["p0-0"].block_hashes[0]
    dropped = answers(router, order("prefix", (first,)), "a", "b")
    assert sorted(each.blocks for each in dropped) == [0, BLOCKS]
    assert files(url) == []
    for engine in (one, two):
        assert orders(engine).longest(one.requests["p0-0"].block_hashes) == 0
    assert compute(two, 0) == 0


@pytest.mark.parametrize("scope", ["all", "prefix"])
def test_store_that_was_ordered_before_the_flush_is_in_no_object(
    make: Make, router: RedisCoordinationStore, url: str, scope: str
) -> None:
    """The engine has given the blocks up by then, and takes no step that would tell its rank."""
    engine = start(make, "a", url)
    carry_out = hold_stores(engine)
    compute(engine, 0)
    first = engine.requests["p0-0"].block_hashes[0]
    wait_until(lambda: engine.step() or not (ledger(engine).copies_under_way or orders(engine).waiting), WAIT_S)
    answers(router, order(scope, () if scope == "all" else (first,)), "a")
    carry_out()
    engine.close()
    after = start(make, "b", url)
    assert compute(after, 0) == 0


def test_fetch_under_way_brings_nothing_that_was_flushed(make: Make, router: RedisCoordinationStore, url: str) -> None:
    """Its request computes; and the next one, too."""
    engine = start(make, "a", url)
    assert compute(engine, 0) == 0
    stored(engine, BLOCKS)
    engine.close()
    after = start(make, "b", url)
    after.add("r", tokens_of(0, BLOCKS * BLOCK_TOKENS + 1))
    while not ledger(after).copies_under_way:
        after.step()
    first = after.requests["r"].block_hashes[0]
    after.connector._scheduler._fleet.flushes._orders.append(order("prefix", (first,)))
    after.run()
    assert after.wrong == []
    assert after.counted("gc_cache_hits_total") == 0
    after.connector._scheduler._fleet.flushes._orders.append(order("all", number=2))
    assert compute(after, 0) == 0


def test_what_is_computed_after_a_reset_comes_back_from_objects(make: Make, url: str) -> None:
    """To the very engine that was reset: its blocks are stored anew, since the objects of before count no more."""
    engine = start(make, "a", url)
    assert compute(engine, 0) == 0
    stored(engine, BLOCKS)
    assert engine.scheduler.reset_prefix_cache()
    assert compute(engine, 0) == 0
    blocks = engine.requests["p0-1"].block_hashes[:BLOCKS]
    wait_until(lambda: engine.step() or orders(engine).longest(blocks) == BLOCKS, WAIT_S)
    assert engine.counted("gc_object_hits_total") == 0
    for seed in (5, 6, 7):  # which take the place of these blocks in the engine
        compute(engine, seed)
    ledger(engine).drop(lambda _: True)
    assert compute(engine, 0) == BLOCKS
    assert engine.counted("gc_object_hits_total") == BLOCKS


def test_reset_that_comes_with_changed_weights_hides_nothing_of_the_new_ones(make: Make, url: str) -> None:
    """What another worker has computed under them is right here, too."""
    first = start(make, "a", url)
    first.rpc("update_weights", 7)
    compute(first, 0)
    wait_until(lambda: first.step() or tier(first).catalogue.block_count == BLOCKS, WAIT_S)
    first.close()
    second = start(make, "b", url)
    second.rpc("update_weights", 7)
    assert second.scheduler.reset_prefix_cache()
    assert compute(second, 9) == 0
    knows_the_store(second)
    assert compute(second, 0) == BLOCKS


def test_store_that_is_away_is_told_and_nothing_is_served(make: Make, router: RedisCoordinationStore, url: str) -> None:
    """The answer does not wait for it."""
    engine = start(make, "a", url)
    assert compute(engine, 0) == 0
    stored(engine, BLOCKS)

    def away(*_: object) -> None:
        raise StoreError(StoreFault.UNREACHABLE, "the store is away")

    orders(engine).directory._flushes._store.delete = away
    (dropped,) = answers(router, order("all"), "a")
    assert dropped.error == "the store is away (unreachable); it is tried again for an hour"
    assert files(url)
    assert compute(engine, 0) == 0
    assert engine.counted("gc_object_hits_total") == 0
