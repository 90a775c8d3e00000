"""How fast blocks are copied to host memory and loaded back, against a memcpy of the same bytes in the same run.

    python -m benchmarks.tier_copies [--short] [--json FILE]

down: the copier's thread, orders of 8 MiB, as the engine's half gives them. up: loads by as many threads as pull, each
a part of the bytes. busy: `up` while another thread computes in Python all the time, as an engine's scheduler may; so
does it beside the memcpy that this is compared with. Slots are in a scattered order on both sides, so that no two are
copied as one.

Each ratio is (time of a memcpy of the same bytes in one piece, by as many threads) / (time of the copy): 1 is the speed
of memcpy. Both are the best of rounds that alternate: what else the machine does only ever adds time.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ghostcacher_connector.slots import Slots
from ghostcacher_connector.transfer.base import PullOutcome, PullRequest
from ghostcacher_connector.transfer.copier import Copier
from ghostcacher_connector.transfer.jobs import CopyJob
from ghostcacher_connector.transfer.local import LocalTransport
from ghostcacher_connector.transfer.memory import Fabric, MemoryTransport
from tests.support.kv_memory import KvMemory

KIB = 1 << 10
TOTAL_BYTES = 64 << 20
ORDER_BYTES = 8 << 20
WAIT_S = 60.0
GOAL = 0.8
GOAL_KIB = 64


class Rig:
    """Slots of one shape, all of them in both tiers, and what moves them."""

    def __init__(self, row_bytes: int, segments: int, layout: str) -> None:
        self.slots = max(4, TOTAL_BYTES // (row_bytes * segments))
        self.memory = KvMemory(self.slots, segments, row_bytes, layout, host_slots=self.slots)
        self.total_bytes = self.slots * row_bytes * segments
        engine, host = self.memory.memories
        self.copier = Copier((engine, host), self.memory.table)
        self.peer = MemoryTransport(Fabric(), self.memory.memories, self.memory.table, name="me").endpoint(rank=0)
        self.local = LocalTransport((engine, host), self.memory.table, agent_name=self.peer.agent_name)
        rng = np.random.default_rng(1)
        self.engine_slots: Slots = rng.permutation(self.slots).astype(np.int64)
        self.host_slots: Slots = rng.permutation(self.slots).astype(np.int64) + self.slots
        self.zeros = np.zeros(self.slots, dtype=np.uint64)
        self.step = max(1, ORDER_BYTES // (row_bytes * segments))
        self.flat = [np.ones(self.total_bytes, dtype=np.uint8) for _ in range(2)]

    def down(self) -> None:
        for low in range(0, self.slots, self.step):
            part = slice(low, low + self.step)
            self.copier.submit(CopyJob(low, self.engine_slots[part], self.zeros[part], self.host_slots[part]))
        ended = 0
        while ended < self.slots:
            results = self.copier.poll(wait_s=WAIT_S)
            assert results
            assert all(result.valid.all() for result in results)
            ended += sum(len(result.valid) for result in results)

    def up(self, pool: ThreadPoolExecutor, threads: int) -> None:
        def load(number: int) -> None:
            part = slice(number, None, threads)
            deadline = time.monotonic() + WAIT_S
            request = PullRequest(self.peer, self.host_slots[part], self.engine_slots[part], self.zeros[part], deadline)
            assert self.local.pull(request).outcome is PullOutcome.DONE

        list(pool.map(load, range(threads)))

    def memcpy(self, pool: ThreadPoolExecutor, threads: int) -> None:
        size = -(-self.total_bytes // threads)
        target, source = self.flat

        def copy(number: int) -> None:
            part = slice(number * size, (number + 1) * size)
            np.copyto(target[part], source[part])

        list(pool.map(copy, range(threads)))

    def check(self, pool: ThreadPoolExecutor, threads: int) -> None:
        """Assert that every byte comes up again as it went down."""
        for rows in self.memory.rows:
            rows.view(np.uint64)[:] = np.random.default_rng(2).integers(1 << 60, size=rows.view(np.uint64).shape)
        before = [rows.copy() for rows in self.memory.rows]
        self.down()
        for rows in self.memory.rows:
            rows[:] = 0
        self.up(pool, threads)
        assert all((rows == old).all() for rows, old in zip(self.memory.rows, before, strict=True)), "wrong bytes"


def timed(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


@contextmanager
def busy_interpreter() -> Iterator[None]:
    """Have another thread compute in Python meanwhile."""
    stop = threading.Event()

    def spin() -> None:
        number = 0
        while not stop.is_set():
            for _ in range(1000):
                number = (number * 31 + 7) % 1_000_003

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def measure(row_kib: int, segments: int, layout: str, threads: int, rounds: int) -> dict[str, Any]:
    """Measure one shape; raise AssertionError when a byte is wrong."""
    rig = Rig(row_kib * KIB, segments, layout)
    with ThreadPoolExecutor(threads) as pool:
        rig.check(pool, threads)
        rig.memcpy(pool, threads)  # touches the memory
        times: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds):
            times["memcpy"].append(timed(lambda: rig.memcpy(pool, 1)))
            times["down"].append(timed(rig.down))
            times["memcpies"].append(timed(lambda: rig.memcpy(pool, threads)))
            times["up"].append(timed(lambda: rig.up(pool, threads)))
            with busy_interpreter():
                times["busy memcpy"].append(timed(lambda: rig.memcpy(pool, threads)))
                times["busy"].append(timed(lambda: rig.up(pool, threads)))
    assert rig.copier.close()

    best = {name: min(measured) for name, measured in times.items()}
    rates = {f"{name}_GBps": rig.total_bytes / best[name] / 1e9 for name in ("memcpy", "down", "up")}
    return {
        "row_KiB": row_kib,
        "segments": segments,
        "layout": layout,
        "threads": threads,
        **rates,
        "down": best["memcpy"] / best["down"],
        "up": best["memcpies"] / best["up"],
        "busy": best["busy memcpy"] / best["busy"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one shape, few rounds")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    sizes = [64] if arguments.short else [4, 16, 64, 256, 1024]
    cases = [("layers", 1)] if arguments.short else [("layers", 1), ("layers", 2), ("blocks", 1)]
    rows: list[dict[str, Any]] = []
    for layout, threads in cases:
        for size in sizes:
            row = measure(size, 16, layout, threads, 5 if arguments.short else 25)
            if not rows:
                print("  ".join(f"{name:>11}" for name in row))
            print("  ".join(f"{v:>11.2f}" if isinstance(v, float) else f"{v:>11}" for v in row.values()), flush=True)
            rows.append(row)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    large = [row for row in rows if row["row_KiB"] >= GOAL_KIB]
    met = [row[way] >= GOAL for row in large for way in ("down", "up")]
    print(f"rows of {GOAL_KIB} KiB and more: {sum(met)} of {len(met)} at {GOAL:.0%} of memcpy or more")
    return 0


if __name__ == "__main__":
    sys.exit(main())
