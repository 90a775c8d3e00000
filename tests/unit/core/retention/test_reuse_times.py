"""What is learned from when blocks are used again."""

from __future__ import annotations

import pytest

from ghostcacher_connector.core.retention.reuse_times import (
    BUCKETS,
    EDGES,
    FOLLOWED_MAX,
    Counts,
    Kind,
    ReuseTimes,
    bucket_of,
    densities,
    hazards,
)

WANTED, FORGOTTEN = Kind(1, "a"), Kind(0, "a")


def learned(*, return_s: float) -> ReuseTimes:
    """Learn from blocks of two kinds: all of one are used again after that time, and none of the other."""
    times = ReuseTimes(1)
    for number in range(8_000):
        now = number / 10
        times.wait(b"w%d" % number, WANTED, now)
        times.wait(b"f%d" % number, FORGOTTEN, now)
        if number >= 10 * return_s:
            times.used(b"w%d" % (number - 10 * return_s), now)
    return times


def test_kind_that_comes_back_is_worth_more() -> None:
    times = learned(return_s=20)
    assert times.density(WANTED, 0) > 20 * times.density(FORGOTTEN, 0)


def test_worth_rises_until_blocks_come_back_and_falls_then() -> None:
    """Who comes back after 20 s at the earliest is worth most just before, and nothing much long after."""
    times = learned(return_s=20)
    assert times.density(WANTED, 0) < times.density(WANTED, 15) > 5 * times.density(WANTED, 100)


def test_unknown_kind_is_as_all_are() -> None:
    times = learned(return_s=20)
    assert times.density(FORGOTTEN, 0) < times.density(Kind(9, "b"), 0) < times.density(WANTED, 0)


def test_what_still_waits_counts() -> None:
    """Half of the blocks are used at once, the others wait still: the chance is not taken for one."""
    times = ReuseTimes(1)
    for number in range(4_000):
        times.wait(b"%d" % number, WANTED, number)
        if number % 2:
            times.used(b"%d" % number, number + 0.05)
    assert times.density(WANTED, 50) < 0.2 * times.density(WANTED, 0)


def test_memory_is_bounded() -> None:
    times = ReuseTimes(1)
    for number in range(2 * FOLLOWED_MAX):
        times.wait(b"%d" % number, FORGOTTEN, number)
    assert len(times._followed) == FOLLOWED_MAX


def test_hazard_counts_those_who_reach_a_bucket() -> None:
    """Of 100 blocks 50 are used in one bucket, and 25 of the 50 that are left in a later one."""
    counts = Counts()
    counts.used[3], counts.used[5], counts.unused[BUCKETS - 1] = 50, 25, 25
    found = hazards(counts, None)
    assert found[3] == pytest.approx(0.5, abs=0.01)
    assert found[5] == pytest.approx(0.5, abs=0.02)
    assert found[4] == 0


def test_density_of_a_constant_chance_is_that_chance() -> None:
    """Without memory waiting longer gains nothing: as many hits a second as the bucket at hand promises."""
    hazard = [0.0] * BUCKETS
    bucket = bucket_of(10.0)
    hazard[bucket] = 0.5
    width = EDGES[bucket + 1] - EDGES[bucket]
    assert densities(hazard)[bucket] == pytest.approx(0.5 / (0.75 * width))
    assert densities(hazard)[bucket + 1] == 0
    assert densities(hazard)[0] == pytest.approx(0.5 / (EDGES[bucket] + 0.75 * width))


def test_large_tier_follows_a_part_of_all_keys() -> None:
    times = ReuseTimes(FOLLOWED_MAX)
    for number in range(FOLLOWED_MAX):
        times.wait(b"%d" % number, FORGOTTEN, number)
    assert len(times._followed) == pytest.approx(FOLLOWED_MAX / 16, rel=0.1)


def test_density_waits_beyond_a_bucket_where_that_pays() -> None:
    """One of ten is used in the first bucket, nine of ten of the others in the next."""
    hazard = [0.0] * BUCKETS
    bucket = bucket_of(10.0)
    hazard[bucket : bucket + 2] = [0.1, 0.9]
    first, second = EDGES[bucket + 1] - EDGES[bucket], EDGES[bucket + 2] - EDGES[bucket + 1]
    assert densities(hazard)[bucket] == pytest.approx((0.1 + 0.9 * 0.9) / (first * 0.95 + 0.9 * second * 0.55))
