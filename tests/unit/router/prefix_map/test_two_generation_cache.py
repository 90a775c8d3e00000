"""A cache that forgets what was not used for long."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ghostcacher_router.prefix_map.two_generation_cache import TwoGenerationCache

TTL_S = 100.0
ENTRIES_MAX = 8


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make(entries_max: int = ENTRIES_MAX) -> tuple[TwoGenerationCache, Clock]:
    clock = Clock()
    return TwoGenerationCache(entries_max=entries_max, ttl_s=TTL_S, clock=clock), clock


def test_value_is_found_under_its_namespace() -> None:
    """The last one put counts."""
    cache, _ = make()
    cache.put("a", {b"1": b"x"})
    cache.put("b", {b"1": b"y"})
    cache.put("a", {b"1": b"z"})
    assert cache.find("a", [b"1", b"2"]) == [b"z", None]
    assert cache.find("b", [b"1"]) == [b"y"]
    assert cache.find("c", [b"1"]) == [None]
    assert len(cache) == 2


def test_value_that_is_used_outlives_its_time() -> None:
    """Finding it is using it."""
    cache, clock = make()
    cache.put("a", {b"1": b"x"})
    for _ in range(20):
        clock.now += TTL_S / 2 - 1
        assert cache.find("a", [b"1"]) == [b"x"]


def test_values_are_found_from_the_last_one_on() -> None:
    """With their places; what nobody asks for is not looked for, and does not count as used."""
    cache, clock = make()
    for key in (b"1", b"2", b"4"):
        cache.put("a", {key: b"x" + key})
    keys = [b"1", b"2", b"3", b"4", b"5"]
    assert list(cache.from_last("a", keys)) == [(3, b"x4"), (1, b"x2"), (0, b"x1")]
    assert list(cache.from_last("b", keys)) == []
    for _ in range(2):
        clock.now += TTL_S / 2
        assert next(cache.from_last("a", keys)) == (3, b"x4")
    assert cache.find("a", keys) == [None, None, None, b"x4", None]


def test_value_is_kept_for_half_its_time_and_gone_after_all_of_it() -> None:
    """Whenever it was put."""
    for start in (0.0, 10.0, 49.0, 50.0, 51.0, 99.0):
        for waited, found in ((TTL_S / 2 - 1, [b"x"]), (TTL_S + 1, [None]), (10 * TTL_S, [None])):
            cache, clock = make()
            clock.now = start
            cache.find("a", [])
            cache.put("a", {b"1": b"x"})
            clock.now += waited
            assert cache.find("a", [b"1"]) == found


def test_least_recently_used_goes_first() -> None:
    """Of more than fits, what was found again is kept."""
    cache, _ = make()
    for number in range(100):
        cache.put("a", {b"%d" % number: b"x"})
        assert cache.find("a", [b"0"]) == [b"x"]
    assert cache.find("a", [b"1", b"99"]) == [None, b"x"]
    assert len(cache) <= ENTRIES_MAX


def test_drop_is_in_every_namespace_and_generation() -> None:
    """Nothing of the key is left."""
    cache, clock = make()
    cache.put("a", {b"1": b"x"})
    clock.now = TTL_S / 2
    cache.find("a", [])
    cache.put("b", {b"1": b"y"})
    cache.drop(b"1")
    assert len(cache) == 0
    assert cache.find("a", [b"1"]) == cache.find("b", [b"1"]) == [None]


def test_dropped_keys_leave_their_place() -> None:
    """Dropping and putting again, however often, forgets nothing else."""
    cache, _ = make()
    cache.put("a", {b"1": b"x"})
    for _ in range(100):
        cache.put("a", {b"2": b"y"})
        cache.drop(b"2")
    assert cache.find("a", [b"1"]) == [b"x"]


def test_value_that_is_put_again_is_there_once() -> None:
    """Also when an old generation has it."""
    cache, clock = make()
    cache.put("a", {b"1": b"x", b"2": b"y"})
    clock.now += TTL_S * 0.6
    cache.put("a", {b"1": b"z"})
    assert len(cache) == 2
    assert cache.find("a", [b"1", b"2"]) == [b"z", b"y"]


class Machine(RuleBasedStateMachine):
    """Any use, against a plain dictionary that never forgets: a value is the last one put, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.cache, self.clock = make()
        self.put: dict[tuple[str, bytes], bytes] = {}

    @rule(
        namespace=st.sampled_from("ab"),
        values=st.dictionaries(st.sampled_from([b"%d" % n for n in range(12)]), st.binary(), max_size=ENTRIES_MAX // 2),
    )
    def enter(self, namespace: str, values: dict[bytes, bytes]) -> None:
        self.cache.put(namespace, values)
        self.put |= {(namespace, key): value for key, value in values.items()}
        assert self.cache.find(namespace, list(values)) == list(values.values())

    @rule(namespace=st.sampled_from("ab"), key=st.sampled_from([b"%d" % n for n in range(12)]))
    def find(self, namespace: str, key: bytes) -> None:
        assert self.cache.find(namespace, [key])[0] in (None, self.put.get((namespace, key)))

    @rule(namespace=st.sampled_from("ab"), keys=st.lists(st.sampled_from([b"%d" % n for n in range(12)]), unique=True))
    def find_from_last(self, namespace: str, keys: list[bytes]) -> None:
        found = list(self.cache.from_last(namespace, keys))
        assert [index for index, _ in found] == sorted({index for index, _ in found}, reverse=True)
        assert all(self.put[namespace, keys[index]] == value for index, value in found)

    @rule(key=st.sampled_from([b"%d" % n for n in range(12)]))
    def drop(self, key: bytes) -> None:
        self.cache.drop(key)
        self.put = {place: value for place, value in self.put.items() if place[1] != key}

    @rule(seconds=st.floats(0, 2 * TTL_S))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.put = {}

    @invariant()
    def is_bounded(self) -> None:
        assert len(self.cache) <= min(ENTRIES_MAX, len(self.put))


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=settings().max_examples // 2, stateful_step_count=20)


@given(st.lists(st.integers(0, 30), max_size=200))
def test_last_few_used_are_always_there(keys: list[int]) -> None:
    """Half of the limit is kept for certain."""
    cache, _ = make()
    for key in keys:
        cache.put("a", {b"%d" % key: b"x"})
    last = list(dict.fromkeys(reversed(keys)))[: ENTRIES_MAX // 2]
    assert None not in cache.find("a", [b"%d" % key for key in last])
