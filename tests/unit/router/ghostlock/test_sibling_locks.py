"""The ghost locks of the processes of one router: one gets a lock, at once, and the others learn whose it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.ghostlock.sibling_locks import (
    BUCKETS,
    NOBODY_ASKED,
    PLACES,
    RECORD_TRIES,
    RECORDS,
    WAYS,
    WORD,
    Grant,
    SiblingLocks,
    shared_file,
)

TTL_S = 2.0
SALT = b"\x07" * WORD
CONTENDER = """
import sys, time
from ghostcacher_router.ghostlock.sibling_locks import NOBODY_ASKED, SiblingLocks
locks = SiblingLocks(int(sys.argv[1]), int(sys.argv[2]), time.monotonic)
print("ready", flush=True)
sys.stdin.readline()
for number in range(2000):
    keys = [number.to_bytes(16, "little"), (number + 10**6).to_bytes(16, "little")]
    while (grant := locks.take(keys, "w", 0.0, 3600.0)) == NOBODY_ASKED:
        pass
    print(number if grant.token else "")
"""
HOLDER = (
    "import fcntl, sys; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX); print('held', flush=True); sys.stdin.readline()"
)


def key(number: int) -> bytes:
    """A key as the lock table makes them: a salt, and a digest."""
    return SALT + number.to_bytes(16, "little")


class Processes:
    """Two processes, as far as their memory goes. Time passes when it is told to."""

    def __init__(self, file: int) -> None:
        self.file, self.now = file, 100.0
        self.a, self.b = (SiblingLocks(file, number, lambda: self.now) for number in range(2))

    def take(self, locks: SiblingLocks, *numbers: int, worker: str = "w1", replaced: int | None = None) -> Grant:
        return locks.take([key(number) for number in numbers], worker, self.now + 1.0, TTL_S, replaced=replaced)

    def taken(self, locks: SiblingLocks, *numbers: int) -> int:
        token = self.take(locks, *numbers).token
        assert token is not None
        return token


@pytest.fixture
def both() -> Iterator[Processes]:
    file = shared_file()
    yield Processes(file)
    os.close(file)


def started(program: str, *arguments: object, file: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", program, str(file), *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[file], env=env)


def test_one_gets_it_the_other_learns_whose_it_is(both: Processes) -> None:
    """Of the keys that are in the way, with the worker and when it will be ready; none of the others is taken."""
    token = both.taken(both.a, 1, 2, 3)
    refused = both.take(both.b, 0, 2, 3, 4, worker="w2")
    assert refused.token is None
    ((held, keys),) = refused.held.items()
    assert (held.token, held.worker, held.ready_at, keys) == (token, "w1", both.now + 1.0, [key(2), key(3)])
    assert both.take(both.b, 0, 4).token is not None


def test_others_learn_when_it_counts(both: Processes) -> None:
    """Not before the store has granted it; then also by which token."""
    token = both.taken(both.a, 1)
    found = both.b.look(token)
    assert found is not None
    assert (found.granted, found.store_token) == (False, None)
    both.a.grant(token, 77)
    found = both.b.look(token)
    assert found is not None
    assert (found.granted, found.store_token) == (True, 77)


def test_released_lock_is_over_at_once(both: Processes) -> None:
    """Whoever comes next gets it, and an old token ends nothing."""
    token = both.taken(both.a, 1)
    both.a.release(token)
    assert both.b.look(token) is None
    again = both.taken(both.b, 1)
    both.a.release(token)
    assert both.b.look(again) is not None


def test_lock_of_a_dead_process_runs_out(both: Processes) -> None:
    """Nobody renews it; who does so too late has lost it."""
    kept, lost = both.taken(both.a, 1), both.taken(both.a, 2)
    both.now += 0.75 * TTL_S
    assert both.a.renew(kept, TTL_S)
    both.now += 0.75 * TTL_S
    assert both.b.look(kept) is not None
    assert both.b.look(lost) is None
    assert not both.a.renew(lost, TTL_S)
    assert both.take(both.b, 2).token is not None


def test_one_of_many_takes_over(both: Processes) -> None:
    """Who saw the overdue lock replaces it; who saw it as well, and comes later, meets the one that replaced it."""
    overdue = both.taken(both.a, 1)
    first = both.take(both.b, 1, worker="w2", replaced=overdue)
    second = both.take(both.b, 1, worker="w3", replaced=overdue)
    assert first.token is not None
    assert [held.worker for held in second.held] == ["w2"]
    assert not both.a.renew(overdue, TTL_S)


def test_old_token_changes_no_other_lock(both: Processes) -> None:
    """Though its record is that lock's now."""
    old = both.taken(both.a, 1)
    both.a.release(old)
    while (new := both.taken(both.b, 1)) != old + RECORDS:
        both.b.release(new)
    both.a.release(old)
    assert not both.a.renew(old, 10 * TTL_S)
    both.a.grant(old, 77)
    both.take(both.a, 2, replaced=old)
    found = both.a.look(new)
    assert found is not None
    assert not found.granted
    both.now += TTL_S
    assert both.a.look(new) is None


def test_full_bucket_loses_a_key_and_nothing_else(both: Processes) -> None:
    """The lock is granted, and its other keys are held."""
    crowd = [number * BUCKETS for number in range(1, WAYS + 2)]
    for number in crowd:
        both.taken(both.a, number, 10**9 + number)
    held = [bool(both.take(both.b, number).held) for number in crowd]
    assert held == [True] * WAYS + [False]
    assert all(both.take(both.b, 10**9 + number).held for number in crowd[:WAYS])


def test_too_many_locks_are_not_asked_for(both: Processes) -> None:
    """As when there were no other processes; when one is over, there is room again."""
    tokens = [both.taken(both.a) for _ in range(RECORDS)]
    assert both.take(both.b, 1) == NOBODY_ASKED
    for token in tokens[:RECORD_TRIES]:
        both.a.release(token)
    assert both.take(both.b, 1).token is not None


def test_longest_name_of_a_worker_fits(both: Processes) -> None:
    """Byte for byte."""
    token = both.take(both.a, 1, worker="w" * 255).token
    assert token is not None
    found = both.b.look(token)
    assert found is not None
    assert found.worker == "w" * 255


def test_routers_are_those_that_are_here(both: Processes) -> None:
    """Until they say that they leave, or have said nothing for too long; a place is used again."""
    assert both.a.routers() == 0
    both.a.here_until(both.now + 5)
    both.b.here_until(both.now + 7)
    assert both.a.routers() == 2
    both.now += 6
    assert both.a.routers() == 1
    SiblingLocks(both.file, 1 + PLACES, lambda: both.now).here_until(0.0)
    assert both.a.routers() == 0


def test_memory_of_another_version_is_refused(both: Processes) -> None:
    """A file that is laid out otherwise, or is no such file."""
    os.ftruncate(both.file, 4096)
    with pytest.raises(ValueError, match="expected layout 1 of"):
        SiblingLocks(both.file, 3, lambda: 0.0)


@given(st.data())
def test_any_order_of_events_is_as_with_one_table(data: st.DataObject) -> None:
    """Taken, renewed, released, replaced, run out: each key has at most one live lock, the same for all."""
    file = shared_file()
    both, model = Processes(file), dict[int, tuple[set[int], float]]()
    for _ in range(data.draw(st.integers(1, 20))):
        locks, what = data.draw(st.sampled_from([both.a, both.b])), data.draw(st.sampled_from("ttrlw"))
        model = {token: lock for token, lock in model.items() if lock[1] > both.now}
        token = data.draw(st.sampled_from(sorted(model))) if model else 0
        if what == "t":
            wanted = data.draw(st.sets(st.sampled_from([1, 2, 1 + BUCKETS, 2 + BUCKETS]), min_size=1))
            replaced = data.draw(st.sampled_from([None, token or None]))
            if replaced is not None:
                del model[replaced]
            grant = both.take(locks, *wanted, replaced=replaced)
            expected = {other for other, (keys, _) in model.items() if keys & wanted}
            assert {held.token for held in grant.held} == expected
            assert (grant.token is not None) == (not expected)
            if grant.token is not None:
                assert grant.token not in model
                model[grant.token] = wanted, both.now + TTL_S
        elif what == "r":
            locks.release(token)
            model.pop(token, None)
        elif what == "l" and token:
            assert locks.renew(token, TTL_S)
            model[token] = model[token][0], both.now + TTL_S
        elif what == "w":
            both.now += data.draw(st.sampled_from([0.5, TTL_S]))
    os.close(file)


def test_two_programs_at_once_never_both_get_one(both: Processes) -> None:
    """Real processes, the same keys in the same order."""
    programs = [started(CONTENDER, number, file=both.file) for number in range(2)]
    for program in programs:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("\n")
        program.stdin.flush()
    granted = [{int(line) for line in program.communicate()[0].split()} for program in programs]
    assert granted[0] & granted[1] == set()
    assert granted[0] | granted[1] == set(range(2000))


def test_program_that_hangs_in_its_turn_holds_up_nobody(both: Processes) -> None:
    """Others do without; when it is gone, all is as before."""
    holder = started(HOLDER, file=both.file)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert both.take(both.a, 1) == NOBODY_ASKED
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert both.take(both.a, 1).token is not None
