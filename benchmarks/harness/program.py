"""Runs a program that starts servers: however it ends, they end, and the person gets advice instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks.harness.client import ServerError
from benchmarks.harness.engine import EngineEnded, EngineStartError
from benchmarks.harness.model import ModelNotFound
from benchmarks.harness.report import Interrupted, interruptible
from benchmarks.harness.scenario import NotShared
from ghostcacher_cli.up.machine import NotEnoughMemory
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_simulator.load.trace_lines import BadTrace

EXPECTED = (
    BadTrace,
    EngineEnded,
    EngineStartError,
    ModelNotFound,
    NotEnoughMemory,
    NotShared,
    ServerError,
    ConfigError,
    OSError,
)
"""What the world does to us: shown as a message. Anything else is our own bug and keeps its traceback."""


def run_program(work: Callable[[], int]) -> int:
    """Return the exit status of `work`; 1 after an expected error, 128 + n after signal n."""
    try:
        with interruptible():
            return work()
    except Interrupted as exc:
        print(f"\n{exc}; everything that was started is ended", file=sys.stderr)
        return exc.exit_status
    except EXPECTED as exc:
        print(f"\n{exc}", file=sys.stderr)
        return 1
