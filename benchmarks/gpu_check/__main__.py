"""Runs stages, as far as the time that is given lasts, and prints what they found; see the package's docstring."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

from benchmarks.gpu_check.engines import Pair, pair
from benchmarks.gpu_check.kinds import KINDS, chosen_kinds
from benchmarks.gpu_check.results import Result, all_right, hardware, load, report, save
from benchmarks.gpu_check.stages import ENGINES_S, KIND_STAGES, STAGES, Context, Stage, named
from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=(__doc__ or "").split("\n")[0])
    of_kinds = ", ".join(stage.name for stage in KIND_STAGES)
    parser.add_argument(
        "stages",
        nargs="*",
        help=f"which; default: all of {', '.join(stage.name for stage in STAGES)}; besides these: {of_kinds}",
    )
    parser.add_argument(
        "--kinds",
        type=kinds,
        default=[],
        help=f"the stages of these kinds of models, with commas, or all: {', '.join(KINDS)}",
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: everything small, as a trial")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-check"), help="folder of the results")
    parser.add_argument(
        "--budget-s", type=float, default=350, help="begin nothing that may last longer than this, in s"
    )
    parser.add_argument("--again", action="store_true", help="run stages that have results, too")
    parser.add_argument("--eager", action="store_true", help="engines without CUDA graphs")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    chosen = parser.parse_args(argv)
    try:
        chosen.stages = named(chosen.stages, chosen.device, chosen.kinds)
    except ValueError as exc:
        parser.error(str(exc))
    return chosen


def kinds(text: str) -> list[str]:
    """Read the option of this name."""
    try:
        return chosen_kinds(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Run what is missing, print the table; return 0 when all stages asked for are there and right."""
    waiting = [] if chosen.table else [stage for stage in chosen.stages if chosen.again or not _result(chosen, stage)]
    started = time.monotonic()
    for engines, group in groupby(waiting, key=lambda stage: stage.engines):
        stages = list(group)
        needed = (ENGINES_S if engines else 0) + stages[0].estimate_s
        if not _fits(chosen, started, needed):
            break
        with ExitStack() as stack:
            two = None
            if engines is not None:
                two = stack.enter_context(pair(engines, chosen.device, eager=chosen.eager, progress=progress))
            _run_group(chosen, stages, two, started, progress)
    found = [result for stage in chosen.stages if (result := _result(chosen, stage))]
    missing = [stage.name for stage in chosen.stages if not _result(chosen, stage)]
    if found:
        print(report(found))
    if missing:
        print(f"not run yet: {', '.join(missing)}; the same command goes on with them")
    return 0 if all_right(found) and not missing else 1


def _run_group(
    chosen: argparse.Namespace, stages: list[Stage], two: Pair | None, started: float, progress: ProgressLine
) -> None:
    for stage in stages:
        if not _fits(chosen, started, stage.estimate_s):
            return
        begun = time.monotonic()
        checks, numbers = stage.run(Context(chosen.device, chosen.out, two))
        seconds = time.monotonic() - begun
        save(
            Result(stage.name, chosen.device, checks, numbers, seconds, hardware(chosen.device), time.time()),
            chosen.out,
        )
        progress.done(f"{stage.name}: {seconds:.0f} s, {sum(check.ok for check in checks)} of {len(checks)} as wanted")


def _fits(chosen: argparse.Namespace, started: float, needed_s: float) -> bool:
    """Say whether something that may take so long still may begin; on a CPU there is no hurry."""
    return bool(chosen.device == "cpu" or time.monotonic() - started + needed_s <= chosen.budget_s)


def _result(chosen: argparse.Namespace, stage: Stage) -> Result | None:
    return load(chosen.out, stage.name, chosen.device)


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    return run_program(lambda: run(chosen, ProgressLine(timed=True)))


if __name__ == "__main__":
    sys.exit(main())
