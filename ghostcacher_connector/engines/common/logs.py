"""Puts our log lines where an engine's go, under the package's name."""

from __future__ import annotations

import copy
import logging

from ghostcacher_connector.core.log_format import JsonFormatter, LogFormat

OURS = "ghostcacher_connector"
SHOWN = "ghostcacher"
"""Precedes each of our messages. Engines' formats show a file's name at most, and theirs and ours have the same."""


class NamedFormatter(logging.Formatter):
    """Formats a record as another formatter does, with the package's name before its message."""

    def __init__(self, engine: logging.Formatter) -> None:
        super().__init__()
        self._engine = engine

    def format(self, record: logging.LogRecord) -> str:
        named = copy.copy(record)  # other handlers see the record, too
        named.msg, named.args = f"{SHOWN}: {record.getMessage()}", None
        return self._engine.format(named)


def join_engine_log(engine: str, log_format: LogFormat) -> None:
    """Give our loggers the engine's handlers and level, unless somebody has configured ours. Idempotent.

    engine: name of the logger that the engine puts its handlers on; "" for the root logger. log_format: of our lines;
    "text" is the engine's.
    """
    ours, theirs = logging.getLogger(OURS), logging.getLogger(engine)
    if ours.handlers or not theirs.handlers:
        return
    for handler in theirs.handlers:
        named = copy.copy(handler)  # the same stream under the same lock
        theirs_named = NamedFormatter(handler.formatter or logging.Formatter())
        named.setFormatter(JsonFormatter() if log_format == "json" else theirs_named)
        ours.addHandler(named)
    ours.setLevel(theirs.level)
    ours.propagate = False
