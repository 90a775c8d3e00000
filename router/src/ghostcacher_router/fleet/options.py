"""How often the fleet looks, and for how long it waits. Times in s."""

from __future__ import annotations

from typing import NamedTuple


class FleetOptions(NamedTuple):
    """health_interval_s, models_interval_s: between questions to a worker that is well.

    backoff_first_s, backoff_max_s: pauses between probes of one that is not; joining_max_s: of one that never was yet,
    since engines load for minutes and are wanted as soon as they are there.
    failures_max: slow or wrong answers in a row that make a worker DOWN. A refused connection does so at once.
    lease_ttl_s: of the workers' leases: how long one that Redis may have lost is waited for.
    drain_ttl_s: a drain that everybody has forgotten ends by itself.
    """

    health_interval_s: float = 5.0
    models_interval_s: float = 30.0
    backoff_first_s: float = 0.2
    backoff_max_s: float = 5.0
    joining_max_s: float = 1.0
    failures_max: int = 3
    discover_interval_s: float = 0.5
    lease_ttl_s: float = 10.0
    load_interval_s: float = 0.2
    drain_interval_s: float = 1.0
    drain_ttl_s: float = 86_400.0
