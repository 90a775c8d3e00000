"""Files of requests as loads. What is wrong with a file is said with its name, the line and the column."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import BinaryIO

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_simulator.load.access_lines import AccessLines, is_log_line
from ghostcacher_simulator.load.requests import BLOCK_TOKENS, Load, Row, make_requests
from ghostcacher_simulator.load.trace_lines import AzureLines, BadTrace, BurstGptLines, MooncakeLines

LINE_BYTES_MAX = 16 << 20
"""A line of JSON with a million hashes has less."""
SPREAD_SEED = 11
ANSWER_TOKENS = 200
"""Of an answer of which a trace does not say how long it is."""
CSV_FORMATS: Sequence[type[AzureLines | BurstGptLines]] = (AzureLines, BurstGptLines)
CSV_COLUMNS = " or ".join(", ".join(each.COLUMNS) for each in CSV_FORMATS)


def read_trace(
    path: Path,
    *,
    first: int = 0,
    count: int | None = None,
    speed: float = 1.0,
    block_tokens: int = BLOCK_TOKENS,
    tokens_max: int | None = None,
    answer_tokens: int = ANSWER_TOKENS,
) -> Load:
    """Return requests ``[first, first + count)`` of a trace: JSON lines, or a CSV by its name.

    count: None for all. answer_tokens: of each answer, where the file does not say. The others: as in `make_requests`.
    Raises ConfigError for a file that cannot be read, and BadTrace for one whose lines are not as they should be.
    """
    try:
        with path.open("rb") as file:
            if path.suffix.lower() == ".csv":
                rows = _csv_rows(file, block_tokens)
            else:
                rows = _json_rows(file, block_tokens, answer_tokens)
            chosen = list(islice(rows, first, None if count is None else first + count))
    except OSError as exc:
        raise ConfigError(f"trace {path}: cannot be read: {exc.strerror or exc}") from exc
    except BadTrace as exc:
        raise BadTrace(f"trace {path}, {exc}") from exc
    if not chosen:
        raise BadTrace(f"trace {path}: expected at least one request{f' from {first} on' if first else ''}, got none")
    rows_in_time = _spread(chosen)
    requests = make_requests(rows_in_time, block_tokens=block_tokens, speed=speed, tokens_max=tokens_max)
    return Load(path.name, requests, block_tokens)


def _json_rows(file: BinaryIO, block_tokens: int, answer_tokens: int) -> Iterator[Row]:
    lines: MooncakeLines | AccessLines | None = None
    number = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if line.isspace():
            continue
        try:
            if len(line) > LINE_BYTES_MAX:
                raise BadTrace(f"expected at most {LINE_BYTES_MAX >> 20} MiB, it is longer")
            if lines is None:
                is_log = is_log_line(line)
                lines = AccessLines(block_tokens, answer_tokens) if is_log else MooncakeLines(block_tokens)
            row = lines.read(line)
        except BadTrace as exc:
            raise BadTrace(f"line {number}: {exc}") from exc
        if row is not None:
            yield row


def _csv_rows(file: BinaryIO, block_tokens: int) -> Iterator[Row]:
    table = csv.reader(_text_lines(file))
    try:
        head = [name.strip() for name in next(table, [])]
        lines = _csv_format(head)(block_tokens)
        for cells in table:
            if cells:
                yield lines.read(_by_column(head, cells))
    except BadTrace as exc:
        raise BadTrace(f"line {max(1, table.line_num)}: {exc}") from exc
    except csv.Error as exc:
        raise BadTrace(f"line {table.line_num}: expected a line of a CSV: {exc}") from exc


def _text_lines(file: BinaryIO) -> Iterator[str]:
    while line := file.readline(LINE_BYTES_MAX + 1):
        try:
            yield line.decode("utf-8-sig")
        except UnicodeDecodeError as exc:
            raise BadTrace(f"expected UTF-8: {exc.reason}") from exc


def _csv_format(head: Sequence[str]) -> type[AzureLines | BurstGptLines]:
    for each in CSV_FORMATS:
        if set(each.COLUMNS) <= set(head):
            return each
    raise BadTrace(f"expected the columns {CSV_COLUMNS}, got {', '.join(head)[:200] or 'none'}")


def _by_column(head: Sequence[str], cells: Sequence[str]) -> Mapping[str, str]:
    if len(cells) != len(head):
        raise BadTrace(f"expected {len(head)} columns, got {len(cells)}")
    return dict(zip(head, cells, strict=True))


def _spread(rows: Sequence[Row]) -> Sequence[Row]:
    """Spread arrivals that a trace has rounded, at random, over the step to which it has rounded them.

    A trace is rounded when several requests have each of its times: then the step is the median of its steps.
    """
    times = sorted({row.at_s for row in rows})
    if len(times) < 2 or 2 * len(times) > len(rows):  # noqa: PLR2004 - a step has two ends; two requests at each time
        return rows
    steps = sorted(later - earlier for earlier, later in pairwise(times))
    step_s, rng = steps[len(steps) // 2], Random(SPREAD_SEED)  # noqa: S311 - no secret
    return [row._replace(at_s=row.at_s + rng.random() * step_s) for row in rows]
