"""The spans of one request in a worker, where it is traced (`tracing`): what the index said, and what was pulled.

ghostcacher.lookup      from the question to the answer, or to giving it up
ghostcacher.pull        from the order to the end on all ranks
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ghostcacher_connector.core.tracing import Tracer
from ghostcacher_connector.core.types import MissReason, PrefixHit
from ghostcacher_connector.pull.accounting import PullReport
from ghostcacher_connector.transfer.base import PullOutcome


def lookup_span(
    tracer: Tracer,
    headers: Mapping[str, str],
    began_at: float,
    ended_at: float,
    *,
    asked: int,
    found: Sequence[PrefixHit] | MissReason,
) -> None:
    """Record a lookup.

    headers: of the request, with its trace. asked: blocks that were asked for. found: the holders, or why
    there are none.
    """
    missed = isinstance(found, MissReason)
    tracer.span("ghostcacher.lookup", began_at, parent=headers).end(
        ended_at,
        outcome=found.value if isinstance(found, MissReason) else "hit",
        blocks_asked=asked,
        holders=0 if missed else len(found),
        blocks_held=0 if isinstance(found, MissReason) or not found else max(hit.length for hit in found),
    )


def pull_span(
    tracer: Tracer, headers: Mapping[str, str], began_at: float, ended_at: float, reports: Sequence[PullReport]
) -> None:
    """Record a pull. headers: of the request, with its trace. reports: of all ranks, at least one."""
    worst = next((report for report in reports if report.outcome is not PullOutcome.DONE), reports[0])
    failed = worst.outcome is not PullOutcome.DONE
    tracer.span("ghostcacher.pull", began_at, parent=headers).end(
        ended_at,
        error=f"{worst.outcome.value}: {worst.reason.value if worst.reason else 'unknown'}" if failed else None,
        source=worst.worker,
        transport=worst.transport,
        outcome=worst.outcome.value,
        reason=worst.reason.value if worst.reason is not None else None,
        bytes=sum(report.bytes for report in reports),
        blocks_asked=worst.blocks_asked,
        blocks_usable=min(report.blocks_usable for report in reports),
        transfer_s=max(report.seconds for report in reports),
    )
