"""How fast pulls between two processes on one device are, by layout and length of row, against a copy on the device.

    python -m benchmarks.gpu_pull [--device cuda|cpu] [--mib N] [--repeats N] [--json FILE]

A process of its own owns the memory; both are on the same device. layout "blocks": all layers of a block side by side
(vLLM's BLHNC), one row a block; "layers": vLLM's own layouts, one row for each layer of a block. order "scattered": no
two blocks are neighbours at both ends; "in order": all are, and make one row (a layer). GB/s count bytes moved, once; a
pull has its seal read, too. The copy is the same bytes by torch, between two places on the device (on a CPU: by numpy).
cudaMemcpyPeer, between two devices, is not faster than a copy on one: this is the stricter limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks.harness.report import table
from benchmarks.pull_throughput import median_s
from ghostcacher_connector.core.types import RankEndpoint
from ghostcacher_connector.transfer.base import PullOutcome, PullRequest
from ghostcacher_connector.transfer.layout import Side, descriptors
from ghostcacher_connector.transfer.nixl.transport import NixlTransport
from tests.support.kv_memory import make_memory
from tests.support.owner_client import OwnerProcess

KIB = 1 << 10
GOAL = 0.8
"""Of the copy's rate, for pulls of block-major memory."""
PULL_DEADLINE_S = 60.0
Order = Literal["scattered", "in order"]


class Shape(NamedTuple):
    """One model's cache on one rank. layer_bytes: of one block in one layer."""

    model: str
    layers: int
    layer_bytes: int


SHAPES = (
    Shape("Llama-70B TP8, blocks of 16", 80, 8 * KIB),
    Shape("Llama-8B, blocks of 16", 32, 64 * KIB),
    Shape("1.4 B (gpu-check), blocks of 16", 28, 64 * KIB),
)


def measure_all(device: str, total_bytes: int, *, repeats: int) -> list[dict[str, Any]]:
    """Return one row of numbers for each shape, layout and order."""
    shapes = SHAPES if device == "cuda" else SHAPES[:1]
    cases = [("blocks", "scattered"), ("blocks", "in order"), ("layers", "scattered"), ("layers", "in order")]
    return [
        measure(device, shape, layout, order, total_bytes, repeats)  # type: ignore[arg-type]
        for shape in shapes
        for layout, order in cases
    ]


def measure(device: str, shape: Shape, layout: str, order: Order, total_bytes: int, repeats: int) -> dict[str, Any]:
    """Pull as many blocks of a shape as make up `total_bytes`; raise AssertionError when a byte is wrong."""
    slots = max(8, total_bytes // (shape.layers * shape.layer_bytes))
    options: dict[str, Any] = {
        "slot_count": slots,
        "segment_count": shape.layers,
        "slot_bytes": shape.layer_bytes,
        "layout": layout,
    }
    if device == "cuda":
        options["device"] = 0
    memory = make_memory(options)
    remote = np.arange(slots, dtype=np.int64)
    local = remote if order == "in order" else np.random.default_rng(1).permutation(slots).astype(np.int64)
    total = slots * shape.layers * shape.layer_bytes
    generations = np.ones(slots, dtype=np.uint64)
    with OwnerProcess({"memory": options}) as owner:
        owner.call("write", remote, generations)
        transport = NixlTransport(memory.memories, memory.table, name="reader")
        side = Side(memory.rank.segments, memory.rank.device)
        theirs = owner.endpoint.memories[0]
        rows, _ = descriptors(Side(theirs.segments, theirs.device), side, remote, local)
        pull_s = median_s(lambda: pull_once(transport, owner.endpoint, remote, local, generations), repeats)
        assert memory.holds(local, remote, generations).all(), f"{shape.model}, {layout}, {order}: wrong bytes"
        transport.close()
    copy_s = median_s(copier(device, total), repeats)
    return {
        "model": shape.model,
        "layout": layout,
        "order": order,
        "rows": len(rows),
        "row_KiB": float(np.median(rows[:, 1])) / KIB,
        "bytes": total,
        "pull_s": pull_s,
        "pull_GBps": total / pull_s / 1e9,
        "copy_GBps": total / copy_s / 1e9,
        "us_a_row": pull_s / len(rows) * 1e6,
    }


def pull_once(
    transport: NixlTransport, peer: RankEndpoint, remote: np.ndarray, local: np.ndarray, generations: np.ndarray
) -> None:
    result = transport.pull(PullRequest(peer, remote, local, generations, time.monotonic() + PULL_DEADLINE_S))
    assert result.outcome is PullOutcome.DONE, result


def copier(device: str, total: int) -> Callable[[], None]:
    """Return what copies so many bytes from one place of the device to another, and waits until they are there."""
    if device == "cpu":
        here, there = (np.zeros(total, dtype=np.uint8) for _ in range(2))
        return lambda: np.copyto(here, there)
    import torch  # noqa: PLC0415 - slow to load

    target, source = (torch.zeros(total, dtype=torch.uint8, device="cuda") for _ in range(2))

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return copy


def report(rows: list[dict[str, Any]]) -> str:
    """Return the numbers as a table."""
    headers = ["model", "layout", "order", "rows", "row", "pull", "copy", "pull / copy", "a row"]
    return table(
        headers,
        [
            [
                row["model"],
                row["layout"],
                row["order"],
                f"{row['rows']:,}",
                f"{row['row_KiB']:,.0f} KiB",
                f"{row['pull_GBps']:.1f} GB/s",
                f"{row['copy_GBps']:.1f} GB/s",
                f"{row['pull_GBps'] / row['copy_GBps']:.0%}",
                f"{row['us_a_row']:.1f} us",
            ]
            for row in rows
        ],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--mib", type=int, default=604, help="bytes of each pull, in MiB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    chosen = parser.parse_args()
    rows = measure_all(chosen.device, chosen.mib << 20, repeats=chosen.repeats)
    print(report(rows))
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
