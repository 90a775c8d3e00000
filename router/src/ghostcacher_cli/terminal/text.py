"""Numbers and tables as plain text. Pure: values in, text out."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

NOTHING = "-"
"""Shown for what is not known. A zero is shown as a zero."""


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return a plain-text table: the first `left` columns to the left, the others to the right."""
    cells = [list(headers), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: a value that was measured, below or at which `percent` % of them lie.

    Nothing is interpolated, so that no percentile is above the largest value, however few there are.
    """
    assert values, "a percentile of nothing"
    rank = math.ceil(percent * len(values) / 100)
    return sorted(values)[max(rank, 1) - 1]


def milliseconds(seconds: float) -> str:
    """Return a duration with about three digits: "0.52 ms", "52.1 ms", "5,210 ms"."""
    value = seconds * 1e3
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f} ms"  # noqa: PLR2004 - digits


def duration(seconds: float) -> str:
    """Return a duration as people say it: "42 s", "3 min 5 s", "2 h 10 min"."""
    whole = int(seconds)
    if whole < 60:  # noqa: PLR2004 - one minute
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004 - one hour
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def bar(part: float, width: int) -> str:
    """Return a bar of `width` characters that is filled by a part from 0 to 1; more counts as full."""
    filled = round(min(1.0, max(0.0, part)) * width)
    return "#" * filled + "." * (width - filled)


def percent(part: float | None) -> str:
    return NOTHING if part is None else f"{part:.0%}"


def count(value: float | None) -> str:
    """Return a number with at most four digits: "7.5", "812", "12.3k", "4.0M"."""
    if value is None:
        return NOTHING
    for limit, divisor, unit in ((1e4, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        if abs(value) < limit:
            scaled = value / divisor
            digits = 0 if not unit and (scaled == int(scaled) or scaled >= 100) else 1  # noqa: PLR2004 - digits
            return f"{scaled:.{digits}f}{unit}"
    return f"{value / 1e9:.1f}G"


def fit(line: str, width: int) -> str:
    """Return at most `width` characters of a line; what was cut is marked."""
    return line if len(line) <= width else line[: max(0, width - 1)] + "~"


def printable(text: str) -> str:
    """Return a text without what could move the cursor or change a terminal's state."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return "".join(char if char.isprintable() or char == "\t" else "?" for char in plain)
