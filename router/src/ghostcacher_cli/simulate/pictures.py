"""Results of simulations as a picture, by matplotlib: ``pip install 'ghostcacher[simulate]'``.

Left: how many requests had their first token by when; of several sizes of a fleet, TTFT by its size. Right: where
prompt tokens came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ghostcacher_cli.simulate.results import RunFound, run_found
from ghostcacher_connector.core.errors import ConfigError, GhostCacherError
from ghostcacher_simulator.replay.replay import Run

INSTALL = "pip install 'ghostcacher[simulate]'"
PICTURE_INCHES = (11.0, 4.5)
PICTURE_DPI = 150
POINTS_MAX = 500
"""Of one line."""
PARTS = (("computed", "C3"), ("objects", "C4"), ("peers", "C1"), ("host", "C0"), ("engine", "C2"))


class CannotDraw(GhostCacherError):
    """A picture that was asked for cannot be written."""


def require(plot: Path | None) -> None:
    """Look for what a picture needs, before anything else is done. Raises ConfigError."""
    if plot is None:
        return
    if find_spec("matplotlib") is None:
        raise ConfigError(f"--plot: expected matplotlib, it is not installed: {INSTALL}")
    if not plot.resolve().parent.is_dir():
        raise ConfigError(f"--plot: expected a file in a folder that exists, got {plot}")


def write_picture(runs: Sequence[Run], path: Path) -> None:
    """Write a picture, PNG or SVG by its name. Raises CannotDraw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=PICTURE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    found = [run_found(run) for run in runs]
    if len({run.workers for run in found}) > 1:
        _draw_sizes(left, found)
    else:
        _draw_times(left, runs)
    _draw_sources(right, found)
    load = runs[0].load
    figure.suptitle(f"{load.name}: {len(load.requests):,} requests", x=0.02, ha="left")
    try:
        figure.savefig(path, dpi=PICTURE_DPI)
    except OSError as exc:
        raise CannotDraw(f"--plot: {path} cannot be written: {exc.strerror or exc}") from exc


def points_of(run: Run) -> tuple[Sequence[float], Sequence[float]]:
    """Return times to the first token, ascending, and the percentage of requests that had it by then."""
    times = sorted(each.ttft_s for each in run.served if each.ttft_s is not None)
    step = max(1, len(times) // POINTS_MAX)
    places = [*range(0, len(times) - 1, step), len(times) - 1] if times else []
    return [times[place] for place in places], [100 * (place + 1) / len(run.served) for place in places]


def mark_seconds(axis: Any) -> None:
    """Mark a logarithmic axis at 1, 2 and 5 of each decade, in plain numbers: what it is marked with else overlaps."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator  # noqa: PLC0415 - an extra

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axis.set_minor_locator(NullLocator())


def _draw_times(axes: Any, runs: Sequence[Run]) -> None:
    for run in runs:
        axes.plot(*points_of(run), label=run.entrant.name)
    axes.set(xscale="log", xlabel="time to first token, s", ylabel="requests, %", ylim=(0, 101))
    mark_seconds(axes.xaxis)
    _finish(axes)


def _draw_sizes(axes: Any, found: Sequence[RunFound]) -> None:
    for number, policy in enumerate(dict.fromkeys(run.policy_name for run in found)):
        mine = [run for run in found if run.policy_name == policy and run.ttft is not None]
        sizes = [run.workers for run in mine]
        axes.plot(sizes, [run.ttft.p50_s for run in mine if run.ttft], "o-", color=f"C{number}", label=f"{policy}, p50")
        axes.plot(
            sizes, [run.ttft.p90_s for run in mine if run.ttft], "o--", color=f"C{number}", label=f"{policy}, p90"
        )
    every = sorted({run.workers for run in found})
    axes.set(yscale="log", xlabel="workers", ylabel="time to first token, s")
    mark_seconds(axes.yaxis)
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, labels=map(str, every))
    _finish(axes)


def _draw_sources(axes: Any, found: Sequence[RunFound]) -> None:
    several = len({run.workers for run in found}) > 1
    names = [f"{run.policy_name}, {run.workers}" if several else run.policy_name for run in found]
    before = [0.0] * len(found)
    for part, color in PARTS:
        values = [100 * getattr(run.sources, part) if run.sources else 0.0 for run in found]
        axes.barh(names, values, left=before, color=color, label=part)
        before = [first + value for first, value in zip(before, values, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="prompt tokens, %", xlim=(0, 100))
    axes.legend(frameon=False, fontsize="small", ncols=len(PARTS), loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _finish(axes: Any) -> None:
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
