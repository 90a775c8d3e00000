"""What the front counts, as metrics.py offers it. Every call is cheap: each request makes two."""

from __future__ import annotations

from typing import Protocol


class Observed(Protocol):
    def observe(self, value: float) -> None: ...


class Counted(Protocol):
    def inc(self, *labels: str) -> None: ...


class Meter(Protocol):
    """latency_ms: from a request's last byte to the request written. retries: by reason, "refused" or "broke"."""

    @property
    def latency_ms(self) -> Observed: ...

    @property
    def retries(self) -> Counted: ...

    def answered(self, path: str, status: int) -> None:
        """Count a request that has ended; 499: the client left."""
