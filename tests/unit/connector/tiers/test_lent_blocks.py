"""What a peer has lent to an engine: it comes down only where there is room, and goes first, while a peer holds it."""

from __future__ import annotations

import pytest

from ghostcacher_connector.tiers.host_tier import LENT_S
from tests.support.index_parts import FakeClock
from tests.support.ordering_tier import FIRST, copy, name, new_tier, publish


def test_lent_blocks_that_are_never_published_are_forgotten() -> None:
    """Requests that are aborted once their pull has ended leave such. The engine cannot have more than its slots."""
    tier, _ = new_tier(slots=1)
    publish(tier, 1, 2, 3)
    copy(tier, 1)
    tier.lent(name(number) for number in (2, 3, *range(1000, 1000 + FIRST - 1)))
    assert len(copy(tier, 2)) == 1
    tier.clear()
    publish(tier, 4, 5)
    copy(tier, 4)
    tier.lent(name(number) for number in (*range(1000, 1000 + FIRST - 1), 5))
    assert copy(tier, 5) == []


def test_nothing_goes_for_a_block_that_a_peer_has_lent() -> None:
    """While there is room it is copied, too; once the engine has given it away it is a block like any other."""
    tier, sink = new_tier(slots=2)
    publish(tier, 1, 2, 3)
    tier.lent([name(1), name(2), name(3)])
    copy(tier, 1, 2)
    assert copy(tier, 3) == []
    assert sorted(sink.slots.values()) == [name(1), name(2)]
    tier.engine_gives(3)
    publish(tier, 3)
    assert len(copy(tier, 3)) == 1


def test_copy_of_what_a_peer_has_lent_makes_room_first() -> None:
    """Though the engine gives it up soon, or has: the peer's copy is enough, and the other block has no other."""
    clock = FakeClock()
    tier, sink = new_tier(slots=2, clock=clock)
    publish(tier, 1, 2, 3, 4)
    copy(tier, 1)
    clock.advance(1.0)
    tier.lent([name(2)])
    copy(tier, 2)
    tier.order([2])
    tier.engine_gives(2)
    copy(tier, 3)
    assert sorted(sink.slots.values()) == [name(1), name(3)]
    tier.engine_gives(3)
    tier.lent([name(3)])
    copy(tier, 4)
    assert sorted(sink.slots.values()) == [name(1), name(4)]


def test_what_no_peer_holds_any_more_is_kept_like_any_other() -> None:
    """The only copy of a fleet is no spare one, be it in the tier or still in the engine."""
    clock = FakeClock()
    tier, sink = new_tier(slots=2, clock=clock)
    publish(tier, 1, 2, 3)
    tier.lent([name(1), name(3)])
    copy(tier, 2)
    clock.advance(1.0)
    copy(tier, 1)
    tier.engine_gives(1)
    assert copy(tier, 3) == []
    assert tier.wanted == set()
    tier.owned([name(1), name(3)])
    assert tier.wanted == {3}
    copy(tier, 3)
    assert sorted(sink.slots.values()) == [name(1), name(3)]


@pytest.mark.parametrize("ordering", [True, False])
def test_peers_are_believed_to_hold_what_they_have_lent_for_a_while(ordering: bool) -> None:
    """Unless the index says so again; also where no step wants anything copied. They give blocks up without a word."""
    clock = FakeClock()
    tier, _ = new_tier(slots=2, clock=clock)
    publish(tier, 1, 2, 3)
    tier.lent([name(1), name(3)])
    copy(tier, 1, 2)
    tier.engine_gives(1)
    assert copy(tier, 3) == []

    def lent() -> set[int]:
        """Return which of the two blocks are still taken to be at a peer."""
        if ordering:
            tier.order([])
        tier.record_metrics()
        return ({1} if tier.ledger.spare else set()) | ({3} - tier.wanted)

    clock.advance(LENT_S - 1)
    assert lent() == {1, 3}
    tier.still_lent([name(1), name(2), name(9)])
    clock.advance(1)
    assert lent() == {1}
    clock.advance(LENT_S - 2)
    assert lent() == {1}
    clock.advance(1)
    assert lent() == set()
