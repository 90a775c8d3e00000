"""Whose a name is, in every index: two live engines never displace each other under one."""

from __future__ import annotations

import pytest

from ghostcacher_connector.core.index.base import BlockIndex, NameHolder, ref_of
from tests.contract.conftest import Subject
from tests.support.index_parts import chain, entries, make_record, wait_until

LEASE_S = 30.0
SHORT_LEASE_S = 0.2


def test_name_of_a_live_engine_is_refused_to_another(index: BlockIndex) -> None:
    """The first one stays, with all that it published; the second is told who it is, and keeps asking in vain."""
    first, second, blocks = make_record(token="one"), make_record(token="two"), chain(3)
    assert index.join(first, lease_ttl_s=LEASE_S) is None
    index.apply(ref_of(first), entries(blocks), [], lease_ttl_s=LEASE_S)
    for _ in range(2):
        assert index.join(second, lease_ttl_s=LEASE_S) == NameHolder(first.incarnation, first)
        assert index.workers() == [first]
        assert index.lookup([ref_of(first)], blocks)[0].length == 3
        assert index.renew(first, lease_ttl_s=LEASE_S).holder is None


def test_name_is_free_when_the_lease_has_ended(subject: Subject) -> None:
    """An engine that died, or hangs, holds its name no longer than its lease."""
    index, dead, next_one = subject.index, make_record(token="one"), make_record(token="two")
    index.join(dead, lease_ttl_s=SHORT_LEASE_S)

    def joined() -> bool:
        subject.pass_time()
        return index.join(next_one, lease_ttl_s=LEASE_S) is None

    wait_until(joined)
    assert index.workers() == [next_one]
    # The first was only stopped: it goes on, and hears whose its name is now.
    assert index.renew(dead, lease_ttl_s=LEASE_S).holder == NameHolder(next_one.incarnation, next_one)
    assert index.workers() == [next_one]


def test_name_is_free_at_once_when_its_engine_leaves(index: BlockIndex) -> None:
    """Nothing of the one that left stands in the way."""
    first, second = make_record(token="one"), make_record(token="two")
    index.join(first, lease_ttl_s=LEASE_S)
    index.leave(ref_of(first))
    assert index.join(second, lease_ttl_s=LEASE_S) is None
    # Leaving once more, as a process does that hangs at its end, frees nothing of the other.
    index.leave(ref_of(first))
    assert index.join(first, lease_ttl_s=LEASE_S) == NameHolder(second.incarnation, second)


def test_process_replaces_its_own_earlier_incarnation(index: BlockIndex) -> None:
    """A worker whose bumps were lost, or whose weights have changed, begins anew under its name."""
    old, new, blocks = make_record(token="one"), make_record(token="one"), chain(3)
    index.join(old, lease_ttl_s=LEASE_S)
    index.apply(ref_of(old), entries(blocks), [], lease_ttl_s=LEASE_S)
    assert index.join(new, lease_ttl_s=LEASE_S) is None
    assert index.workers() == [new]
    assert index.lookup([ref_of(old)], blocks) == []
    assert index.renew(old, lease_ttl_s=LEASE_S).holder == NameHolder(new.incarnation, new)


def test_process_that_has_ended_is_replaced_and_no_other(index: BlockIndex) -> None:
    """Its lease counts no more; that of whoever has the name meanwhile does."""
    dead, heir, late = make_record(token="one"), make_record(token="two"), make_record(token="three")
    index.join(dead, lease_ttl_s=LEASE_S)
    assert index.join(heir, lease_ttl_s=LEASE_S, replaces="one") is None
    assert index.join(late, lease_ttl_s=LEASE_S, replaces="one") == NameHolder(heir.incarnation, heir)
    assert index.workers() == [heir]


@pytest.mark.parametrize("token", [None, "two"])
def test_record_without_an_owner_is_replaced(index: BlockIndex, token: str | None) -> None:
    """Earlier versions name no owner: among them the later join wins, as it always did."""
    old, new = make_record(), make_record(token=token)
    index.join(old, lease_ttl_s=LEASE_S)
    assert index.join(new, lease_ttl_s=LEASE_S) is None
    assert index.workers() == [new]


def test_same_name_in_another_namespace_is_another_key(index: BlockIndex) -> None:
    """Namespaces may lie on different shards: nothing can refuse one for the other's sake."""
    here, there = make_record(token="one"), make_record(token="two", namespace="other")
    assert index.join(here, lease_ttl_s=LEASE_S) is None
    assert index.join(there, lease_ttl_s=LEASE_S) is None


def test_lost_record_is_entered_again_by_its_owner(subject: Subject) -> None:
    """After a flush of the store the next renewal brings record and hold on the name back."""
    index, record, other = subject.index, make_record(token="one"), make_record(token="two")
    index.join(record, lease_ttl_s=LEASE_S)
    subject.flush()
    assert index.renew(record, lease_ttl_s=LEASE_S).holder is None
    assert index.join(other, lease_ttl_s=LEASE_S) == NameHolder(record.incarnation, record)
