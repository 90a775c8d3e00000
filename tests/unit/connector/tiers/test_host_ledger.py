"""The host ledger: no slot is lost or used twice, and what a slot held is bumped and withdrawn before it is reused."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ghostcacher_connector.core.retention.base import BlockTraits, EvictionPolicy
from ghostcacher_connector.core.retention.lru import Lru
from ghostcacher_connector.core.retention.retention_settings import RetentionSettings
from ghostcacher_connector.core.retention.tier_retention import TierRetention
from ghostcacher_connector.core.types import BlockHash, Location, SectionType, Tier
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.tiers.candidates import Candidate
from ghostcacher_connector.tiers.host_ledger import COPY_TIMEOUT_S, HostLedger
from tests.support.index_parts import FakeClock

FIRST = 100
TRAITS = BlockTraits(SectionType.DOC, 0, 16, 1)


class Following(Lru):
    """Notes what it is asked for in vain."""

    def __init__(self) -> None:
        self.followed: list[tuple[BlockHash, BlockTraits | None]] = []

    def asked(self, key: BlockHash, traits: BlockTraits | None, now: float) -> None:
        super().asked(key, traits, now)
        self.followed.append((key, traits))


class Subject:
    """A ledger, and what it has said of its slots."""

    def __init__(self, slots: int = 4, ranks: int = 1, policy: EvictionPolicy | None = None) -> None:
        self.clock = FakeClock()
        self.ranks = ranks
        self.withdrawn: list[tuple[int, BlockHash]] = []
        self.ledger = HostLedger(
            FIRST,
            slots,
            TierRetention(RetentionSettings(), slots, clock=self.clock, policy=policy),
            ranks=ranks,
            on_withdraw=lambda slot, block: self.withdrawn.append((slot, block)),
            on_clear=self._all_withdrawn,
            clock=self.clock,
        )
        self.ledger.take_bumps()

    def _all_withdrawn(self) -> None:
        self.withdrawn += [(held.slot, block) for block, held in self.ledger._held.items()]

    def begin(self, *blocks: bytes) -> tuple[int, list[int | None]]:
        return self.ledger.begin([Candidate(block, b"root", None, TRAITS) for block in blocks])

    def hold(self, *blocks: bytes) -> None:
        for block in blocks:
            copy_id, slots = self.begin(block)
            assert slots != [None]
            reports = [self.ledger.end(copy_id, [True]) for _ in range(self.ranks)]
            assert [copied.candidate.block for copied in reports[-1]] == [block]

    def held(self, *blocks: bytes) -> list[bytes]:
        return [block for block in blocks if self.ledger.holds(block)]


def test_copied_block_is_found_in_its_slot() -> None:
    """A block is held from the moment at which its copy has been reported, and not before."""
    subject = Subject()
    copy_id, (slot,) = subject.begin(b"a")
    assert subject.ledger.knows(b"a")
    assert subject.ledger.prefix([b"a"], 0) == []
    (copied,) = subject.ledger.end(copy_id, [True])
    assert (copied.slot, copied.candidate.block, copied.candidate.root) == (slot, b"a", b"root")
    assert subject.ledger.prefix([b"a", b"b"], 0) == [Location(Tier.HOST, copied.slot, copied.generation)]


def test_prefix_begins_anywhere_and_ends_at_the_first_gap() -> None:
    """What the engine has itself comes before; what is behind a block that is missing is of no use."""
    subject = Subject()
    subject.hold(b"b", b"d")
    chain = [b"a", b"b", b"c", b"d"]
    assert subject.ledger.prefix(chain, 0) == []
    assert [location.tier for location in subject.ledger.prefix(chain, 1)] == [Tier.HOST]
    assert len(subject.ledger.prefix(chain, 3)) == 1


@pytest.mark.parametrize("reports", list(permutations([[True, True], [False, True], [True, True]])))
def test_block_is_held_only_once_every_rank_has_copied_it(reports: tuple[list[bool], ...]) -> None:
    """One rank whose slot was reused meanwhile makes the block useless on all of them, whichever reports last."""
    subject = Subject(ranks=3)
    copy_id, _ = subject.begin(b"a", b"b")
    for report in reports[:2]:
        assert subject.ledger.end(copy_id, report) == []
        assert subject.held(b"a", b"b") == []
    assert [copied.candidate.block for copied in subject.ledger.end(copy_id, reports[2])] == [b"b"]
    assert not subject.ledger.knows(b"a")
    subject.ledger.check_invariants()


def test_victim_is_bumped_and_withdrawn_before_its_slot_is_given_away() -> None:
    """Peers refuse what they have looked up, from the step on that copies something else there."""
    subject = Subject(slots=1)
    subject.hold(b"a")
    (before,) = subject.ledger.prefix([b"a"], 0)
    _, (slot,) = subject.begin(b"b")
    assert subject.withdrawn == [(slot, b"a")]
    slots, generations = subject.ledger.take_bumps()
    assert slots.tolist() == [slot] == [before.slot]
    assert generations.tolist() == [before.generation + 1]


def test_slot_of_a_useless_copy_is_free_without_a_bump() -> None:
    """It was in no entry."""
    subject = Subject(slots=1)
    copy_id, _ = subject.begin(b"a")
    subject.ledger.end(copy_id, [False])
    assert subject.begin(b"b")[1] == [FIRST]
    assert len(subject.ledger.take_bumps()[0]) == 0


def test_first_bumps_name_every_slot() -> None:
    """A rank's own table begins at 0."""
    ledger = HostLedger(
        FIRST, 3, TierRetention(RetentionSettings(), 3), ranks=1, on_withdraw=lambda *_: None, on_clear=lambda: None
    )
    slots, generations = ledger.take_bumps()
    assert slots.tolist() == [FIRST, FIRST + 1, FIRST + 2]
    assert generations.min() > 0


def test_least_recently_used_makes_room() -> None:
    """A hit counts as a use."""
    subject = Subject(slots=2)
    subject.hold(b"a", b"b")
    subject.ledger.touch([b"a"], [TRAITS])
    subject.hold(b"c")
    assert subject.held(b"a", b"b", b"c") == [b"a", b"c"]


def test_hit_renews_a_retention() -> None:
    """A request that asks for a block to be kept finds it here: it is kept from now on, as if it came with it."""
    subject = Subject(slots=4)
    subject.hold(b"a", b"b", b"c", b"d")
    for _ in range(2):
        subject.ledger.touch([b"a"], [TRAITS._replace(retain_s=60.0)])
        subject.clock.advance(40.0)
    subject.ledger.touch([b"b", b"c", b"d"], [TRAITS] * 3)
    subject.hold(b"e")
    assert subject.held(b"a", b"b") == [b"a"]


def test_what_prompts_say_of_blocks_that_are_not_here_reaches_the_policy() -> None:
    """By that it learns whether blocks of their kind come back, and so what one of them is worth."""
    policy = Following()
    subject = Subject(policy=policy)
    subject.hold(b"a")
    subject.ledger.touch([b"a", b"b"], [TRAITS, TRAITS._replace(depth=1)])
    assert policy.followed == [(b"b", TRAITS._replace(depth=1))]


def test_block_that_the_engine_has_and_uses_makes_room_first() -> None:
    """It is a cheap loss: before the engine gives it up it is copied again."""
    subject = Subject(slots=2)
    subject.hold(b"a", b"b")
    subject.ledger.duplicate(b"b")
    subject.hold(b"c")
    assert subject.held(b"a", b"b", b"c") == [b"a", b"c"]
    subject.ledger.duplicate(b"c")
    subject.ledger.unique(b"c")
    subject.hold(b"d")
    assert subject.held(b"a", b"c", b"d") == [b"c", b"d"]


def test_pinned_blocks_stay_while_they_are_read() -> None:
    """A load of a full tier gets what it was promised; with everything pinned nothing is copied."""
    subject = Subject(slots=2)
    subject.hold(b"a", b"b")
    subject.ledger.duplicate(b"a")
    subject.ledger.pin("load", [b"a", b"b"], 5.0)
    assert subject.begin(b"c")[1] == [None]
    assert subject.ledger.counts.refused == 1
    subject.ledger.unpin("load")
    subject.hold(b"c")
    assert subject.held(b"a", b"b") == [b"b"]


def test_block_on_its_way_is_named_until_its_copy_ends() -> None:
    """Well or not: whoever asks for all that the tier has, asks for these, too."""
    subject = Subject(slots=2)
    copy_id, _ = subject.begin(b"a", b"b")
    assert subject.ledger.on_their_way == {b"a", b"b"}
    subject.ledger.end(copy_id, [True, False])
    assert subject.ledger.on_their_way == set()


def test_pin_ends_with_its_time() -> None:
    """A load that nobody ends does not keep its blocks for good."""
    subject = Subject(slots=1)
    subject.hold(b"a")
    subject.ledger.pin("load", [b"a"], 5.0)
    subject.clock.advance(5.0)
    subject.ledger.expire()
    subject.hold(b"b")
    subject.ledger.unpin("load")
    subject.ledger.check_invariants()


def test_pin_of_a_dropped_block_is_not_taken_for_a_later_one() -> None:
    """The same block comes back while the load that pinned the first one still runs."""
    subject = Subject(slots=1)
    subject.hold(b"a")
    subject.ledger.pin("load", [b"a"], 5.0)
    subject.ledger.drop(lambda _: True)
    subject.begin(b"a")
    subject.ledger.unpin("load")
    assert subject.begin(b"b")[1] == [None]
    subject.ledger.check_invariants()


def test_block_whose_time_is_over_is_withdrawn() -> None:
    """As the settings of its type say."""
    subject = Subject()
    subject.hold(b"a")
    subject.clock.advance(RetentionSettings().doc_ttl_s or 0.0)
    subject.ledger.expire()
    assert [block for _, block in subject.withdrawn] == [b"a"]
    subject.ledger.check_invariants()


def test_copy_that_is_never_reported_gives_its_slots_back() -> None:
    """And its report, should it come after all, changes nothing."""
    subject = Subject(slots=1)
    copy_id, _ = subject.begin(b"a")
    subject.clock.advance(COPY_TIMEOUT_S)
    assert subject.ledger.expire() == 1
    assert not subject.ledger.knows(b"a")
    assert subject.ledger.end(copy_id, [True]) == []
    assert subject.held(b"a") == []
    subject.ledger.check_invariants()


def test_nothing_is_held_after_a_clear_and_late_reports_bring_nothing_back() -> None:
    """Weights have changed: every slot that held something is bumped, and a copy under way is of no use."""
    subject = Subject(slots=3)
    subject.hold(b"a", b"b")
    before = {location.slot: location.generation for location in subject.ledger.prefix([b"a", b"b"], 0)}
    copy_id, _ = subject.begin(b"c")
    subject.ledger.clear()
    assert subject.ledger.end(copy_id, [True]) == []
    assert len(subject.ledger) == 0
    assert not any(subject.ledger.knows(block) for block in (b"a", b"b", b"c"))
    slots, generations = subject.ledger.take_bumps()
    assert dict(zip(slots.tolist(), generations.tolist(), strict=True)) == {
        slot: generation + 1 for slot, generation in before.items()
    }
    assert sorted(slot for slot, _ in subject.withdrawn) == sorted(before)
    subject.ledger.check_invariants()


def test_clear_says_how_many_were_held_and_counts_them_by_type() -> None:
    """What was on its way was not held, and counts as nothing that was given up."""
    subject = Subject(slots=4)
    subject.hold(b"a", b"b")
    subject.begin(b"c")
    assert subject.ledger.clear() == 2
    recorder = Recorder()
    subject.ledger.counts.record(recorder, "host")
    assert recorder.drain()["gc_tier_evicted_blocks_total"] == {"host\x1fdoc\x1fflushed": 2.0}


class Machine(RuleBasedStateMachine):
    """Any order of calls; each entry that was ever published is refused once its slot may be written."""

    def __init__(self) -> None:
        super().__init__()
        self.subject = Subject(slots=3, ranks=2)
        self.waiting: list[tuple[int, int, set[int]]] = []
        self.table: dict[int, int] = {}
        self.published: dict[int, tuple[bytes, int]] = {}

    blocks = st.lists(st.sampled_from([bytes([65 + i]) for i in range(8)]), unique=True, max_size=4)

    @rule(blocks=blocks)
    def begin(self, blocks: list[bytes]) -> None:
        fresh = [block for block in blocks if not self.subject.ledger.knows(block)]
        copy_id, slots = self.subject.begin(*fresh)
        taken = {slot for slot in slots if slot is not None}
        self._forget_withdrawn()
        assert not taken & self.published.keys(), "a slot that is advertised is overwritten"
        if taken:
            self.waiting.extend((copy_id, len(taken), {rank}) for rank in range(2))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def report(self, data: st.DataObject) -> None:
        copy_id, count, _ = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        valid = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
        for copied in self.subject.ledger.end(copy_id, valid):
            assert copied.slot not in self.published
            self.published[copied.slot] = (copied.candidate.block, copied.generation)

    @rule(blocks=blocks, name=st.sampled_from(["x", "y"]))
    def load(self, blocks: list[bytes], name: str) -> None:
        self.subject.ledger.unpin(name)
        self.subject.ledger.pin(name, self.subject.held(*blocks), 3.0)

    @rule(blocks=blocks)
    def use(self, blocks: list[bytes]) -> None:
        self.subject.ledger.touch(blocks, [TRAITS] * len(blocks))
        for block in blocks:
            self.subject.ledger.duplicate(block)

    @rule(blocks=blocks)
    def drop(self, blocks: list[bytes]) -> None:
        self.subject.ledger.drop(lambda block: block in blocks)
        for block in blocks:
            assert not self.subject.ledger.knows(block)

    @rule()
    def clear(self) -> None:
        self.subject.ledger.clear()

    @rule(seconds=st.sampled_from([1.0, 4.0, COPY_TIMEOUT_S]))
    def wait(self, seconds: float) -> None:
        self.subject.clock.advance(seconds)
        self.subject.ledger.expire()

    @invariant()
    def slots_are_whole(self) -> None:
        self.subject.ledger.check_invariants()
        self._forget_withdrawn()
        for slot, (block, generation) in self.published.items():
            assert self.subject.ledger.prefix([block], 0) == [Location(Tier.HOST, slot, generation)]

    def _forget_withdrawn(self) -> None:
        bumped = set(self.subject.ledger.take_bumps()[0].tolist())
        for slot, block in self.subject.withdrawn:
            assert slot in bumped, "a slot is withdrawn and not bumped"
            assert self.published.pop(slot)[0] == block
        self.subject.withdrawn.clear()


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestLedgerMachine = Machine.TestCase


def test_no_slot_is_lost_after_many_operations() -> None:
    """100,000 random operations: all slots are still there, and can be filled."""
    source, subject = random.Random(7), Subject(slots=16, ranks=2)
    names = [bytes([number]) for number in range(48)]
    reports: list[tuple[int, int]] = []
    for number in range(100_000):
        choice, some = source.random(), source.sample(names, 3)
        if choice < 0.45:
            copy_id, slots = subject.begin(*(block for block in some if not subject.ledger.knows(block)))
            if count := sum(slot is not None for slot in slots):
                reports += [(copy_id, count)] * 2
        elif choice < 0.85 and reports:
            copy_id, count = reports.pop(source.randrange(len(reports)))
            subject.ledger.end(copy_id, [source.random() < 0.8 for _ in range(count)])
        elif choice < 0.93:
            subject.ledger.unpin("load")
            subject.ledger.pin("load", subject.held(*some), 5.0)
        elif choice < 0.97:
            subject.ledger.duplicate(some[0])
            subject.ledger.touch(some, [TRAITS] * len(some))
        elif choice < 0.999:
            subject.ledger.drop(lambda block: block == some[0])  # noqa: B023 - called at once
            subject.clock.advance(0.1)
            subject.ledger.expire()
        else:
            subject.ledger.clear()
        if number % 64 == 0:
            subject.ledger.check_invariants()
    subject.ledger.clear()
    subject.ledger.check_invariants()
    subject.hold(*names[:16])
    assert len(subject.ledger) == 16
