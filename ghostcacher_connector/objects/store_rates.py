"""How fast a store is, as measured lately: for forecasts, and for whether compression pays."""

from __future__ import annotations

import threading

WEIGHT = 0.2
"""Of a new measurement: a handful of them counts."""

START_BYTES_S = 200e6
"""Assumed until something was measured."""

SMALL_BYTES = 64 << 10
"""What is smaller says how long a request takes, and nothing of the rate."""


class StoreRate:
    """The rate of one way, reads or writes. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes_s = START_BYTES_S
        """The rate of one request, latency included."""
        self.measured = False

    def __repr__(self) -> str:
        return f"StoreRate({self.bytes_s / 1e6:.0f} MB/s{'' if self.measured else ', assumed'})"

    def add(self, size_bytes: int, seconds: float) -> None:
        """Take in one request that succeeded."""
        if size_bytes < SMALL_BYTES:
            return
        rate = size_bytes / max(seconds, 1e-6)
        with self._lock:
            # Of times per byte: one slow request in ten makes ten slower, and not by its rate.
            mean = 1 / rate if not self.measured else (1 - WEIGHT) / self.bytes_s + WEIGHT / rate
            self.bytes_s = 1 / mean
            self.measured = True
