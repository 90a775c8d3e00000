"""Our lines in an engine's log."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from ghostcacher_connector.engines.common.logs import OURS, join_engine_log

ENGINE = "an_engine"


@pytest.fixture
def engine_log() -> Iterator[io.StringIO]:
    """A logger with a handler, as an engine sets its own up; ours is put back as it was."""
    stream, theirs, ours = io.StringIO(), logging.getLogger(ENGINE), logging.getLogger(OURS)
    before = ours.handlers[:], ours.level, ours.propagate
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s [%(filename)s] %(message)s"))
    theirs.addHandler(handler)
    theirs.setLevel(logging.INFO)
    theirs.propagate = False
    ours.handlers[:] = []
    yield stream
    theirs.removeHandler(handler)
    ours.handlers[:], ours.propagate = before[0], before[2]
    ours.setLevel(before[1])


def test_our_lines_carry_the_packages_name_in_the_engines_form(engine_log: io.StringIO) -> None:
    """Each of ours does, once in each place that the engine logs to; none of the engine's."""
    second = logging.StreamHandler(copy := io.StringIO())
    logging.getLogger(ENGINE).addHandler(second)
    join_engine_log(ENGINE, "text")
    logging.getLogger(ENGINE).removeHandler(second)
    join_engine_log(ENGINE, "text")
    logging.getLogger(f"{OURS}.worker.rank").warning("%d peers", 3)
    logging.getLogger(ENGINE).info("100%% ready in %d s", 5)
    assert engine_log.getvalue().splitlines() == [
        "WARNING [test_engine_logs.py] ghostcacher: 3 peers",
        "INFO [test_engine_logs.py] 100% ready in 5 s",
    ]
    assert copy.getvalue() == "ghostcacher: 3 peers\n"


def test_our_lines_are_written_once(engine_log: io.StringIO) -> None:
    """A root logger with the engine's handlers, as SGLang's, does not write them again."""
    root = logging.StreamHandler(again := io.StringIO())
    logging.getLogger().addHandler(root)
    join_engine_log(ENGINE, "text")
    logging.getLogger(f"{OURS}.worker").warning("once")
    logging.getLogger().removeHandler(root)
    assert engine_log.getvalue().count("once") == 1
    assert again.getvalue() == ""


def test_errors_keep_their_traceback(engine_log: io.StringIO) -> None:
    """What the engine's format adds to a message is added to ours."""
    join_engine_log(ENGINE, "text")
    try:
        raise RuntimeError("a bug")
    except RuntimeError:
        logging.getLogger(f"{OURS}.worker").exception("100%")
    lines = engine_log.getvalue().splitlines()
    assert lines[0] == "ERROR [test_engine_logs.py] ghostcacher: 100%"
    assert lines[-1] == "RuntimeError: a bug"


def test_loggers_that_somebody_has_configured_are_left_alone(engine_log: io.StringIO) -> None:
    """Whoever gives our loggers handlers of their own wants the lines there."""
    own = logging.NullHandler()
    logging.getLogger(OURS).addHandler(own)
    join_engine_log(ENGINE, "text")
    assert logging.getLogger(OURS).handlers == [own]


def test_our_lines_can_be_json_among_the_engines(engine_log: io.StringIO) -> None:
    """For whoever reads logs with a program: ours are objects, the engine's stay as they are."""
    join_engine_log(ENGINE, "json")
    logging.getLogger(f"{OURS}.worker.rank").warning("%d\npeers", 3)
    logging.getLogger(ENGINE).info("ready")
    ours, theirs = engine_log.getvalue().splitlines()
    line = json.loads(ours)
    assert (line["level"], line["logger"], line["message"]) == ("warning", f"{OURS}.worker.rank", "3\npeers")
    assert theirs == "INFO [test_engine_logs.py] ready"
