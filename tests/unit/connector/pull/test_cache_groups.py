"""What a hit needs where layers are divided into KV cache groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.index.base import Entry, WorkerRef, ref_of
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.core.types import Location, MissReason, PrefixHit, Tier
from ghostcacher_connector.pull.cache_groups import CacheGroup, CacheGroups, block_of, group_key
from ghostcacher_connector.pull.forecast import Forecaster
from ghostcacher_connector.pull.lookups import GAP_BLOCKS_MAX, PENDING, WINDOW_LOOKUPS_MAX, LookupAnswer, LookupService
from ghostcacher_connector.pull.planner import PullPlan, PullPlanner
from tests.support.index_parts import chain, make_record, wait_until

BLOCKS = chain(8)
GROUPS = CacheGroups(1, (CacheGroup(0, 3), CacheGroup(2, None)))
"""The first group is number 1; number 0 has a window of three blocks, number 2 has full attention, too."""
WINDOWED = CacheGroups(1, (CacheGroup(0, 3),))
LEASE_S = 60.0


def test_names_of_all_groups_differ_and_tell_the_block() -> None:
    """The first group's blocks are named by their chain hash alone."""
    keys = [GROUPS.key_of(BLOCKS[0], number) for number in GROUPS.numbers]
    assert keys[0] == BLOCKS[0]
    assert len(set(keys)) == 3
    assert {block_of(key) for key in keys} == {BLOCKS[0]}


@pytest.mark.parametrize(
    ("window", "first", "end", "span"),
    [
        (3, 0, 8, (5, 8)),
        (3, 0, 2, (0, 2)),
        (3, 7, 8, (7, 8)),
        (0, 0, 8, (8, 8)),
        (None, 2, 8, (2, 8)),
    ],
)
def test_span_is_what_the_next_token_sees_and_the_reader_lacks(
    window: int | None, first: int, end: int, span: tuple[int, int]
) -> None:
    """A window reaches back from the end, and no further than to what the engine has already."""
    assert CacheGroup(2, window).span(first, end) == range(*span)


def test_hit_needs_the_span_of_every_other_group() -> None:
    """Group by group, in order of their numbers."""
    assert GROUPS.needed(6) == [(3, 0), (4, 0), (5, 0), *((n, 2) for n in range(6))]


def hold(index: MemoryIndex, worker: str, first: int, others: Sequence[tuple[int, int]]) -> WorkerRef:
    """Enter a worker that holds so many blocks of the first group, and these (block, group) of others."""
    record = make_record(worker)
    keys = [*BLOCKS[:first], *(group_key(BLOCKS[block], group) for block, group in others)]
    entries = [Entry(key, BLOCKS[0], Location(Tier.DEVICE, 10 + slot, 1)) for slot, key in enumerate(keys)]
    index.apply(ref_of(record), entries, [], lease_ttl_s=LEASE_S)
    return ref_of(record)


def found(
    index: MemoryIndex,
    candidates: list[WorkerRef],
    groups: CacheGroups = GROUPS,
    blocks: Sequence[bytes] = BLOCKS,
) -> LookupAnswer:
    service = LookupService(index, lambda: candidates, groups=groups)
    try:
        service.start("r", blocks)
        wait_until(lambda: service.poll("r") is not PENDING)
        answer = service.poll("r")
    finally:
        service.stop()
    assert isinstance(answer, LookupAnswer)
    return answer


def whole(end: int) -> list[tuple[int, int]]:
    return [*((n, 0) for n in range(max(0, end - 3), end)), *((n, 2) for n in range(end))]


def test_holder_is_one_that_has_a_prefix_in_every_group() -> None:
    """One lacks a block of its window, one a block of the other full group: neither counts."""
    index = MemoryIndex()
    good = hold(index, "good", 6, whole(6))
    gap = hold(index, "gap", 6, [each for each in whole(6) if each != (4, 0)])
    short = hold(index, "short", 6, [each for each in whole(6) if each != (2, 2)])
    (hit,) = found(index, [gap, short, good]).hits
    assert (hit.worker, hit.length, len(hit.locations)) == ("good", 6, 6)
    assert hit.windows is not None
    assert [(block, at.slot) for block, at in hit.windows] == [
        (block, 16 + slot) for slot, (block, _) in enumerate(GROUPS.needed(6))
    ]
    assert found(index, [gap, short]).reason is MissReason.NOT_INDEXED


def test_holder_whose_last_window_is_gone_serves_a_shorter_prefix() -> None:
    """The longest one whose window is there; behind it are blocks that nobody can use."""
    index = MemoryIndex()
    long = hold(index, "long", 8, [*whole(5), (6, 0)])
    other = hold(index, "other", 5, whole(5))
    far = hold(index, "far", 8, whole(3))
    answer = found(index, [long, far, other])
    assert sorted((hit.worker, hit.length) for hit in answer.hits) == [("long", 5), ("other", 5)]
    assert all(len(hit.locations) == 5 for hit in answer.hits)


class CountingIndex(MemoryIndex):
    """Counts look-ups."""

    calls = 0

    def lookup(self, *args: Any, **options: Any) -> list[PrefixHit]:
        self.calls += 1
        return super().lookup(*args, **options)


def held_windows(index: MemoryIndex, blocks: Sequence[bytes], windows: Iterable[int]) -> WorkerRef:
    """Enter a worker that holds all blocks of the first group, and these of the windowed one."""
    record = make_record()
    keys = [*blocks, *(group_key(blocks[number], 0) for number in windows)]
    entries = [Entry(key, blocks[0], Location(Tier.DEVICE, slot, 1)) for slot, key in enumerate(keys)]
    index.apply(ref_of(record), entries, [], lease_ttl_s=LEASE_S)
    return ref_of(record)


@pytest.mark.parametrize("partitions", [1, 16])
@pytest.mark.parametrize("end", [1, 2, 3, 40, GAP_BLOCKS_MAX + 37, 3 * GAP_BLOCKS_MAX, 4 * GAP_BLOCKS_MAX])
def test_last_window_is_found_however_far_back_it_is(end: int, partitions: int) -> None:
    """An answer of any length may lie behind it: vLLM keeps the windows at the ends of prompts."""
    index, blocks = MemoryIndex(partitions=partitions), chain(4 * GAP_BLOCKS_MAX)
    windows = {*range(max(0, end - 3), end), *range(end // 2 - 1, end // 2 + 1), end + 2} & set(range(len(blocks)))
    ref = held_windows(index, blocks, windows)
    (hit,) = found(index, [ref], WINDOWED, blocks).hits
    assert hit.length == end
    assert found(index, [ref], WINDOWED, blocks).longest == len(blocks)


def test_each_holder_s_window_is_looked_for_behind_its_own_gap() -> None:
    """The one that has the longest prefix with a window serves it."""
    index, blocks = MemoryIndex(), chain(40)
    candidates = []
    for worker, prefix, end in (("a", 40, 10), ("b", 30, 12), ("c", 11, 11)):
        record = make_record(worker)
        keys = [*blocks[:prefix], *(group_key(blocks[number], 0) for number in range(end - 3, end))]
        entries = [Entry(key, blocks[0], Location(Tier.DEVICE, slot, 1)) for slot, key in enumerate(keys)]
        index.apply(ref_of(record), entries, [], lease_ttl_s=LEASE_S)
        candidates.append(ref_of(record))
    assert [(hit.worker, hit.length) for hit in found(index, candidates, WINDOWED, blocks).hits] == [("b", 12)]


def test_gap_far_before_another_holder_s_is_looked_behind_at_once() -> None:
    """One lacks a block near the start, the other one the last window at each of six ends: the first serves its part.

    Eight ends are looked up: the whole prefix, those six, and what is before the gap.
    """
    index, blocks, ends = MemoryIndex(), chain(GAP_BLOCKS_MAX + 88), (580, 560, 540, 520, 400, 300)
    windows = {"near": [n for end in ends for n in range(end - 3, end)], "far": list(range(len(blocks)))}
    lacked, candidates = {"near": {end - 1 for end in ends}, "far": {5}}, []
    for worker, windowed in windows.items():
        record = make_record(worker)
        full = [number for number in range(len(blocks)) if number not in lacked[worker]]
        keys = [*blocks, *(group_key(blocks[n], 0) for n in windowed), *(group_key(blocks[n], 2) for n in full)]
        entries = [Entry(key, blocks[0], Location(Tier.DEVICE, slot, 1)) for slot, key in enumerate(keys)]
        index.apply(ref_of(record), entries, [], lease_ttl_s=LEASE_S)
        candidates.append(ref_of(record))
    assert [(hit.worker, hit.length) for hit in found(index, candidates, blocks=blocks).hits] == [("far", 5)]


def test_gaps_beyond_a_bound_are_not_looked_past() -> None:
    """A holder that has windows everywhere, and nothing of another group, costs a bounded number of calls."""
    index, blocks = CountingIndex(), chain(40)
    ref = held_windows(index, blocks, range(40))
    assert found(index, [ref], blocks=blocks).hits == []
    assert index.calls == 1 + WINDOW_LOOKUPS_MAX


def test_one_group_is_looked_up_once() -> None:
    """Without other groups an answer is that of the index, windows or none."""
    index = MemoryIndex()
    ref = hold(index, "w", 6, [])
    (hit,) = found(index, [ref], CacheGroups()).hits
    assert (hit.length, hit.windows) == (6, None)


def hit_of(worker: str, length: int) -> PrefixHit:
    needed = [block for block, _ in GROUPS.needed(length)]
    at = [Location(Tier.DEVICE, slot, 100 + slot) for slot in range(length + len(needed))]
    windows = tuple(zip(needed, at[length:], strict=True))
    return PrefixHit(worker, worker.encode() * 16, length, tuple(at[:length]), windows)


def planner(block_bytes: int = 1) -> PullPlanner:
    settings = Settings(pull="always", pull_sources_max=3)
    return PullPlanner(settings, Forecaster(1000.0), block_tokens=16, block_bytes=block_bytes)


def test_plan_names_the_slots_of_all_groups_from_the_first_block_on() -> None:
    """Behind the blocks of the first group come those of the others, without what the engine has."""
    plan = planner().plan([hit_of("a", 6)], 4, 8)
    assert isinstance(plan, PullPlan)
    assert (plan.first_block, plan.block_count, plan.window_blocks) == (4, 2, 4)
    assert plan.sources[0].remote_slots.tolist() == [4, 5, 7, 8, 13, 14]
    assert plan.sources[0].generations.tolist() == [104, 105, 107, 108, 113, 114]
    assert [source.remote_slots.tolist() for source in plan.sources_of(2)] == [[4, 5, 7, 8, 13, 14]]
    assert [source.remote_slots.tolist() for source in plan.sources_of(1)] == [[]]


def test_sources_of_a_plan_have_the_very_same_end() -> None:
    """The window of a longer or a shorter prefix is another one: it cannot stand in."""
    plan = planner().plan([hit_of("a", 6), hit_of("b", 7), hit_of("c", 7)], 0, 8)
    assert isinstance(plan, PullPlan)
    assert plan.block_count == 7
    assert sorted(source.worker for source in plan.sources) == ["b", "c"]


def test_prefix_beyond_what_may_be_pulled_is_of_no_use() -> None:
    """It cannot be cut, and what the engine has itself needs no pull."""
    assert planner().plan([hit_of("a", 6)], 0, 5) is MissReason.NOT_INDEXED
    assert planner().plan([hit_of("a", 6)], 6, 8) is MissReason.NOT_INDEXED


@pytest.mark.parametrize("in_windows", [False, True])
def test_blocks_in_a_tier_without_slots_spoil_the_whole_hit(in_windows: bool) -> None:
    """Whatever stands in the index."""
    hit = hit_of("a", 6)
    assert hit.windows is not None
    if in_windows:
        block, at = hit.windows[-1]
        hit = hit._replace(windows=(*hit.windows[:-1], (block, at._replace(tier=Tier.OBJECT))))
    else:
        hit = hit._replace(locations=(*hit.locations[:-1], hit.locations[-1]._replace(tier=Tier.OBJECT)))
    assert planner().plan([hit], 0, 8) is MissReason.NOT_INDEXED


def test_pull_of_several_groups_is_of_use_as_a_whole_alone() -> None:
    """A gap anywhere makes all of it useless; with one group the blocks before it are right."""
    plan = planner().plan([hit_of("a", 6)], 4, 8)
    assert isinstance(plan, PullPlan)
    assert [plan.usable(leading) for leading in range(7)] == [0, 0, 0, 0, 0, 0, 2]
    other = planner().plan([hit_of("a", 6)._replace(windows=None)], 4, 8)
    assert isinstance(other, PullPlan)
    assert [other.usable(leading) for leading in range(3)] == [0, 1, 2]


def test_pull_is_weighed_by_the_bytes_of_all_groups() -> None:
    """What windows take counts in the forecast of the pull's time."""
    hits = [hit_of("a", 8)._replace(windows=None), hit_of("a", 8)]
    plans = [planner(1 << 20).plan([hit], 0, 8) for hit in hits]
    assert isinstance(plans[0], PullPlan)
    assert isinstance(plans[1], PullPlan)
    assert plans[1].pull_s > 1.5 * plans[0].pull_s
