"""At which boundaries a prompt is locked."""

from __future__ import annotations

from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.ghostlock.ghost_lock import KEYS_MAX, lock_boundaries
from ghostcacher_simulator.text import text_of
from tests.support.routing_sim import prompt_of

DOC = text_of("document", 4000)
PROMPT = prompt_of(DOC + b"question" * 100, [(SectionType.DOC, len(DOC))])
OTHER = prompt_of(DOC + b"another" * 100, [(SectionType.DOC, len(DOC))])


def test_lock_boundaries_are_few_and_shared() -> None:
    """Ends of sections and powers of two: prompts that share much meet in one, however long they are."""
    long = prompt_of(text_of("long", 200_000))
    keys = lock_boundaries(long, range(len(long.ends)))
    assert len(keys) <= KEYS_MAX
    shared = {PROMPT.digests[n] for n in lock_boundaries(PROMPT, range(len(PROMPT.ends)))}
    shared &= {OTHER.digests[n] for n in lock_boundaries(OTHER, range(len(OTHER.ends)))}
    assert PROMPT.digests[PROMPT.ends.index(len(DOC))] in shared
    assert lock_boundaries(PROMPT, [1]) == [1]
