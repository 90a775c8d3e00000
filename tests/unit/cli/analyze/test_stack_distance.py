"""What LRU caches of all sizes hit, against a cache that is run."""

from __future__ import annotations

from hypothesis import example, given

from ghostcacher_cli.analyze.stack_distance import hit_curve
from ghostcacher_cli.analyze.traces import Trace
from tests.unit.cli.analyze.support import prompts, trace_of


def run_lru(trace: Trace, capacity_blocks: int) -> int:
    """Return the tokens that one cache serves: looked up first, then all of a prompt's blocks are used, root last."""
    recent: list[int] = []
    saved = 0
    for request in range(trace.requests):
        blocks = list(trace.blocks_of(request))
        for block in blocks:
            if block not in recent:
                break
            saved += trace.tokens_of[block]
        recent = (blocks + [block for block in recent if block not in blocks])[:capacity_blocks]
    return saved


@given(prompts)
@example([[0, 1, 2], [0, 1], [0, 1, 2, 2], [1], [0, 1, 2]])
def test_curve_is_what_a_cache_of_each_size_hits(requests: list[list[int]]) -> None:
    """For every size, from no block to more than there are."""
    trace = trace_of(requests)
    curve = hit_curve(trace.blocks, trace.starts, trace.tokens_of)
    for capacity in range(len(trace.tokens_of) + 3):
        assert curve.at(capacity) == run_lru(trace, capacity)
    assert curve.most == curve.at(10**9)
    assert curve.enough == min(size for size in range(len(curve.saved)) if curve.at(size) == curve.most)


def test_nothing_shared_is_nothing_saved() -> None:
    curve = hit_curve([0, 1, 2], [0, 2, 3], [5, 5, 5])
    assert (curve.most, curve.enough, curve.at(7)) == (0, 0, 0)
    assert hit_curve([], [0], []).most == 0
