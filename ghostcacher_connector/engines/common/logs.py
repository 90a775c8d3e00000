"""Puts our log lines where an engine's go: same handlers, level and form."""

from __future__ import annotations

import logging

OURS = "ghostcacher_connector"


def join_engine_log(engine: str) -> None:
    """Give our loggers the handlers of the engine's logger, unless somebody has configured ours. Idempotent.

    engine: name of the logger that the engine puts its handlers on.
    """
    ours, theirs = logging.getLogger(OURS), logging.getLogger(engine)
    if ours.handlers or not theirs.handlers:
        return
    for handler in theirs.handlers:
        ours.addHandler(handler)
    ours.setLevel(theirs.level)
    ours.propagate = False
