"""The stages, in the order in which they are worth their time on a device that is lent for minutes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_check import answers, kind_answers, latency
from benchmarks.gpu_check.engines import Pair
from benchmarks.gpu_check.kinds import ENGINES, KINDS
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
    """One stage. engines: those that it needs, a name in `ENGINES`; None: none.

    estimate_s: on a GPU, with its engines there (not measured).
    """

    name: str
    engines: str | None
    estimate_s: int
    run: Callable[[Context], Found]

    @property
    def on_cpu(self) -> bool:
        """Whether CPU engines run it."""
        return self.engines is None or ENGINES[self.engines].on_cpu


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
    Stage("decode-layout", "engine-layout", 30, lambda context: latency.decode_layout(context.engines, context.folder)),
)
"""`owner-killed` is the last one with its engines: it leaves one of them dead."""


def stages_of(kind: str) -> list[Stage]:
    """Return the stages of one kind of model."""
    if kind == "images":
        return [Stage("answers-images", kind, 20, lambda context: kind_answers.images(context.engines))]
    stages = [Stage(f"answers-{kind}", kind, 20, lambda context: answers.answers(context.engines))]
    if KINDS[kind].drafter:
        stages.append(Stage(f"drafts-{kind}", kind, 10, lambda context: kind_answers.drafts(context.engines)))
    return [*stages, Stage(f"torture-{kind}", kind, 40, lambda context: answers.torture(context.engines))]


KIND_STAGES = tuple(stage for kind in KINDS for stage in stages_of(kind))
"""Run where they are asked for, by name or by kind."""

ENGINES_S = 90
"""What starting two engines is estimated to take on a GPU (not measured)."""


def named(names: list[str], device: Device = "cuda", kinds: Collection[str] = ()) -> list[Stage]:
    """Return the stages of these names and kinds of models that a device runs, in their order.

    Without any: all but those of kinds. Raises ValueError for a name that is unknown.
    """
    known = {stage.name: stage for stage in (*STAGES, *KIND_STAGES)}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"stage: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    asked = [stage for stage in known.values() if stage.name in names or stage.engines in kinds]
    chosen = asked if names or kinds else STAGES
    return [stage for stage in chosen if stage.on_cpu or device == "cuda"]
