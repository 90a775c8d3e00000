"""How often keys were seen, from a sketch."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from ghostcacher_connector.core.retention import frequency_sketch
from ghostcacher_connector.core.retention.frequency_sketch import COUNT_MAX, COUNTERS_MIN, FrequencySketch


@given(keys=st.lists(st.binary(min_size=1, max_size=2), max_size=200))
def test_count_is_never_too_low(keys: list[bytes]) -> None:
    sketch = FrequencySketch(1)
    seen: Counter[bytes] = Counter()
    for key in keys:
        assert sketch.add(key) >= min(seen[key], COUNT_MAX)
        seen[key] += 1
    assert all(sketch.count(key) >= min(count, COUNT_MAX) for key, count in seen.items())


def test_strangers_seldom_look_known() -> None:
    """With as many keys as a row has counters."""
    sketch = FrequencySketch(1)
    for number in range(COUNTERS_MIN - 1):
        sketch.add(b"%d" % number)
    known = sum(sketch.count(b"stranger %d" % number) > 0 for number in range(10_000))
    assert known < 2_000


def test_key_raises_only_its_least_counters() -> None:
    """One that shares a counter with a key seen more often leaves that counter as it is."""
    sketch = FrequencySketch(1)
    for _ in range(5):
        sketch.add(b"often")
    shared = sketch._rows[0].index(5)
    number = 0
    while xxh3_64_intdigest(b"%d" % number) & (COUNTERS_MIN - 1) != shared:
        number += 1
    other = b"%d" % number
    sketch.add(other)
    assert sketch.count(other) == 1
    assert sketch._rows[0][shared] == 5


def test_counts_are_halved_when_enough_was_seen() -> None:
    sketch = FrequencySketch(1)
    for _ in range(COUNT_MAX + 5):
        sketch.add(b"a")
    assert sketch.count(b"a") == COUNT_MAX
    for number in range(COUNTERS_MIN - COUNT_MAX - 5):
        sketch.add(b"%d" % number)
    assert sketch.count(b"a") == COUNT_MAX // 2


def test_memory_is_bounded() -> None:
    assert len(FrequencySketch(1 << 40)._rows[0]) == frequency_sketch.COUNTERS_MAX
