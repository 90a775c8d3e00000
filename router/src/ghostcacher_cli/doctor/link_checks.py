"""The link matrix: a timed pull between every two ranks that share blocks, made now, by the ranks themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ghostcacher_cli.doctor.report import Check, fail, ok
from ghostcacher_connector.core.errors import ProtocolError
from ghostcacher_connector.core.index.base import BlockIndex
from ghostcacher_connector.core.index.link_report import LinkReport, links_report, unpack
from ghostcacher_connector.core.types import WorkerRecord
from ghostcacher_connector.worker.link_probe import request_probes

POLL_S = 0.2


class Pair(NamedTuple):
    """A rank of one worker that reads the same rank of another worker of its namespace."""

    namespace: str
    reader: str
    rank: int
    owner: str

    def __str__(self) -> str:
        return f"{self.reader}:{self.rank} <- {self.owner}:{self.rank}"


def pairs_of(records: Sequence[WorkerRecord]) -> list[Pair]:
    """Return every pair that may pull: both in one namespace, the reader pulling and the owner publishing."""
    return [
        Pair(reader.namespace, reader.worker, endpoint.rank, owner.worker)
        for reader in records
        if reader.role.pulls
        for owner in records
        if owner.namespace == reader.namespace and owner.worker != reader.worker and owner.role.publishes
        for endpoint in reader.ranks
    ]


def ask(index: BlockIndex, records: Sequence[WorkerRecord]) -> dict[tuple[str, str], str]:
    """Ask every worker that is in a pair to time its links; return ``(namespace, worker) -> id`` of the requests."""
    readers = {(pair.namespace, pair.reader) for pair in pairs_of(records)}
    now = time.time()
    return {
        (record.namespace, record.worker): request_probes(index, record, at=now).id
        for record in records
        if (record.namespace, record.worker) in readers
    }


def collect(
    index: BlockIndex,
    records: Sequence[WorkerRecord],
    asked: dict[tuple[str, str], str],
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> dict[Pair, LinkReport]:
    """Wait at most `timeout_s` for a fresh report of every pair; return those that came. Raises IndexUnavailable."""
    until = clock() + timeout_s
    found: dict[Pair, LinkReport] = {}
    open_pairs = pairs_of(records)
    while open_pairs:
        for namespace, reader, rank in {pair[:3] for pair in open_pairs}:
            stored = index.reports(namespace, reader, links_report(rank))
            found.update(_fresh(namespace, reader, rank, stored, asked[namespace, reader]))
        open_pairs = [pair for pair in open_pairs if pair not in found]
        if clock() >= until:
            break
        time.sleep(POLL_S if open_pairs else 0)
    return found


def _fresh(
    namespace: str, reader: str, rank: int, stored: dict[str, bytes], request: str
) -> Iterator[tuple[Pair, LinkReport]]:
    for field, packed in stored.items():
        owner = field.partition(":")[2]
        try:
            report = unpack(packed, LinkReport)
        except ProtocolError:
            continue
        if report.request == request:
            yield Pair(namespace, reader, rank, owner), report


def check_links(records: Sequence[WorkerRecord], found: dict[Pair, LinkReport], timeout_s: float) -> Iterator[Check]:
    """Yield one line a pair."""
    pairs = pairs_of(records)
    if records and not pairs:
        yield ok("links", "no two live workers share a namespace: nobody to pull from")
    for pair in pairs:
        link = found.get(pair)
        name = f"link {pair}"
        if link is None:
            yield fail(
                name,
                f"no timed pull within {timeout_s:.0f} s",
                f"look at the log of {pair.reader}; raise --timeout when there are many workers",
            )
        elif not link.ok:
            yield fail(name, link.error, unreachable_fix(pair.owner))
        else:
            yield ok(name, describe(link))


def describe(link: LinkReport) -> str:
    """Return what was measured: ``nixl, 4.21 GB/s, round trip 12 us``."""
    rate = f", {link.bytes_per_s / 1e9:.2f} GB/s" if link.bytes_per_s else ""
    rtt = f", round trip {link.rtt_us:.0f} us" if link.rtt_us is not None else ""
    return f"{link.transport}{rate}{rtt}"


def unreachable_fix(owner: str) -> str:
    return (
        f"give both hosts a way: shared memory (one host, one IPC namespace, e.g. --ipc=host), RDMA, or a relay "
        f"(relay_listen on {owner}, the same relay_token on all, its port open); look at NIXL's lines in both logs"
    )
