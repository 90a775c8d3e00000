"""How fast pulls are, against a memcpy of the same bytes in the same run: the machine's speed drops out of the ratio.

    python -m benchmarks.pull_throughput [--short] [--json FILE]

A process of its own owns the memory. Columns: GB/s of memcpy (slot by slot, as a local copy would do it), of pulls by
NIXL (seal included) and through the relay over loopback; ratio = time of the pull over time of the memcpy.
split_ratio = time of two pulls of half of each row, as from two ranks that have half of the heads, over time of one.
Slots are pulled in a scattered order, so that no two are merged into one READ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ghostcacher_connector.core.types import RankEndpoint
from ghostcacher_connector.transfer.base import PullOutcome, PullRequest, Transport
from ghostcacher_connector.transfer.nixl.transport import NixlTransport
from ghostcacher_connector.transfer.relay.relay_transport import RelayTransport
from ghostcacher_connector.transfer.shares import WHOLE, RowPart, part_of_rank
from tests.support.kv_memory import KvMemory
from tests.support.owner_client import OwnerProcess

KIB = 1 << 10
TOTAL_BYTES = 64 << 20
TOKEN = "benchmark"  # noqa: S105 - authenticates two processes of this run


def median_s(action: Callable[[], None], repeats: int) -> float:
    """Return the median time of an action in seconds, after one warm-up."""
    action()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def pull_once(
    transport: Transport, peer: RankEndpoint, remote: np.ndarray, local: np.ndarray, part: RowPart = WHOLE
) -> None:
    zeros = np.zeros(len(remote), dtype=np.uint64)
    result = transport.pull(PullRequest(peer, remote, local, zeros, time.monotonic() + 60, part))
    assert result.outcome is PullOutcome.DONE, result


def measure(slot_bytes: int, segments: int, repeats: int) -> dict[str, Any]:
    """Measure one shape; slot_bytes is the size of a slot's row in one segment."""
    slots = max(4, TOTAL_BYTES // (slot_bytes * segments))
    shape = {"slot_count": slots, "segment_count": segments, "slot_bytes": slot_bytes}
    memory, source = (KvMemory(slots, segments, slot_bytes) for _ in range(2))
    rng = np.random.default_rng(1)
    remote, local = rng.permutation(slots).astype(np.int64), rng.permutation(slots).astype(np.int64)
    total = slots * slot_bytes * segments

    def copy() -> None:
        for there, here in zip(source.rows, memory.rows, strict=True):
            for a, b in zip(remote.tolist(), local.tolist(), strict=True):
                here[b] = there[a]

    def pull_halves() -> None:
        for half in (RowPart(0, 2), RowPart(1, 2)):
            pull_once(direct, part_of_rank(owner.endpoint, half, half), remote, local, half)

    relay = {"listen": "127.0.0.1:0", "token": TOKEN}
    with OwnerProcess({"memory": shape, "relay": relay}) as owner:
        direct = NixlTransport(memory.memories, memory.table, name="reader")
        through = RelayTransport(memory.rank, token=TOKEN)
        copy_s = median_s(copy, repeats)
        direct_s = median_s(lambda: pull_once(direct, owner.endpoint, remote, local), repeats)
        halves_s = median_s(pull_halves, repeats)
        relay_s = median_s(lambda: pull_once(through, owner.endpoint, remote, local), repeats)
        none = np.zeros(0, dtype=np.int64)
        seal_us = statistics.median(direct.probe(owner.endpoint, none, timeout_s=5).rtt_s for _ in range(200)) * 1e6
        relay_rtt_us = (
            statistics.median(through.probe(owner.endpoint, none, timeout_s=5).rtt_s for _ in range(50)) * 1e6
        )
        direct.close()
        through.close()
    return {
        "slot_KiB": slot_bytes // KIB,
        "segments": segments,
        "slots": slots,
        "memcpy_GBps": total / copy_s / 1e9,
        "nixl_GBps": total / direct_s / 1e9,
        "nixl_ratio": direct_s / copy_s,
        "split_ratio": halves_s / direct_s,
        "relay_GBps": total / relay_s / 1e9,
        "relay_ratio": relay_s / copy_s,
        "seal_us": seal_us,
        "relay_rtt_us": relay_rtt_us,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one shape, few repeats")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    sizes = [64] if arguments.short else [16, 64, 256, 1024]
    counts = [8] if arguments.short else [1, 8, 32]
    rows: list[dict[str, Any]] = []
    for size in sizes:
        for count in counts:
            row = measure(size * KIB, count, 3 if arguments.short else 7)
            if not rows:
                print("  ".join(f"{name:>12}" for name in row))
            print("  ".join(f"{v:>12.2f}" if isinstance(v, float) else f"{v:>12}" for v in row.values()), flush=True)
            rows.append(row)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
