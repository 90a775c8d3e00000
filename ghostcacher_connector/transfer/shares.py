"""Which part of every block a rank has, and which ranks of other workers have the same part.

A block is divided into shares: one for each pipeline stage and, where ranks hold shards of a layer's heads, for each of
these. Where they hold replicas, several ranks of a worker have the same share, and how many is up to its size.

    shares      0       1          as many in every worker of a namespace
    ranks       0 1     2 3        of a worker with two copies of each share
                0       1          of one with a single copy
"""

from __future__ import annotations

from typing import NamedTuple


class Share(NamedTuple):
    """The part of each block that one rank has."""

    rank: int
    """The rank's number in its worker."""
    number: int
    """Which of the shares it has, from 0 on."""
    share_count: int
    """How many shares make a block."""
    copy: int
    """Which of its worker's ranks with this share it is, from 0 on."""

    @classmethod
    def of(cls, rank: int, rank_count: int, share_count: int) -> Share:
        """Return the share of a rank of a worker, all of whose shares have equally many ranks."""
        copies, rest = divmod(rank_count, share_count)
        assert rest == 0, f"{rank_count} ranks for {share_count} shares"
        return cls(rank, rank // copies, share_count, rank % copies)

    def rank_in(self, rank_count: int) -> int | None:
        """Return the rank to read this share from, of a worker with so many ranks; None where none has it.

        Copies of a share are read by turns, so that the links of all of them are used.
        """
        copies, rest = divmod(rank_count, self.share_count)
        return None if rest or not copies else self.number * copies + self.copy % copies
