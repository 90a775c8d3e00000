"""The attempts of one request at workers that did not answer it: what may be tried yet, and whose fault it was. No I/O.

A request is tried at another worker while the client has got nothing of an answer, if

    the connection could not be made                                    at any number of workers, up to `retries_max`
    the connection was closed on it before any byte of an answer,       once: what ends or hangs two workers unanswered
    or the worker hangs                                                 may do so with every worker that it is sent to
    the answer is 503 or 429: the worker is busy, or is about to end    up to `retries_max`
    the answer is another error, and requests have failed there lately  once, for the same reason as above

The latter two are held, and the client gets the last one if nobody answers. Another worker's answer shows that those
before it failed for their own sake (`Placement.failed`). A request that fails wherever it is sent shows nothing of any
of them.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.types import Placement

TURNS_AWAY = frozenset({429, 503})
"""Statuses that say nothing of the request: another worker may take it."""

HELD_BYTES_MAX = 64 << 10
"""Of an answer that turns a request away. A larger one is passed on, as it comes."""

OWN_FAULTS = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})
"""What the router lacks itself when it cannot connect: it says nothing of the worker."""

FAILED_MAX = 2
"""Workers that may close their connection on one request, hang with it, or fail: it may do the same to every other."""

_NOT_IMPLEMENTED = 501
_SERVER_ERROR = 500


class HeldAnswer(NamedTuple):
    """A whole answer that turned a request away, as the client will get it if there is no better one."""

    status: int
    """503 or 429, or of another error."""
    data: bytes
    """Head and body."""
    keep: bool
    """Whether the client may send another request behind it."""
    worker: str
    """The name of the worker."""


class Attempts:
    """What was tried so far for one request. excluded: the workers that are not to be tried again, by name.

    answer: the last answer that turned it away; None when none did.
    """

    __slots__ = ("_erred", "_failed", "_silent", "_silent_workers", "answer", "excluded")

    def __init__(self) -> None:
        self.excluded: frozenset[str] = frozenset()
        self.answer: HeldAnswer | None = None
        self._failed: list[Placement] = []
        self._silent = 0
        self._silent_workers: list[str] = []
        self._erred = 0

    def __repr__(self) -> str:
        return f"Attempts({sorted(self.excluded)}, silent={self._silent_workers})"

    def turns_away(self, status: int, placement: Placement, *, repeatable: bool) -> bool:
        """Say whether an answer of this status is to be held, since another worker may have a better one.

        repeatable: whether another worker may carry out what this one may have carried out.
        """
        if is_error(status):
            return repeatable and not (self._silent or self._erred) and placement.doubtful
        return status in TURNS_AWAY

    def add(
        self,
        placement: Placement,
        *,
        fell_silent: bool = False,
        status: int | None = None,
        answer: HeldAnswer | None = None,
    ) -> None:
        """Note that an attempt has ended without an answer for the client.

        fell_silent: whether the worker closed the connection on it, or hangs. status: of what turned it away. answer:
        the whole of that; None when it broke off.
        """
        self.excluded |= {placement.worker}
        self._failed.append(placement)
        if fell_silent:
            self._silent += 1
            self._silent_workers.append(placement.worker)
        self._erred += status is not None and is_error(status)
        if answer is not None:
            self.answer = answer

    def failed_before(self, placement: Placement, *, fell_silent: bool) -> None:
        """Note that a worker has failed at the first step of a request (`handover.py`), which ends no request.

        However many have fallen silent on it there, one more may.
        """
        self._failed.append(placement)
        if fell_silent:
            self._silent = 1
            self._silent_workers.append(placement.worker)

    def poison(self) -> Refusal | None:
        """Return the error for a request that seems to be what fails, and is not to be tried again; None: go on."""
        if self._silent < FAILED_MAX:
            return None
        count, names = len(self._silent_workers), ", ".join(sorted(self._silent_workers))
        message = (
            f"{count} workers closed the connection on this request without an answer, or hang ({names}); "
            "it is not tried at another one, since the request itself may be the cause"
        )
        return Refusal(502, message, code="closed_unanswered")

    @property
    def spent(self) -> bool:
        """Whether as many workers have failed at it as may."""
        return self._silent + self._erred >= FAILED_MAX

    def answered(self, status: int) -> None:
        """Note the status of the answer that the client gets: one that is no error blames the workers before it."""
        if self._failed and status < _SERVER_ERROR and status not in TURNS_AWAY:
            self._blame(sure=True)

    def ended(self, last: Placement, status: int) -> None:
        """Note that the client has got an answer of this status, from `last`: blame that worker for an error."""
        if status in TURNS_AWAY:
            if not self._failed:
                last.failed(sure=False)
        elif is_error(status) and not self._erred:
            last.failed(sure=False)

    def gave_up(self) -> None:
        """Note that nobody answered: one worker alone is blamed, for nothing tells it from the request."""
        if len(self._failed) == 1:
            self._blame(sure=False)

    def refusal(self) -> Refusal:
        """Return the error for the client when nobody is left to be tried."""
        tried = len(self.excluded)
        return Refusal(502, f"no worker took the request; tried {tried}", code="bad_gateway", retry_after_s=1)

    def _blame(self, *, sure: bool) -> None:
        for placement in self._failed:
            placement.failed(sure=sure)
        self._failed.clear()


def is_error(status: int) -> bool:
    """Say whether a status tells of a failure that may be the worker's or the request's."""
    return status >= _SERVER_ERROR and status != _NOT_IMPLEMENTED and status not in TURNS_AWAY
