"""Names the worker that routers agree on for a prompt without knowing anything of each other.

Of plain engines a router knows only what it has sent them itself. Where several routers share the requests, each would
send a text to another worker, as its own queues happen to be, and all together would compute it everywhere, again and
again. But all of them can name the same worker: the first in rank for that text (hash_ring.py). They mostly send it
there, so it is likely held there, whoever has sent it.

Many prompts begin alike, with a system prompt that soon every worker holds. So the rank is that of the first KiB which
not every worker holds: it is where a document or a conversation begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ghostcacher_router.placement.hash_ring import first_in_rank
from ghostcacher_router.signals.sent_caches import grid_of
from ghostcacher_router.types import GRID_BYTES, Prompt

LIKELY_HELD = 0.7
"""The share of a prompt that its worker is taken to hold where this router sent it nowhere. Others may have, or not:
the larger it is, the better documents are kept together, and the worse prompts of which each is new are spread."""


def with_agreed_worker(prompt: Prompt, held: Mapping[str, int], workers: Sequence[str]) -> dict[str, int]:
    """Return how much of a prompt, from its first byte, each worker likely holds, with what other routers have sent.

    held: the same by what this router has sent. workers: at least one.
    """
    grid, most = grid_of(prompt), max(held.values(), default=0)
    common = min([held.get(worker, 0) for worker in workers]) // GRID_BYTES
    if common >= len(grid):
        return dict(held)
    if most <= common * GRID_BYTES:
        most += int(LIKELY_HELD * (prompt.size - most))
    agreed = first_in_rank(grid[common], workers)
    return {**held, agreed: max(most, held.get(agreed, 0))}
