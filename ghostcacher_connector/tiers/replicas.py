"""Which blocks of a prompt this worker has to keep, so that the fleet has enough copies of them.

What lies in tools and system texts is to be in the tiers of `replicas_min` workers at least. Which of its holders these
are, each of them finds out for itself from what the index says: all put the holders of a prompt into the same order,
and the first ones *keep* it. A copy is then not given up by two workers, each of which sees that of the other.

Everything here is a hint. Who is told of holders that there are not gives up a copy like any other block; who cannot
ask the index keeps what it has. Copies come from pulls alone: where fewer workers hold a block than are to, all of them
keep it, and that is all.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from ghostcacher_connector.core.types import BlockHash, PrefixHit, SectionType

REPLICATED = frozenset({SectionType.TOOLS, SectionType.SYS})


class Replicas:
    """One worker's part in it."""

    def __init__(self, worker: str, replicas_min: int) -> None:
        """worker: its name. replicas_min: copies that the fleet is to have."""
        self._worker = worker
        self._replicas_min = replicas_min

    def kept_from(self, root: BlockHash, hits: Iterable[PrefixHit]) -> int | None:
        """Return the first block of a prompt that this worker has to keep, with all that follow; None: there is none.

        root: the prompt's first block. hits: what other workers hold of it.
        """
        if not self._replicas_min:
            return None
        own = _place(root, self._worker)
        before = sorted((hit.length for hit in hits if _place(root, hit.worker) < own), reverse=True)
        return before[self._replicas_min - 1] if len(before) >= self._replicas_min else 0


def _place(root: BlockHash, worker: str) -> bytes:
    """Return by what the holders of a prompt are ordered: so that no worker keeps more than its part of all prompts."""
    return blake2b(root + worker.encode(), digest_size=8).digest()
