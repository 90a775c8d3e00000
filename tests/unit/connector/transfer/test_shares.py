"""Which ranks of another worker have the same part of a block, and what of their rows it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.transfer.shares import WHOLE, Piece, RowPart, Share

SIZES = st.integers(1, 8)


def read_by(ranks: int, rank_count: int, share_count: int, *, divided: bool = False) -> list[tuple[Piece, ...]]:
    """Return what each rank of a worker reads of another worker."""
    shares = [Share.of(rank, ranks, share_count, divided=divided) for rank in range(ranks)]
    return [share.pieces_in(rank_count) for share in shares]


def test_ranks_that_hold_one_share_each_read_from_the_rank_of_their_number() -> None:
    assert read_by(4, 4, 4) == [(Piece(rank, WHOLE, WHOLE),) for rank in range(4)]
    assert read_by(4, 4, 2, divided=True) == read_by(4, 4, 4)


@pytest.mark.parametrize(("readers", "owners", "read"), [(4, 2, [0, 1, 0, 1]), (2, 4, [0, 1]), (3, 1, [0, 0, 0])])
def test_replicas_are_read_by_turns(readers: int, owners: int, read: list[int]) -> None:
    assert read_by(readers, owners, 1) == [(Piece(rank, WHOLE, WHOLE),) for rank in read]


def test_heads_are_part_of_the_row_of_a_rank_that_has_more() -> None:
    halves = [RowPart(0, 2), RowPart(1, 2)]
    assert read_by(4, 2, 1, divided=True) == [(Piece(rank // 2, halves[rank % 2], WHOLE),) for rank in range(4)]


def test_heads_come_from_several_ranks_that_have_fewer() -> None:
    """Of the same stage, which comes first in the order of ranks."""
    halves = [RowPart(0, 2), RowPart(1, 2)]
    assert read_by(2, 4, 2, divided=True) == [
        (Piece(0, WHOLE, halves[0]), Piece(1, WHOLE, halves[1])),
        (Piece(2, WHOLE, halves[0]), Piece(3, WHOLE, halves[1])),
    ]


@given(shares=SIZES, own=SIZES, theirs=SIZES, data=st.data())
def test_rank_that_is_read_has_the_same_share(shares: int, own: int, theirs: int, data: Any) -> None:
    share = Share.of(data.draw(st.integers(0, shares * own - 1)), shares * own, shares)
    (piece,) = share.pieces_in(shares * theirs)
    assert Share.of(piece.rank, shares * theirs, shares).number == share.number


@given(shares=SIZES, own=st.sampled_from([1, 2, 4, 8]), theirs=st.sampled_from([1, 2, 4, 8]))
def test_every_head_comes_from_the_rank_that_has_it(shares: int, own: int, theirs: int) -> None:
    """With eight heads in each share, numbered through."""
    for rank, pieces in enumerate(read_by(shares * own, shares * theirs, shares, divided=True)):
        got: dict[int, int] = {}
        for piece in pieces:
            have, want = 8 // theirs, 8 // own
            count = have // piece.theirs.of
            assert count == want // piece.ours.of
            first = piece.rank * have + piece.theirs.number * count
            got.update({piece.ours.number * count + i: first + i for i in range(count)})
        assert got == {i: rank * (8 // own) + i for i in range(8 // own)}


@pytest.mark.parametrize("ranks", [0, 1, 3])
def test_worker_with_no_rank_for_each_share_has_none(ranks: int) -> None:
    """Such a record was not written by a worker of this namespace."""
    assert Share.of(2, 4, 2).pieces_in(ranks) == ()
    assert Share.of(0, 2, 1, divided=True).pieces_in(3) == ()
