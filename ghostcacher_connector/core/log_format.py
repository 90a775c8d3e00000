"""What a line of a log looks like: text for people, or one JSON object for programs (`log_format`).

A JSON line has `time` (UTC), `level`, `logger` and `message`, `process` where several write into one log, the fields
that the record was given beside its text, and `exception` where one was logged. Each message is one line, whatever it
holds.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def with_fields(fields: Mapping[str, object]) -> dict[str, Any]:
    """Return the `extra` of a call of a logger that gives a JSON line these fields. Text does not show them."""
    return {"gc_fields": fields}


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object. process: the name of the one that writes, if it is one of several."""

    def __init__(self, process: str | None = None) -> None:
        super().__init__()
        self._process = {} if process is None else {"process": process}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= self._process
        line |= getattr(record, "gc_fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def formatter(log_format: LogFormat, text: str = TEXT, process: str | None = None) -> logging.Formatter:
    """Return what formats the lines of a log of our own.

    text: the form of those that are not JSON. process: who writes them, where several write into one log.
    """
    if log_format == "json":
        return JsonFormatter(process)
    return logging.Formatter(text if process is None else text.replace("%(name)s", f"[{process}] %(name)s"))


def log_to_stderr(level: str, log_format: LogFormat, process: str | None = None) -> None:
    """Have this process log to standard error. level: in small letters, as settings have it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(log_format, process=process))
    logging.basicConfig(level=level.upper(), handlers=[handler])
