"""Timed pulls on request: how `ghostcacher doctor` learns how every rank reads every other one.

    doctor --"probe_request"--> index <--polls-- responder of each rank --probes--> peers
    doctor <---------------- "links.<rank>", "selfcheck.<rank>" in the index ------'

Each rank stores under report names of its own, since a report is replaced as a whole; what it stores of its links says
core/index/link_report.py. Without requests a rank refreshes its links every `refresh_s`.

Bounds: a request lives `REQUEST_TTL_S`; one answer is at most `PEERS_MAX` probes of `PROBE_TIMEOUT_S`. Everything here
is advice for people: losing any of it harms nothing, and no error of the index leaves the thread.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from functools import partial

import msgspec

from ghostcacher_connector.core.errors import IndexUnavailable, ProtocolError, TransferError
from ghostcacher_connector.core.index.base import BlockIndex, ref_of
from ghostcacher_connector.core.index.link_report import LinkReport, links_report, unpack
from ghostcacher_connector.core.periodic import Periodic
from ghostcacher_connector.core.types import WorkerRecord
from ghostcacher_connector.transfer.base import Probe

logger = logging.getLogger(__name__)

REQUEST_REPORT = "probe_request"
REQUEST_FIELD = "request"
REQUEST_TTL_S = 60.0
REPORT_TTL_S = 900.0
PROBE_TIMEOUT_S = 2.0
PEERS_MAX = 256
ERROR_CHARS_MAX = 500
STOP_TIMEOUT_S = 2.0


class ProbeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Asks every rank of a worker to time its links now."""

    id: str
    at: float
    """Seconds since the epoch."""


class SelfCheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a rank's self-check ended: it read known blocks of its own over the wire."""

    ok: bool
    transport: str | None
    error: str
    at: float


def self_check_report(rank: int) -> str:
    return f"selfcheck.{rank}"


def link_report(probe: Callable[[], Probe], *, at: float, request: str = "") -> LinkReport:
    """Carry out one probe and return how it went; never raises for what the peer or the network does."""
    try:
        seen = probe()
    except (TransferError, ProtocolError) as exc:
        error = f"{type(exc).__name__}: {exc}"[:ERROR_CHARS_MAX]
        return LinkReport(ok=False, transport=None, bytes_per_s=None, rtt_us=None, error=error, at=at, request=request)
    return LinkReport(
        ok=seen.current,
        transport=seen.transport,
        bytes_per_s=len(seen.data) / seen.data_s if seen.data and seen.data_s > 0 else None,
        rtt_us=seen.rtt_s * 1e6,
        error="" if seen.current else "the seal is that of another incarnation",
        at=at,
        request=request,
    )


def request_probes(index: BlockIndex, record: WorkerRecord, *, at: float) -> ProbeRequest:
    """Ask every rank of a worker to time its links; return what its answers will carry. Raises IndexUnavailable."""
    request = ProbeRequest(id=secrets.token_hex(8), at=at)
    fields = {REQUEST_FIELD: msgspec.msgpack.encode(request)}
    index.put_report(ref_of(record), REQUEST_REPORT, fields, ttl_s=REQUEST_TTL_S)
    return request


class ProbeResponder:
    """The thread of one rank that answers probe requests.

    probe: reads from the same rank of a peer, waits at most `PROBE_TIMEOUT_S`, raises TransferError.
    self_check: returns how the rank's self-check ended, None while it has not. Owner of all I/O: one daemon thread;
    `step` is its whole behaviour.
    """

    def __init__(
        self,
        index: BlockIndex,
        record: WorkerRecord,
        probe: Callable[[WorkerRecord], Probe],
        *,
        rank: int = 0,
        self_check: Callable[[], SelfCheckReport | None] = lambda: None,
        interval_s: float = 1.0,
        refresh_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._index = index
        self._record = record
        self._probe = probe
        self._rank = rank
        self._self_check = self_check
        self._interval_s = interval_s
        self._refresh_s = refresh_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._answered = ""
        self._refresh_at = clock()
        self._thread = Periodic(f"gc-probe-{rank}", self._turn)

    def move(self, record: WorkerRecord) -> None:
        """Answer for another incarnation of the worker from now on, its links first."""
        if record != self._record:
            self._record = record
            self._refresh_at = self._clock()

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End the thread, waiting at most `timeout_s` for a probe under way. Idempotent."""
        self._thread.stop(timeout_s)

    def step(self) -> bool:
        """Answer a new request, or refresh when it is time; return whether links were measured."""
        try:
            request = self._asked()
            if request is None and self._clock() < self._refresh_at:
                return False
            self._refresh_at = self._clock() + self._refresh_s
            self._answer(request.id if request is not None else "")
            # Only now: a request that the index cut short is answered again.
            self._answered = request.id if request is not None else self._answered
        except IndexUnavailable as exc:
            logger.debug("probes: %s", exc)
            return False
        return True

    def _turn(self) -> float:
        self.step()
        return self._interval_s

    def _asked(self) -> ProbeRequest | None:
        packed = self._index.reports(self._record.namespace, self._record.worker, REQUEST_REPORT).get(REQUEST_FIELD)
        if packed is None:
            return None
        try:
            request = unpack(packed, ProbeRequest)
        except ProtocolError as exc:
            logger.debug("probe request: %s", exc)
            return None
        return None if request.id == self._answered else request

    def _answer(self, request: str) -> None:
        """Probe every peer and store all that is known so far after each, so that a slow peer hides no other."""
        self._store_self_check()
        records = self._index.workers(self._record.namespace)
        peers = [record for record in records if record.worker != self._record.worker][:PEERS_MAX]
        fields: dict[str, bytes] = {}
        for peer in peers:
            if self._thread.stopping:
                return
            link = link_report(partial(self._probe, peer), at=self._wall_clock(), request=request)
            fields[f"{self._rank}:{peer.worker}"] = msgspec.msgpack.encode(link)
            self._store(links_report(self._rank), fields)

    def _store_self_check(self) -> None:
        report = self._self_check()
        if report is not None:
            self._store(self_check_report(self._rank), {str(self._rank): msgspec.msgpack.encode(report)})

    def _store(self, name: str, fields: dict[str, bytes]) -> None:
        self._index.put_report(ref_of(self._record), name, fields, ttl_s=REPORT_TTL_S)
