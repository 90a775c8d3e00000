"""Lines of a log as JSON objects."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from ghostcacher_connector.core.log_format import JsonFormatter, formatter, with_fields


def record(message: str, *arguments: object, extra: dict[str, object] | None = None) -> logging.LogRecord:
    made = logging.getLogger("a.b").makeRecord("a.b", logging.ERROR, "f.py", 1, message, arguments, None, extra=extra)
    made.created = 0.25
    return made


def test_line_has_time_level_logger_message_and_fields() -> None:
    """Fields that a record was given beside its text stand beside it."""
    line = JsonFormatter().format(record("%s is %d", "x", 7, extra=with_fields({"worker": "w", "ttft_ms": None})))
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.250+00:00",
        "level": "error",
        "logger": "a.b",
        "message": "x is 7",
        "worker": "w",
        "ttft_ms": None,
    }
    assert datetime.fromisoformat(json.loads(line)["time"]) == datetime.fromtimestamp(0.25, UTC)


def test_whatever_is_logged_is_one_line() -> None:
    """Nobody can write a second line by what he has logged, and nothing that JSON does not know loses the line."""
    line = JsonFormatter().format(record('a\n{"level": "error"}\u2028\ud800', extra=with_fields({"what": object})))
    assert len(line.splitlines()) == 1
    found = json.loads(line)
    assert (found["message"], found["what"]) == ('a\n{"level": "error"}\u2028\ud800', "<class 'object'>")


def test_exception_is_part_of_the_line() -> None:
    """With its traceback, in one field."""
    failed = record("failed")
    try:
        raise RuntimeError("a bug")
    except RuntimeError:
        failed.exc_info = sys.exc_info()
    line = JsonFormatter().format(failed)
    assert len(line.splitlines()) == 1
    assert json.loads(line)["exception"].endswith("RuntimeError: a bug")


def test_text_is_the_default_and_shows_no_fields() -> None:
    """As lines have looked before there were others."""
    assert formatter("text", "%(levelname)s %(message)s").format(record("a", extra=with_fields({"b": 1}))) == "ERROR a"


def test_each_of_several_processes_says_which_it_is() -> None:
    """A router's processes write into one log."""
    assert formatter("text", process="1.6").format(record("a")).endswith(" ERROR [1.6] a.b: a")
    assert json.loads(formatter("json", process="1.6").format(record("a")))["process"] == "1.6"
    assert "process" not in json.loads(formatter("json").format(record("a")))
