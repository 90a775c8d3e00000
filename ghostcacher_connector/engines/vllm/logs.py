"""Puts our log lines where vLLM's go: same handlers, level and form."""

from __future__ import annotations

import logging

OURS = "ghostcacher_connector"
THEIRS = "vllm"


def join_engine_log() -> None:
    """Give our loggers vLLM's handlers, unless somebody has configured ours. May be called more than once."""
    ours, theirs = logging.getLogger(OURS), logging.getLogger(THEIRS)
    if ours.handlers or not theirs.handlers:
        return
    for handler in theirs.handlers:
        ours.addHandler(handler)
    ours.setLevel(theirs.level)
    ours.propagate = False
