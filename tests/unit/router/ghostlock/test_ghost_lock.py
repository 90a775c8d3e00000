"""At which boundaries a prompt is locked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.ghostlock.ghost_lock import KEYS_MAX, KIB, lock_boundaries
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


@given(st.integers(1, 40_000), st.lists(st.integers(1, 39_999), max_size=3), st.data())
def test_lock_boundaries_are_those_that_are_free(size: int, sections: list[int], data: st.DataObject) -> None:
    """Of the ends of sections and the powers of two KiB; the last that is free where none of these is."""
    ends = [*sorted({end for end in sections if end < size}), size]
    prompt = prompt_of(text_of("text", size // 4 + 1)[:size].ljust(size), [(SectionType.DOC, end) for end in ends])
    many = len(prompt.ends)
    first = data.draw(st.integers(0, many - 1))
    free = data.draw(
        st.just(range(first, many)) | st.lists(st.integers(first, many - 1), min_size=1, unique=True).map(sorted)
    )
    powers = {KIB << exponent for exponent in range(10)}
    wanted = {*powers, ends[-1]}
    assert lock_boundaries(prompt, free) == ([n for n in free if prompt.ends[n] in wanted] or [free[-1]])
