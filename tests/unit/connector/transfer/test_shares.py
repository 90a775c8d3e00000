"""Which rank of another worker has the same part of a block."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.transfer.shares import Share

SIZES = st.integers(1, 8)


def test_ranks_that_hold_one_share_each_read_from_the_rank_of_their_number() -> None:
    assert [Share.of(rank, 4, 4).rank_in(4) for rank in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("readers", "owners", "read"),
    [
        (4, 2, [0, 1, 0, 1]),
        (2, 4, [0, 1]),
        (3, 1, [0, 0, 0]),
    ],
)
def test_replicas_are_read_by_turns(readers: int, owners: int, read: list[int]) -> None:
    assert [Share.of(rank, readers, 1).rank_in(owners) for rank in range(readers)] == read


@given(shares=SIZES, own_copies=SIZES, their_copies=SIZES, data=st.data())
def test_rank_that_is_read_has_the_same_share(
    shares: int, own_copies: int, their_copies: int, data: st.DataObject
) -> None:
    own = Share.of(data.draw(st.integers(0, shares * own_copies - 1)), shares * own_copies, shares)
    rank = own.rank_in(shares * their_copies)
    assert rank is not None
    assert Share.of(rank, shares * their_copies, shares).number == own.number


@pytest.mark.parametrize("ranks", [0, 1, 3])
def test_worker_with_no_rank_for_each_share_has_none(ranks: int) -> None:
    """Such a record was not written by a worker of this namespace."""
    assert Share.of(2, 4, 2).rank_in(ranks) is None
