"""Sliding windows in KV cache groups of their own, under vLLM's real scheduler and hybrid manager (windowsim.py)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from vllm.v1.request import RequestStatus

from tests.conftest import SOAK
from tests.integration.connector.conftest import Make
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, expected_output, prompts, tokens_of
from tests.integration.connector.simfleet import (
    OUTPUT_TOKENS,
    ROUNDS,
    Gate,
    bump_late,
    cached_tokens,
    drive,
    drive_until_wrong,
    meet,
    resume_after_preemption,
    settled,
    wait_for,
)
from tests.integration.connector.windowsim import KEEP_ALL, ROW_BYTES, WINDOW_BLOCKS, Published, WindowEngine

pytestmark = pytest.mark.engine

REQUESTS = 20_000 if SOAK else 120
POOL = 96
"""Blocks of a pool in which slots go from group to group all the time, and windows stay a while."""
LOADING = RequestStatus.WAITING_FOR_REMOTE_KVS
BLOCKS = 7
PROMPT = tokens_of(1, BLOCKS * BLOCK_TOKENS + 9)


@pytest.fixture
def fleet(make: Make) -> Callable[..., list[WindowEngine]]:
    """Makes engines that reach each other."""

    def factory(names: str = "ab", **options: Any) -> list[WindowEngine]:
        engines: list[Any] = [make(name, kind=WindowEngine, **options) for name in names]
        meet(*engines)
        return engines

    return factory


def run(engine: WindowEngine, name: str, prompt: list[int], **options: Any) -> None:
    """Have an engine answer a prompt, and the index know what it has then; the answer is right."""
    request = engine.add(name, prompt, **options)
    engine.run()
    settled(engine)
    assert (engine.wrong, engine.outputs(name)) == ([], expected_output(prompt, request.max_tokens))


def stepped(engine: WindowEngine) -> WindowEngine:
    engine.step()
    return engine


def advertised(engine: WindowEngine) -> dict[bytes, int]:
    """Return the slot of each block that an engine offers, by its name."""
    found: dict[bytes, int] = engine.connector._scheduler._fleet.publisher.held_blocks._advertised
    return found


def reuse(engine: WindowEngine, slot: int) -> None:
    """Have a rank reuse a slot, and nobody else know it: the index still offers what it held."""
    table = engine.worker._worker._table
    table.bump(np.array([slot]), np.array([table.generation(slot) + 1], dtype=np.uint64))
    for rows in engine.rank.memory.values():
        rows[slot] = -1


def window_key(engine: WindowEngine, name: str, index: int, group: int) -> bytes:
    return engine.requests[name].block_hashes[index] + bytes([group])


@pytest.mark.parametrize("tokens", [1, BLOCK_TOKENS, BLOCK_TOKENS + 1, 2 * BLOCK_TOKENS + 5, 90, 10 * BLOCK_TOKENS])
def test_prompt_held_by_a_peer_is_pulled_with_its_last_windows_alone(
    fleet: Callable[..., list[WindowEngine]], tokens: int
) -> None:
    """All blocks of the group with full attention come, and of those with a window what the next token sees."""
    a, b = fleet()
    prompt = tokens_of(tokens, tokens)
    for engine in (a, b):
        run(engine, "r", prompt)
    blocks = (tokens - 1) // BLOCK_TOKENS
    assert b.counted("gc_cache_hits_total") == blocks
    assert b.counted("gc_cache_misses_total") == 0
    assert b.counted("gc_pulled_bytes_total") == (blocks + 2 * min(blocks, WINDOW_BLOCKS)) * 2 * ROW_BYTES


@pytest.mark.parametrize(
    ("in_flight", "abort_every", "options"),
    [(1, 0, {}), (1, 7, KEEP_ALL), (2, 0, KEEP_ALL), (2, 7, {}), (2, 7, {"ranks": 2, **KEEP_ALL})],
)
def test_slots_reused_by_any_group_never_give_a_wrong_token(
    fleet: Callable[..., list[WindowEngine]],
    lagging_url: str,
    in_flight: int,
    abort_every: int,
    options: dict[str, Any],
) -> None:
    """Slots go from group to group, the index lags, requests are aborted: blocks are stale, and outputs right."""
    engines = fleet(blocks=POOL, in_flight=in_flight, settings={"redis_url": lagging_url}, **options)
    source = prompts(in_flight, documents=6, blocks=8, tail=20)
    for _ in range(ROUNDS):
        wrong = drive(list(engines), REQUESTS, source, abort_every=abort_every)
        assert ([engine.wrong for engine in engines], wrong) == ([[], []], 0)
        hits = sum(engine.counted("gc_cache_hits_total") for engine in engines)
        stale = sum(engine.counted("gc_cache_misses_total", reason="stale_generation") for engine in engines)
        if hits and stale:
            break
    assert hits > 0
    assert stale > 0
    assert all(engine.free_blocks() == POOL - 1 for engine in engines)


def test_with_late_bumps_wrong_windows_would_be_seen(
    fleet: Callable[..., list[WindowEngine]], lagging_url: str
) -> None:
    """The torture proves something: where ranks bump some steps late, stale blocks pass for right ones."""
    engines = fleet(blocks=POOL, in_flight=2, settings={"redis_url": lagging_url})
    for engine in engines:
        bump_late(engine.rank)
    drive_until_wrong(list(engines), REQUESTS, prompts(1, documents=6, blocks=8, tail=20))


@pytest.mark.parametrize("in_flight", [1, 2])
def test_an_entry_that_passes_the_seal_never_lies_in_any_group(make: Make, in_flight: int) -> None:
    """At any moment, also right after a forward pass has written, an entry that a reader would accept is true."""
    engine: Any = make("a", kind=WindowEngine, blocks=48, in_flight=in_flight)
    entries = engine.watch_entries()
    lies: list[Published] = []
    engine.rank.after_forward = lambda: lies.extend(engine.false_entries(entries))
    source = prompts(3, documents=5, blocks=8, tail=20)
    for number in range(REQUESTS):
        engine.add(f"r{number}", next(source), max_tokens=OUTPUT_TOKENS)
        for _ in range(2):
            engine.step()
        assert lies == engine.false_entries(entries) == []
    engine.run(timeout_s=120)
    assert lies == engine.false_entries(entries) == []
    assert {entry.group for entry in entries} == {0, 1, 2}
    assert len(entries) > REQUESTS / 4


@pytest.mark.parametrize("group", [0, 1, 2])
def test_load_that_lacks_a_block_in_any_group_is_computed_as_a_whole(
    fleet: Callable[..., list[WindowEngine]], group: int
) -> None:
    """vLLM takes no single blocks back with several groups: nothing of the load is used, published or left over."""
    a, b = fleet()
    run(a, "r", PROMPT)
    key = a.requests["r"].block_hashes[BLOCKS - 1] if group == 1 else window_key(a, "r", BLOCKS - 1, group)
    reuse(a, advertised(a)[key])
    entries = b.watch_entries()
    run(b, "r", PROMPT)
    assert b.counted("gc_pulls_total", reason="stale_generation") == 1
    assert b.counted("gc_cache_hits_total") == 0
    assert b.counted("gc_cache_misses_total", reason="stale_generation") == BLOCKS
    assert b.false_entries(entries) == []
    assert b.free_blocks() == 63


def test_holder_is_asked_for_what_it_has_the_window_of(fleet: Callable[..., list[WindowEngine]]) -> None:
    """What is left of a prefix is of no use where the next token would see blocks that are gone; what is before that
    is, if its window is still there."""
    a, b, c = fleet("abc", **KEEP_ALL)
    run(a, "r", PROMPT)
    a.connector._scheduler._fleet.publisher.withdraw(advertised(a)[window_key(a, "r", BLOCKS - 2, 2)])
    settled(a)
    run(b, "r", PROMPT)
    assert b.counted("gc_cache_hits_total") == BLOCKS - 2
    for index in range(BLOCKS):
        for group in (0, 2):
            if (slot := advertised(a).get(window_key(a, "r", index, group))) is not None:
                a.connector._scheduler._fleet.publisher.withdraw(slot)
    settled(a)
    run(c, "r", PROMPT)
    assert c.counted("gc_cache_hits_total") == BLOCKS  # of b, which has computed what it did not pull


def test_reader_holds_the_windows_of_its_own_end_alone(fleet: Callable[..., list[WindowEngine]]) -> None:
    """Who has pulled a prompt is a holder of it, and of no shorter one: for that there is still the first holder."""
    a, b, c = fleet("abc", **KEEP_ALL)
    for engine in (a, b):
        run(engine, "long", PROMPT)
    a_keys, b_keys = advertised(a), advertised(b)
    assert window_key(a, "long", 2, 0) in a_keys
    assert window_key(b, "long", 2, 0) not in b_keys
    assert all(window_key(b, "long", index, group) in b_keys for index in (4, 5, 6) for group in (0, 2))
    run(c, "short", PROMPT[: 4 * BLOCK_TOKENS] + tokens_of(5, 40))
    assert c.counted("gc_cache_hits_total") == 4
    a.close()
    c.scheduler.reset_prefix_cache()
    run(c, "long", PROMPT)
    assert c.counted("gc_cache_hits_total") >= 4


def test_prefix_that_the_engine_has_a_part_of_is_pulled_from_there_on(
    fleet: Callable[..., list[WindowEngine]],
) -> None:
    """Of a window whose first blocks are here, the others alone are pulled."""
    a, b = fleet()
    run(a, "r", PROMPT)
    run(b, "short", PROMPT[: 6 * BLOCK_TOKENS + 1], pull=False)
    run(b, "r", PROMPT)
    assert b.counted("gc_cache_hits_total") == 1
    assert b.counted("gc_pulled_bytes_total") == 3 * 2 * ROW_BYTES


def test_windowed_requests_that_are_preempted_resume_with_right_tokens(
    fleet: Callable[..., list[WindowEngine]],
) -> None:
    """They come back in other slots, are pulled for or computed, and are right."""
    a, b = fleet(blocks=44)
    resume_after_preemption(a, b)
    assert b.counted("gc_cache_hits_total") > 0


def test_reset_of_the_prefix_cache_withdraws_every_group(fleet: Callable[..., list[WindowEngine]]) -> None:
    """After a reset (new weights, for instance) no peer can use what was published before, in no group."""
    a, b = fleet(**KEEP_ALL)
    entries = a.watch_entries()
    run(a, "r", PROMPT)
    before = len(entries)
    assert a.scheduler.reset_prefix_cache()
    run(a, "other", tokens_of(2, 20))  # bumps travel with the next step
    table = a.worker._worker._table
    assert before >= 2 * BLOCKS
    assert all(table.generation(entry.slot) != entry.generation for entry in entries[:before])
    run(b, "r", PROMPT)
    assert b.counted("gc_cache_hits_total") == 0


def test_cache_is_reported_as_large_as_the_tokens_that_it_holds(make: Make) -> None:
    """Each token takes a place in every group: routers hear of a third of the pool's blocks."""
    engine: Any = make("a", kind=WindowEngine)
    engine.add("r", PROMPT, pull=False)
    engine.step()
    half = engine.connector._scheduler
    load = half._load.measure(half._tracked.values())
    assert load.kv_blocks_total == 63 // 3
    assert 0 < load.kv_blocks_used <= BLOCKS + 1
    engine.run()


def test_windowed_requests_of_one_prompt_share_one_pull(fleet: Callable[..., list[WindowEngine]]) -> None:
    """Those that want the very same wait for it, and find it in their own engine's cache."""
    a, b = fleet()
    run(a, "r", PROMPT)
    for number in range(3):
        b.add(f"r{number}", PROMPT)
    b.run()
    assert b.wrong == []
    assert b.counted("gc_pulls_total") == 1
    assert [b.outputs(f"r{number}") for number in range(3)] == 3 * [expected_output(PROMPT, 4)]


@pytest.mark.parametrize("spare", [2, 8])
def test_pulled_requests_never_hold_all_the_room_that_each_of_them_needs(
    fleet: Callable[..., list[WindowEngine]], spare: int
) -> None:
    """vLLM takes no slot back from a request that was pulled for and does not run, and forgets that windows move on."""
    (a,) = fleet("a", blocks=200)
    texts = [tokens_of(seed, 28 * BLOCK_TOKENS - 1) for seed in (1, 2)]
    for number, text in enumerate(texts):
        run(a, f"r{number}", text[: 24 * BLOCK_TOKENS + 1])
    (b,) = fleet("b", blocks=1 + 2 * (24 + 2 * WINDOW_BLOCKS) + spare)
    meet(a, b)
    gate = Gate(b)
    for number, text in enumerate(texts):
        b.add(f"r{number}", text)
    tracked = b.connector._scheduler._tracked
    wait_for(lambda: all(stepped(b) and each.plan is not None for each in tracked.values()), "both have a plan")
    gate.open()
    b.run()
    assert b.wrong == []
    assert [b.outputs(f"r{number}") for number in range(2)] == [expected_output(text, 4) for text in texts]
    assert b.counted("gc_cache_hits_total") > 0


def test_request_does_not_wait_for_a_pull_that_ends_elsewhere(fleet: Callable[..., list[WindowEngine]]) -> None:
    """What two prompts share is of no use to one of them where the other one's windows come: both pull."""
    a, b = fleet(**KEEP_ALL)
    gate = Gate(b)
    other = PROMPT[: 5 * BLOCK_TOKENS] + tokens_of(5, 40)
    run(a, "long", PROMPT)
    for name, prompt in (("long", PROMPT), ("other", other)):
        b.add(name, prompt)
        wait_for(lambda name=name: stepped(b).requests[name].status is LOADING, f"{name} is pulled")  # type: ignore[misc]
    gate.open()
    b.run()
    assert b.wrong == []
    assert b.outputs("other") == expected_output(other, 4)
    assert b.counted("gc_joined_pulls_total") == 0
    assert b.counted("gc_pulls_total") == 2


def test_windows_are_kept_where_a_prompt_parts_from_another_engine_s(
    fleet: Callable[..., list[WindowEngine]],
) -> None:
    """The third question about a document finds it, whichever engines the first two were put to."""
    document, found = tokens_of(1, 6 * BLOCK_TOKENS), []
    for number, engine in enumerate(fleet("abc")):
        found.append(cached_tokens(engine, f"r{number}", document + tokens_of(10 + number, 20)))
        settled(engine)
    assert found == [0, 0, len(document)]


@pytest.mark.parametrize("retention", [{}, {"prefix_cache_retention_interval": 4 * BLOCK_TOKENS}][: 2 if SOAK else 1])
def test_fleet_hits_whatever_one_engine_with_all_the_caches_would(
    make: Make, fleet: Callable[..., list[WindowEngine]], retention: dict[str, Any]
) -> None:
    """vLLM keeps few windows: those at the ends of prompts, and where it sees prompts part. The fleet keeps the same,
    though no engine sees all prompts: questions about one document, turns of one conversation, the same once more."""
    source, engines = random.Random(1), fleet("abc", blocks=600, **retention)
    alone: Any = make(
        "alone", kind=WindowEngine, blocks=1800, role="kv_consumer", settings={"pull": "never"}, **retention
    )
    texts = [tokens_of(seed, 9 * BLOCK_TOKENS + seed) for seed in range(3)]
    hits = []
    for number in range(120 if SOAK else 24):
        text, name = source.randrange(len(texts)), f"r{number}"
        cut = source.choice([len(texts[text]), 6 * BLOCK_TOKENS, source.randrange(1, len(texts[text]))])
        prompt = texts[text][:cut] + tokens_of(100 + number, source.choice([1, 1, 20, 70]))
        engine = source.choice(engines)
        max_tokens = source.choice([1, 5 * BLOCK_TOKENS])
        expected = cached_tokens(alone, name, prompt, max_tokens=max_tokens)
        hits.append((cached_tokens(engine, name, prompt, max_tokens=max_tokens), expected, name))
        settled(engine)
        if source.random() < 0.5:
            texts[text] = prompt[: 12 * BLOCK_TOKENS] + engine.outputs(name)[: 4 * BLOCK_TOKENS]
    assert [hit for hit in hits if hit[0] < hit[1]] == []
    assert sum(expected > 0 for _, expected, _ in hits) > 8
