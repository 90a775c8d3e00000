"""The ghost locks that one router knows of: which one covers a prompt, and what is free."""

from __future__ import annotations

from ghostcacher_connector.core.types import SectionType
from ghostcacher_router.ghostlock.ghost_lock import GhostLock
from ghostcacher_router.ghostlock.lock_table import LockTable
from ghostcacher_router.types import Prompt
from ghostcacher_simulator.text import text_of
from tests.support.index_parts import FakeClock
from tests.support.routing_sim import prompt_of

DOC = text_of("document", 4000)
PROMPT = prompt_of(DOC + b"question" * 100, [(SectionType.DOC, len(DOC))])
OTHER = prompt_of(DOC + b"another" * 100, [(SectionType.DOC, len(DOC))])
DOC_END = OTHER.ends.index(len(DOC))


def take(table: LockTable, prompt: Prompt, worker: str = "w1", *, after: int = -1) -> GhostLock:
    lock = table.take("n", prompt, after, worker, 1.0)
    assert lock is not None
    return lock


def test_lock_whose_time_has_run_out_covers_nothing() -> None:
    """It is not found, though nobody has removed it yet, and what it covered can be taken."""
    clock = FakeClock()
    table = LockTable(clock)
    take(table, PROMPT).expires_at = clock() + 1.0
    assert table.find("n", OTHER, -1) is not None
    clock.advance(1.0)
    assert table.find("n", OTHER, -1) is None
    assert len(table.expired()) == len(table) == 1
    after = take(table, OTHER, "w2")
    found = table.find("n", PROMPT, -1)
    assert found is not None
    assert (found.lock, found.boundary) == (after, DOC_END)


def test_removed_lock_leaves_what_another_has_taken() -> None:
    """Removing one whose time had run out, also twice, does not hide the lock that came after it."""
    clock = FakeClock()
    table = LockTable(clock)
    first = take(table, PROMPT)
    first.expires_at = clock()
    second = take(table, PROMPT, "w2")
    for _ in range(2):
        table.remove(first)
        found = table.find("n", PROMPT, -1)
        assert found is not None
        assert found.lock is second
        table.check_invariants()


def test_lock_of_another_router_is_added_where_no_lock_here_is() -> None:
    """A key that is locked here stays so; the other router's lock covers the rest, or is not added at all."""
    clock = FakeClock()
    table, expires_at = LockTable(clock), clock() + 9.0
    mine = take(table, PROMPT)
    beyond = take(LockTable(FakeClock()), OTHER, after=DOC_END)
    table.add_foreign(mine.keys, "w2", 5.0, token=7, expires_at=expires_at)
    assert len(table) == 1
    table.add_foreign([*mine.keys, *beyond.keys], "w2", 5.0, token=7, expires_at=expires_at)
    table.check_invariants()
    found, theirs = (table.find("n", prompt, -1) for prompt in (PROMPT, OTHER))
    assert found is not None
    assert theirs is not None
    assert found.lock is mine
    assert (theirs.lock.worker, theirs.lock.token, theirs.lock.ours, theirs.lock.confirmed) == ("w2", 7, False, True)
    assert theirs.lock.keys == beyond.keys


def test_what_was_looked_at_last_is_locked_as_it_is_asked_for() -> None:
    """Another namespace, another beginning or another prompt than a moment ago is none of what was found then."""
    table = LockTable(FakeClock())
    take(table, prompt_of(b"anything"))
    assert table.find("n", PROMPT, -1) is table.find("m", OTHER, -1) is table.find("n", OTHER, -1) is None
    later = take(table, OTHER, after=DOC_END)
    assert later.digests[0].endswith(OTHER.digests[DOC_END + 1])
    assert table.take("m", OTHER, DOC_END, "w2", 1.0) is not None
    assert table.find("m", PROMPT, -1) is None
    assert table.find("n", PROMPT, -1) is None
    assert take(table, PROMPT).digests[0].endswith(PROMPT.digests[0])
    found, other = table.find("n", OTHER, DOC_END), table.find("m", OTHER, -1)
    assert found is not None
    assert other is not None
    assert (found.lock, found.boundary, other.boundary) == (later, len(OTHER.digests) - 1, len(OTHER.digests) - 1)
    assert other.lock is not later
    table.check_invariants()


def test_keys_for_the_store_are_some_of_what_is_locked() -> None:
    """The end of the document, powers of two and the last one, wherever the cold part begins."""
    lock = take(LockTable(FakeClock()), PROMPT, after=1)
    assert lock.keys is lock.keys
    assert set(lock.keys) < set(lock.digests)
    ends = [PROMPT.ends[2 + lock.digests.index(key)] for key in lock.keys]
    assert ends == [4096, 8192, len(DOC), 16384, PROMPT.size]
