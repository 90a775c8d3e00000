"""The ghost locks of all processes of one router, in memory that they share: one of them gets a lock, at once.

memory:  when each process is still a router in the store   PLACES times
         the last token; LAYOUT
         records     RECORDS times: token, expires at, ready at, granted, the store's token, worker
         entries     BUCKETS times WAYS of them: fingerprint of a key, token

A record is a lock, an entry one of its keys. A token names its record (token % RECORDS) and is never given twice, so an
entry counts just while its record has its token, and has not expired: a lock ends by one write, and a process that dies
leaves nothing that has to be put right. Entries are written first, and do not count until the record has the token.

Locks are taken while the kernel's lock on the file is held, for some microseconds; it ends with its process. Who does
not get it after TRIES does without, as if there were no other processes: nobody waits for one that hangs. Whoever holds
a lock changes its record alone, and a record is not given to another lock before RECORDS later ones were taken, so that
this needs no turn. All times are the loop's clock, which is the same in all processes of a machine.

What is lost here, since there was no room or no turn, is a prefix that is computed twice, as with any ghost lock.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence
from tempfile import TemporaryFile
from typing import NamedTuple

from ghostcacher_router.ports import Clock

PLACES = 256
"""More than processes are started within STALE_S: each has one, by its number."""
RECORDS = 4096
RECORD_TRIES = 16
"""Records that are looked at for one that is free. Where none is, the fleet computes thousands of prompts already."""
BUCKETS, WAYS = 1 << 14, 4
"""Entries for as many keys as the records can have, so that a key hardly ever finds its bucket full."""
WORKER_BYTES = 256
WORD = 8
TRIES = 64

LAYOUT = 1
"""To be raised with any change of what is where: a process of a newer version may come to others that run still."""

_LAST, _LAYOUT = PLACES, PLACES + 1
_RECORDS = PLACES + 8
_RECORD = (WORKER_BYTES >> 3) + 5
_ENTRIES = _RECORDS + RECORDS * _RECORD
_BUCKET = 2 * WAYS
BYTES = WORD * (_ENTRIES + BUCKETS * _BUCKET)


class SiblingLock(NamedTuple):
    """A lock as any of the processes sees it."""

    token: int
    worker: str
    """The worker that computes the prefix."""
    ready_at: float
    granted: bool
    """Whether requests may count on it: no other router had it, or none could be asked."""
    store_token: int | None
    """The fencing token that the store has granted."""


class Grant(NamedTuple):
    """What became of a wish for a lock. Neither: nobody could be asked."""

    token: int | None
    """The fencing token, when all keys were free."""
    held: dict[SiblingLock, list[bytes]]
    """The keys that others have."""


NOBODY_ASKED = Grant(None, {})


def shared_file() -> int:
    """Return the number of a file for the memory, in no file system where there can be one. Raises OSError."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("gc-ghost-locks")
    else:
        with TemporaryFile() as file:
            number = os.dup(file.fileno())
    os.ftruncate(number, BYTES)
    os.pwrite(number, LAYOUT.to_bytes(WORD, "little"), _LAYOUT * WORD)
    return number


def check(number: int) -> None:
    """Raise ValueError when a file is another version's."""
    found = int.from_bytes(os.pread(number, WORD, _LAYOUT * WORD), "little"), os.fstat(number).st_size
    if found != (LAYOUT, BYTES):
        raise ValueError(
            f"memory of ghost locks: expected layout {LAYOUT} of {BYTES} bytes, got {found[0]} of {found[1]}"
        )


class SiblingLocks:
    """The memory, as one process sees it. On the event loop only; nothing in it waits or raises."""

    def __init__(self, number: int, process: int, clock: Clock) -> None:
        """number: of the file. process: how many were started before this one. Raises OSError, and as `check` does."""
        check(number)
        self._file, self._clock = number, clock
        self._place = process % PLACES
        self._memory = mmap.mmap(number, BYTES)
        whole = memoryview(self._memory)
        self._words, self._times, self._bytes = whole.cast("Q"), whole.cast("d"), whole

    def __repr__(self) -> str:
        now = self._clock()
        live = sum(self._is_live(self._words[_at(token)], now) for token in range(RECORDS))
        return f"SiblingLocks({self._place}, {live}, routers={self.routers()})"

    # Who takes part

    def here_until(self, until: float) -> None:
        """Note until when this process is a router in the store, as the store has it; 0.0: it has left."""
        self._times[self._place] = until

    def routers(self) -> int:
        """Return how many processes are routers in the store."""
        now = self._clock()
        return sum(until > now for until in self._times[:PLACES])

    # One lock

    def take(
        self, keys: Sequence[bytes], worker: str, ready_at: float, ttl_s: float, *, replaced: int | None = None
    ) -> Grant:
        """Take all of the keys, for `ttl_s`, or none of them.

        replaced: the token of a lock that is over with this, if it still holds.
        """
        if not self._begin():
            return NOBODY_ASKED
        try:
            now, words = self._clock(), self._words
            if replaced is not None and words[_at(replaced)] == replaced:
                words[_at(replaced)] = 0
            token = self._new_token(now)
            if token is None:
                return NOBODY_ASKED
            held: dict[SiblingLock, list[bytes]] = {}
            for key in keys:
                if (other := self._enter(_fingerprint(key), token, now)) is not None:
                    held.setdefault(self._lock(other), []).append(key)
            if held:
                return Grant(None, held)
            self._write(token, worker, ready_at, now + ttl_s)
            return Grant(token, {})
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def look(self, token: int) -> SiblingLock | None:
        """Return a lock; None when it is over."""
        return self._lock(token) if self._is_live(token, self._clock()) else None

    def grant(self, token: int, store_token: int | None) -> None:
        """Let requests count on a lock, which the store has granted, or (None) could not."""
        at = _at(token)
        if self._words[at] == token:
            self._words[at + 4] = store_token or 0
            self._words[at + 3] = 1

    def renew(self, token: int, ttl_s: float) -> bool:
        """Hold a lock for `ttl_s` from now; return whether it was held still."""
        now = self._clock()
        held = self._is_live(token, now)
        if held:
            self._times[_at(token) + 1] = now + ttl_s
        return held

    def release(self, token: int) -> None:
        """End a lock. May be called again."""
        if self._words[_at(token)] == token:
            self._words[_at(token)] = 0

    # Memory

    def _begin(self) -> bool:
        """Take the kernel's lock; return False when others had it all the time."""
        for _ in range(TRIES):
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.sched_yield()
            else:
                return True
        return False

    def _new_token(self, now: float) -> int | None:
        """Return the next token whose record is free; None when there is none."""
        words = self._words
        last = words[_LAST]
        for token in range(last + 1, last + 1 + RECORD_TRIES):
            if not self._is_live(words[_at(token)], now):
                words[_LAST] = token
                words[_at(token)] = 0
                return token
        return None

    def _enter(self, fingerprint: int, token: int, now: float) -> int | None:
        """Enter a key for a token; return the token of another lock that has it."""
        words, room = self._words, None
        first = _ENTRIES + fingerprint % BUCKETS * _BUCKET
        for at in range(first, first + _BUCKET, 2):
            other = words[at + 1]
            if other == token:
                continue
            if self._is_live(other, now):
                if words[at] == fingerprint:
                    return other
            elif room is None:
                room = at
        if room is not None:
            words[room], words[room + 1] = fingerprint, token
        return None

    def _write(self, token: int, worker: str, ready_at: float, expires_at: float) -> None:
        at, name = _at(token), worker.encode()[: WORKER_BYTES - 1]
        self._times[at + 1], self._times[at + 2] = expires_at, ready_at
        self._words[at + 3] = self._words[at + 4] = 0
        begins = WORD * (at + 5)
        self._bytes[begins] = len(name)
        self._bytes[begins + 1 : begins + 1 + len(name)] = name
        self._words[at] = token

    def _lock(self, token: int) -> SiblingLock:
        at = _at(token)
        begins = WORD * (at + 5)
        name = bytes(self._bytes[begins + 1 : begins + 1 + self._bytes[begins]])
        store_token = self._words[at + 4] or None
        granted = bool(self._words[at + 3])
        return SiblingLock(token, name.decode(errors="replace"), self._times[at + 2], granted, store_token)

    def _is_live(self, token: int, now: float) -> bool:
        at = _at(token)
        return token != 0 and self._words[at] == token and self._times[at + 1] > now


def _at(token: int) -> int:
    return _RECORDS + token % RECORDS * _RECORD


def _fingerprint(key: bytes) -> int:
    """Return eight bytes that hardly any other key has: salt and digest look random, whoever has chosen the text."""
    return int.from_bytes(key[:WORD], "little") ^ int.from_bytes(key[WORD : 2 * WORD], "little")
