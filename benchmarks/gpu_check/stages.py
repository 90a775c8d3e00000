"""The stages, in the order in which they are worth their time on a device that is lent for minutes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_check import answers, latency
from benchmarks.gpu_check.engines import Kind, Pair
from benchmarks.gpu_check.results import Check
from benchmarks.gpu_check.sizes import Device, sizes_of
from benchmarks.gpu_pull import GOAL, measure_all

Found = tuple[list[Check], dict[str, Any]]


class Context(NamedTuple):
    """What a stage may use. folder: of the results. pair: its engines, None when it asked for none."""

    device: Device
    folder: Path
    pair: Pair | None

    @property
    def engines(self) -> Pair:
        assert self.pair is not None, "a stage uses engines that it did not ask for"
        return self.pair


class Stage(NamedTuple):
    """One stage. engines: which it needs, None: none. estimate_s: on a GPU, with its engines there (not measured).

    on_cpu: whether CPU engines run it.
    """

    name: str
    engines: Kind | None
    estimate_s: int
    run: Callable[[Context], Found]
    on_cpu: bool = True


def pull(device: Device) -> Found:
    """Pulls between two processes without an engine, by layout and row size, against a copy on the device."""
    rows = measure_all(device, sizes_of(device).pull_bytes, repeats=5 if device == "cuda" else 1)
    checks = []
    for row in rows:
        part = row["pull_GBps"] / row["copy_GBps"]
        text = f"{part:.0%}: {row['pull_GBps']:.1f} of {row['copy_GBps']:.1f} GB/s"
        name = f"{row['layout']}, {row['rows']} rows of {row['row_KiB']:.0f} KiB, {row['order']}"
        wanted = f">= {GOAL:.0%}" if row["layout"] == "blocks" else "-"
        checks.append(Check(name, text, wanted, part >= GOAL or wanted == "-", "goal"))
    return checks, {"rows": rows}


STAGES = (
    Stage("pull", None, 60, lambda context: pull(context.device)),
    Stage("answers", "block-major", 45, lambda context: answers.answers(context.engines)),
    Stage("ttft", "block-major", 60, lambda context: latency.ttft(context.engines)),
    Stage("decode", "block-major", 60, lambda context: latency.decode(context.engines)),
    Stage("concurrent", "block-major", 30, lambda context: latency.concurrent(context.engines)),
    Stage("owner-killed", "block-major", 30, lambda context: answers.owner_killed(context.engines)),
    Stage("torture", "small-kv", 90, lambda context: answers.torture(context.engines)),
    Stage("answers-mla", "mla", 45, lambda context: answers.answers(context.engines), on_cpu=False),
    Stage("answers-window-fp8", "window-fp8", 45, lambda context: answers.answers(context.engines)),
    Stage("decode-layout", "engine-layout", 30, lambda context: latency.decode_layout(context.engines, context.folder)),
)
"""`owner-killed` is the last one with its engines: it leaves one of them dead."""

ENGINES_S = 90
"""What starting two engines is estimated to take on a GPU (not measured)."""


def named(names: list[str], device: Device = "cuda") -> list[Stage]:
    """Return the stages of these names that a device runs, all of them when there are none, in their order.

    Raises ValueError for a name that is unknown.
    """
    known = {stage.name: stage for stage in STAGES}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"stage: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    run_here = [stage for stage in STAGES if stage.on_cpu or device == "cuda"]
    return [stage for stage in run_here if not names or stage.name in names]
