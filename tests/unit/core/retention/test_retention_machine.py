"""Whatever happens to a tier, no block is lost or there twice, and children go before their parents."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.retention.base import BlockTraits, Evicted, EvictionReason
from ghostcacher_connector.core.retention.retention_settings import RetentionSettings
from ghostcacher_connector.core.retention.tier_retention import TierRetention
from ghostcacher_connector.core.types import SectionType

CAPACITY = 40
KEYS = 120
TENANTS = (None, b"t", b"u")
TOOLS = (b"x", b"y", None)
POLICIES = ("hit-density", "lru", "seed-score")
TTL_S = {SectionType.DOC: 60.0, SectionType.SESSION: 30.0}


class Model:
    """A tier beside what is known of its blocks from outside. Block n follows block n // 2, as in a heap."""

    def __init__(self, policy: str) -> None:
        self.now = 0.0
        self.settings = RetentionSettings(
            eviction_policy=policy,
            doc_ttl_s=TTL_S[SectionType.DOC],
            session_ttl_s=TTL_S[SectionType.SESSION],
            doc_budget=0.4,
            session_budget=0.5,
            quota_gib=4 / (1 << 30),
        )
        self.tier = TierRetention(self.settings, CAPACITY, clock=lambda: self.now)
        self.held: dict[int, BlockTraits] = {}
        self.retained: dict[int, float] = {}
        self.used_at: dict[int, float] = {}
        self.came_at: dict[int, float] = {}
        self.pinned: set[int] = set()

    def traits(self, number: int, retain_s: float) -> BlockTraits:
        """Give a block its depth, a type that later blocks of a prompt have later, and 1 to 3 bytes."""
        depth = number.bit_length() - 1
        section = SectionType(min(depth // 2, 3))
        tools = TOOLS[(number // 4 + int(retain_s)) % 3]
        return BlockTraits(
            section, depth, 16, 1 + number % 3, TENANTS[number % 3], retain_s, 0.0, depth + 4, tools, number % 5 == 0
        )

    def insert(self, number: int, retain_s: float) -> None:
        if number in self.held:
            return
        traits = self.traits(number, retain_s)
        leaves = self.free_leaves()
        over = {section for section in SectionType if self.size_of(section) > self.budget(section)}
        insertion = self.tier.insert(key_of(number), key_of(number // 2) if number > 1 else None, traits)
        self.leave(insertion.evicted)
        first = insertion.evicted[:1]
        if first and first[0].reason is EvictionReason.CAPACITY:
            assert not any(self.tier_type(leaf) in over for leaf in leaves - {number // 2}), "a budget's turn"
        if insertion.admitted:
            self.held[number] = traits
            self.came_at[number] = self.used_at[number] = self.now

    def touch(self, number: int, retain_s: float) -> None:
        assert self.tier.touch(key_of(number), self.traits(number, retain_s)) == (number in self.held)
        if number in self.held:
            self.used_at[number] = self.now

    def pin(self, number: int) -> None:
        if number in self.held and number not in self.pinned:
            self.tier.pin(key_of(number))
            self.pinned.add(number)

    def unpin(self, number: int) -> None:
        self.tier.unpin(key_of(number))
        self.pinned.discard(number)

    def remove(self, number: int) -> None:
        assert self.tier.remove(key_of(number)) == (number in self.held)
        self.held.pop(number, None)
        self.pinned.discard(number)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.leave(self.tier.expire())
        for leaf in self.free_leaves():
            ttl_s = TTL_S.get(self.tier_type(leaf))
            since = self.used_at if self.tier_type(leaf) is SectionType.SESSION else self.came_at
            assert ttl_s is None or since[leaf] + ttl_s > self.now or self.may_be_retained(leaf)

    def evict(self, size_bytes: int) -> None:
        self.leave(self.tier.evict(size_bytes))

    def flush(self, number: int) -> None:
        gone = self.tier.flush(lambda block: block.key == key_of(number))
        self.leave(gone, pins_count=False)
        assert all(one.reason is EvictionReason.FLUSHED for one in gone)
        assert number not in self.held

    def clear(self) -> None:
        refused_bytes = self.tier.quota_refused_bytes
        self.tier.clear()
        self.held.clear()
        self.pinned.clear()
        assert (self.tier.retained_bytes, self.tier.quota_refused_bytes) == (0, refused_bytes)

    def age(self, number: int) -> None:
        self.tier.age(TOOLS[number % 2])

    def need(self, number: int) -> None:
        self.tier.need(key_of(number), needed=number % 2 == 0)

    def leave(self, gone: Sequence[Evicted], *, pins_count: bool = True) -> None:
        for one in gone:
            number = int(one.key)
            assert not {2 * number, 2 * number + 1} & self.held.keys(), "a parent before its child"
            assert not (pins_count and number in self.pinned)
            assert one.size_bytes == self.held.pop(number).size_bytes
            self.pinned.discard(number)

    def check(self) -> None:
        assert {int(key) for key in self.tier} == self.held.keys()
        assert self.tier.used_bytes == sum(traits.size_bytes for traits in self.held.values()) <= CAPACITY
        assert self.tier.retained_bytes <= CAPACITY / 2
        self.tier.check_invariants()

    def free_leaves(self) -> set[int]:
        """Return all that no child, pin or retention keeps, by what is known from outside."""
        return {
            number
            for number in self.held
            if not {2 * number, 2 * number + 1} & self.held.keys()
            and number not in self.pinned
            and not self.may_be_retained(number)
        }

    def may_be_retained(self, number: int) -> bool:
        block = self.tier.look(key_of(number))
        return block is not None and block.retained_until > self.now

    def tier_type(self, number: int) -> SectionType:
        return self.held[number].section if number in self.held else self.traits(number, 0).section

    def size_of(self, section: SectionType) -> int:
        return sum(traits.size_bytes for traits in self.held.values() if traits.section is section)

    def budget(self, section: SectionType) -> float:
        return self.settings.budget(section) * CAPACITY


def key_of(number: int) -> bytes:
    return b"%d" % number


numbers = st.integers(1, KEYS)
times = st.sampled_from([0.0, 0.0, 0.0, 20.0])
steps = st.one_of(
    st.tuples(st.just(Model.insert), numbers, times),
    st.tuples(st.just(Model.touch), numbers, times),
    st.tuples(st.sampled_from([Model.pin, Model.unpin, Model.remove, Model.flush, Model.age, Model.need]), numbers),
    st.tuples(st.just(Model.pass_time), st.sampled_from([0.5, 5.0, 40.0])),
    st.tuples(st.just(Model.evict), st.integers(0, 10)),
    st.tuples(st.just(Model.clear)),
)
Step = tuple[Callable[..., None], object]


@pytest.mark.parametrize("policy", POLICIES)
@given(plan=st.lists(steps, max_size=120))
def test_tier_and_model_agree_after_each_step(policy: str, plan: list[Step]) -> None:
    model = Model(policy)
    for action, *values in plan:
        action(model, *values)
        model.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_tier_and_model_agree_after_many_steps(policy: str) -> None:
    """100,000 in all: what goes wrong seldom, or adds up."""
    chance = random.Random(policy)
    model = Model(policy)
    actions = [Model.insert] * 12 + [Model.touch] * 6 + [Model.pin, Model.unpin, Model.unpin, Model.remove, Model.age]
    actions.append(Model.need)
    for number in range(100_000 // len(POLICIES) + 1):
        action = chance.choice(actions)
        values = [chance.randint(1, KEYS)]
        if action in {Model.insert, Model.touch}:
            values.append(chance.choice([0, 0, 0, 20]))
        action(model, *values)
        if number % 40 == 0:
            model.pass_time(chance.choice([0.5, 5.0, 40.0]))
            model.evict(chance.randint(0, 6))
            model.check()
        if number % 5000 == 0:
            model.clear()
        if number % 700 == 0:
            model.flush(chance.randint(1, KEYS))
