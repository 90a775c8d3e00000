"""Which part of every block a rank has, and which ranks of other workers have the same part.

A block is divided into shares: one for each pipeline stage and, where ranks of another number hold something else
altogether, for each rank. In every worker of a namespace there are as many. How many ranks have one share is up to
the worker's size:

    replicas    each of them has all of the share, and any can be read
    parts       each has some heads. They are side by side in a row, in order: so a rank's own are a part of the row of
                one rank of a worker with fewer ranks, or the rows of several ranks of a worker with more
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from ghostcacher_connector.core.types import RankEndpoint, Segment, SlotMemory


class RowPart(NamedTuple):
    """One of some equal parts of every row."""

    number: int
    """Which one it is, from 0 on."""
    of: int
    """How many there are."""


WHOLE = RowPart(0, 1)


class Piece(NamedTuple):
    """What a rank reads from one rank of another worker."""

    rank: int
    """The rank to read."""
    theirs: RowPart
    """The part of that rank's rows to read."""
    ours: RowPart
    """The part of the reader's rows that it fills."""


class Share(NamedTuple):
    """The part of each block that one rank has."""

    rank: int
    """The rank's number in its worker."""
    number: int
    """Which of the shares it has, from 0 on."""
    share_count: int
    """How many shares make a block."""
    place: int = 0
    """Which of its worker's ranks with this share it is, from 0 on."""
    ranks: int = 1
    """How many ranks of its worker have this share."""
    divided: bool = False
    """Whether these have a part of it each, and no replicas."""

    @classmethod
    def of(cls, rank: int, rank_count: int, share_count: int, *, divided: bool = False) -> Share:
        """Return the share of a rank of a worker, all of whose shares have equally many ranks."""
        ranks, rest = divmod(rank_count, share_count)
        assert rest == 0, f"{rank_count} ranks for {share_count} shares"
        return cls(rank, rank // ranks, share_count, rank % ranks, ranks, divided)

    def pieces_in(self, rank_count: int) -> tuple[Piece, ...]:
        """Return what to read of a worker with so many ranks, in order; nothing when it cannot be put together.

        Replicas are read by turns, so that the links of all of them are used.
        """
        ranks, rest = divmod(rank_count, self.share_count)
        if rest or not ranks:
            return ()
        first = self.number * ranks
        if not self.divided:
            return (Piece(first + self.place % ranks, WHOLE, WHOLE),)
        if ranks % self.ranks == 0:
            count = ranks // self.ranks
            return tuple(Piece(first + self.place * count + i, WHOLE, RowPart(i, count)) for i in range(count))
        if self.ranks % ranks == 0:
            count = self.ranks // ranks
            return (Piece(first + self.place // count, RowPart(self.place % count, count), WHOLE),)
        return ()


def part_of_memory(memory: SlotMemory, part: RowPart) -> SlotMemory:
    """Return a memory whose rows are a part of another's. The caller has checked that they can be divided so."""
    return memory if part == WHOLE else replace(memory, segments=tuple(_part(row, part) for row in memory.segments))


def part_of_rank(endpoint: RankEndpoint, theirs: RowPart, ours: RowPart) -> RankEndpoint:
    """Return a rank as if it had only what is read of its rows.

    No relay serves it then: a relay sends whole rows, to be put into whole rows.
    """
    if theirs == ours == WHOLE:
        return endpoint
    return replace(endpoint, memories=tuple(part_of_memory(memory, theirs) for memory in endpoint.memories), relay=None)


def _part(rows: Segment, part: RowPart) -> Segment:
    size = rows.slot_bytes // part.of
    return replace(rows, base=rows.base + part.number * size, slot_bytes=size)
