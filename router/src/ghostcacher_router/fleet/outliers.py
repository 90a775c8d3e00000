"""Decides which workers are outliers: their probes are fine, but what they are sent fails. A small outlier detection.

    WELL --ERRORS_MAX failed requests in a row--> EJECTED --its time is over--> RETURNING --RETURN_ANSWERS--> WELL
                                                     ^------ one failed request ------'

An ejected worker gets no requests for `ejection_first_s`, twice as long each time that it fails again, and never longer
than `ejection_max_s`: every exclusion ends by itself. One that returns starts slowly, since it may still fail: one
request in flight, then two, four, eight for each one that it answers; after `return_s` as many as come.

Where no other worker has answered the request that failed, the request may be the reason, and may fail everywhere. On
such evidence alone one worker at a time is ejected.

When more than half of the workers of a model are ejected, the reason is likely none of theirs, and the rest could not
bear the load: all of them are used then (`usable`, a panic rule).

What a failure is, `InFlightTracker` decides. Time passes when `settle` is called: there is no timer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf
from typing import Protocol, TypeVar

from ghostcacher_connector.core.backoff import doubled_s
from ghostcacher_router.fleet.options import FleetOptions

logger = logging.getLogger(__name__)

ERRORS_MAX = 5
"""Failed requests in a row that eject a worker: Envoy's default. One in ten that fails by chance ejects hardly ever."""

RETURN_ANSWERS = 4
"""Answers after which a worker that has returned is as good as any other."""


class Named(Protocol):
    @property
    def name(self) -> str: ...


Worker = TypeVar("Worker", bound=Named)


class _Record:
    """What is known of a worker at which requests have failed. Times are of the loop's clock, in seconds."""

    __slots__ = ("answers", "ejected_until", "ejections", "failures", "returned_at", "sure", "why")

    def __init__(self) -> None:
        self.failures = 0
        """Requests in a row that failed."""
        self.sure = False
        """Whether another worker has answered one of these, or of those for which it is ejected."""
        self.ejections = 0
        """How often in a row it was ejected; 0 while it is well."""
        self.ejected_until: float | None = None
        """None while it is not ejected."""
        self.returned_at = 0.0
        """When its last ejection ended."""
        self.answers = 0
        """Requests that it has answered since then."""
        self.why = ""
        """The last failure, for people."""


class Outliers:
    """The workers at which requests fail. On the event loop only.

    clock: in seconds. count: called with the kind of the failure at each ejection. changed: called after a worker was
    ejected, or has returned.
    """

    def __init__(
        self,
        options: FleetOptions,
        clock: Callable[[], float],
        *,
        count: Callable[[str, str], None],
        changed: Callable[[], None],
    ) -> None:
        self._options, self._clock, self._count, self._changed = options, clock, count, changed
        self._records: dict[str, _Record] = {}
        self.due = inf
        """When `settle` has to be called next; loop clock, s."""

    def __repr__(self) -> str:
        return f"Outliers(ejected={sorted(self.ejected)}, returning={sorted(self.limits())})"

    def doubts(self, worker: str) -> bool:
        """Say whether the last request failed at a worker, or it has not yet answered enough since it was ejected."""
        return worker in self._records

    def failed(self, worker: str, kind: str, why: str, *, sure: bool) -> None:
        """Note that a request failed at a worker, and likely not for the request's sake.

        kind: a label of metrics. why: for people. sure: another worker has answered the same request.
        """
        record = self._records.setdefault(worker, _Record())
        if record.ejected_until is not None:
            return  # It was sent before, or since nobody else is left.
        record.failures += 1
        record.sure |= sure
        record.why = why
        if (record.ejections or record.failures >= ERRORS_MAX) and (record.sure or not self._has_unsure_ejection):
            self._eject(worker, record, kind)

    def answered(self, worker: str) -> None:
        """Note that a worker answered a request."""
        record = self._records.get(worker)
        if record is None:
            return
        record.failures = 0
        if record.ejected_until is not None:
            return
        record.answers += 1
        if not record.ejections or record.answers >= RETURN_ANSWERS:
            self.forget(worker)

    def forget(self, worker: str) -> None:
        """Take a worker for well: it is, or another incarnation of it comes, or its probes have the say now."""
        record = self._records.pop(worker, None)
        if record is not None and record.ejected_until is not None:
            self._set_due()
            self._changed()

    def settle(self) -> None:
        """Let the ejections end whose time is over."""
        now = self._clock()
        for worker, record in self._records.items():
            if record.ejected_until is not None and record.ejected_until <= now:
                record.returned_at, record.ejected_until = record.ejected_until, None
                record.answers, record.sure = 0, False
                logger.info("worker %s: no longer ejected; it gets few requests until it has answered some", worker)
        self._set_due()
        self._changed()

    @property
    def ejected(self) -> Collection[str]:
        """Return the workers that are to get no requests."""
        return {worker for worker, record in self._records.items() if record.ejected_until is not None}

    def why(self, worker: str) -> str | None:
        """Say why a worker is ejected, and for how long; None when it is not."""
        record = self._records.get(worker)
        if record is None or record.ejected_until is None:
            return None
        left_s = max(0.0, record.ejected_until - self._clock())
        times = f", {record.ejections} times in a row" if record.ejections > 1 else ""
        return f"ejected for {left_s:.1f} s more{times}: its requests fail, the last one: {record.why}"

    def limits(self) -> Mapping[str, int]:
        """Return how many requests of this router may be in flight at workers that have just returned, by name."""
        if not self._records:
            return {}
        since = self._clock() - self._options.return_s
        return {
            worker: 1 << record.answers
            for worker, record in self._records.items()
            if record.ejections and record.ejected_until is None and record.returned_at > since
        }

    @property
    def _has_unsure_ejection(self) -> bool:
        return any(record.ejected_until is not None and not record.sure for record in self._records.values())

    def _eject(self, worker: str, record: _Record, kind: str) -> None:
        options = self._options
        left_out_s = doubled_s(options.ejection_first_s, options.ejection_max_s, record.ejections)
        record.ejections += 1
        record.ejected_until = self._clock() + left_out_s
        logger.warning(
            "worker %s: ejected for %g s, %d requests failed in a row, the last one: %s",
            worker,
            left_out_s,
            record.failures,
            record.why,
        )
        record.failures = 0
        self._count(worker, kind)
        self._set_due()
        self._changed()

    def _set_due(self) -> None:
        ends = [record.ejected_until for record in self._records.values() if record.ejected_until is not None]
        self.due = min(ends, default=inf)


def usable(ready: Sequence[Worker], ejected: Collection[str]) -> list[Worker]:
    """Return those of the READY workers that are not ejected; all of them, when fewer than half would be left."""
    kept = [worker for worker in ready if worker.name not in ejected]
    return kept if 2 * len(kept) >= len(ready) else list(ready)
