"""Hit ratio by size of the cache as a drawing: in the terminal by plotext, as a picture by matplotlib.

Neither is needed for anything else, so both come with an extra: ``pip install 'ghostcacher[analyze]'``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from ghostcacher_cli.analyze.report import Report
from ghostcacher_cli.analyze.report_text import size
from ghostcacher_connector.core.errors import ConfigError, GhostCacherError

INSTALL = "pip install 'ghostcacher[analyze]'"
WIDTH, HEIGHT = 92, 16
BEST_ORDER = "lru, best order"
PICTURE_INCHES = (8.0, 4.5)
PICTURE_DPI = 150


class CannotDraw(GhostCacherError):
    """A drawing that was asked for cannot be made or written."""


class Line(NamedTuple):
    """One line of a drawing."""

    name: str
    """What it shows."""
    percent: Sequence[float]
    """Its values, one for each size."""


def require(*, chart: bool | None, plot: Path | None) -> None:
    """Look for what the drawings that were asked for need, before anything else is done. Raises ConfigError."""
    if chart and _plotext() is None:
        raise ConfigError(f"--chart: expected plotext 5, it is not installed: {INSTALL}")
    if plot is None:
        return
    if find_spec("matplotlib") is None:
        raise ConfigError(f"--plot: expected matplotlib, it is not installed: {INSTALL}")
    if not plot.resolve().parent.is_dir():
        raise ConfigError(f"--plot: expected a file in a folder that exists, got {plot}")


def lines_of(report: Report) -> Sequence[Line]:
    """Return what there is to draw; the best order first, so that others lie over it."""
    policies = list(report.sizes[0].hit_ratio)
    return [
        Line(BEST_ORDER, [100 * each.best_order_hit_ratio for each in report.sizes]),
        *(Line(name, [100 * each.hit_ratio[name] for each in report.sizes]) for name in policies),
    ]


def draw(report: Report, *, chart: bool | None) -> Sequence[str]:
    """Return a drawing for the terminal as lines of text; none where it is not wanted, or plotext is not there."""
    plotext = None if chart is False else _plotext()
    if plotext is None or len(report.sizes) < 2:  # noqa: PLR2004 - a line has two ends
        return []
    lines = lines_of(report)
    marks = _marks([line.name for line in lines])
    places = list(range(len(report.sizes)))
    plotext.clear_figure()
    plotext.plotsize(WIDTH, HEIGHT)
    for line, mark in zip(lines, marks, strict=True):
        plotext.plot(places, list(line.percent), marker=mark)
    plotext.xticks(places, [size(each.size_bytes) for each in report.sizes])
    plotext.ylim(0, _top(lines))
    plotext.yticks(_ticks(lines), [f"{tick} %" for tick in _ticks(lines)])
    drawn = plotext.build()
    drawn = drawn if sys.stdout.isatty() else plotext.uncolorize(drawn)
    legend = "   ".join(f"{mark} {line.name}" for line, mark in zip(lines, marks, strict=True))
    return [*(line.rstrip() for line in drawn.splitlines()), f"     {legend}"]


def write_picture(report: Report, path: Path) -> None:
    """Write the same as a picture, PNG or SVG by its name. Raises CannotDraw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=PICTURE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lines = lines_of(report)
    places = list(range(len(report.sizes)))
    for number, line in enumerate(lines):
        dashed = "--" if line.name == BEST_ORDER else "-"
        axes.plot(places, line.percent, dashed, marker="o", markersize=3, color=f"C{number}", label=line.name)
    axes.set_xticks(places, [size(each.size_bytes) for each in report.sizes])
    axes.set_ylim(0, _top(lines))
    axes.set_xlabel("size of the cache")
    axes.set_ylabel("prompt tokens not computed, %")
    axes.set_title(f"{Path(report.file).name}: {report.counts.requests:,} requests", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=PICTURE_DPI)
    except OSError as exc:
        raise CannotDraw(f"--plot: {path} cannot be written: {exc.strerror or exc}") from exc


def _plotext() -> Any:
    """Return the library; None where it is not, or where another version has its name but none of its functions."""
    try:
        plotext = import_module("plotext")
    except ModuleNotFoundError:
        return None
    return plotext if hasattr(plotext, "clear_figure") else None


def _marks(names: Sequence[str]) -> Sequence[str]:
    """Return a character for each line, its own where that is possible: what is printed may have no colours."""
    marks: list[str] = []
    for name in names:
        letters = "." if name == BEST_ORDER else "".join(filter(str.isalnum, name)) + "*+x#@%"
        marks.append(next(letter for letter in letters if letter not in marks))
    return marks


def _top(lines: Sequence[Line]) -> float:
    """Return where the drawing ends: above its highest line, at a whole tick."""
    return float(_ticks(lines)[-1])


def _ticks(lines: Sequence[Line]) -> Sequence[int]:
    highest = max(max(line.percent) for line in lines)
    step = next(step for step in (1, 2, 5, 10, 20) if highest <= 5 * step)
    return [step * tick for tick in range(max(1, ceil(highest / step)) + 1)]
