"""The load of an engine, in the form that routers read. Knows no engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ghostcacher_connector.core.coordination.base import LoadReport
from ghostcacher_connector.core.types import BlockHash, MissReason
from ghostcacher_connector.metrics import Recorder
from ghostcacher_connector.metrics.catalog import HITS, MISSES
from ghostcacher_connector.pull.forecast import PULL_FIXED_S, Forecaster


class Work(NamedTuple):
    """What an engine has to do at one moment. `LoadReport` documents the fields."""

    running: int
    waiting: int
    waiting_tokens: int
    kv_blocks_used: int
    kv_blocks_total: int


def load_report(
    work: Work, forecaster: Forecaster, recorder: Recorder, *, block_tokens: int, block_bytes: int
) -> LoadReport:
    """Return the load report of an engine that has this work and these rates. recorder: of what its requests met."""
    rate, decode = forecaster.prefill_rate, forecaster.decode_times
    return LoadReport(
        **work._asdict(),
        block_tokens=block_tokens,
        block_bytes=block_bytes,
        prefill_tokens_per_s=rate.tokens_per_s,
        prefill_rate_stale=rate.stale,
        decode_step_s=decode.step_s,
        decode_request_s=decode.request_s,
        pull_bytes_per_s=forecaster.typical_bytes_per_s,
        pull_fixed_s=PULL_FIXED_S,
        hit_blocks=int(recorder.total(HITS)),
        missed_blocks=tuple(int(recorder.total(MISSES, reason=reason.value)) for reason in MissReason),
    )


def held_prefix_length(hashes: Sequence[BlockHash], end: int, holds: Callable[[BlockHash], bool]) -> int:
    """Search for the end of the prefix of ``hashes[:end]`` that an engine holds. A gap makes it an upper bound."""
    held, beyond = 0, min(len(hashes), end) + 1
    while beyond - held > 1:
        middle = (held + beyond) // 2
        if holds(hashes[middle - 1]):
            held = middle
        else:
            beyond = middle
    return held
