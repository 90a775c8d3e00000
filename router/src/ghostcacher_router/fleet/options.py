"""How often the fleet looks, and for how long it waits. Times in s."""

from __future__ import annotations

from typing import NamedTuple


class FleetOptions(NamedTuple):
    """Intervals, time-outs and limits of the fleet."""

    health_interval_s: float = 5.0
    """Between two health probes of a worker that is well."""
    models_interval_s: float = 4.0
    """Between two questions for the models of a worker that is well: with each probe, since adapters come and go."""
    backoff_first_s: float = 0.2
    """The first pause between probes of a worker that is not well; each further one is twice as long."""
    backoff_max_s: float = 5.0
    """The longest of these pauses."""
    joining_max_s: float = 1.0
    """The same for a worker that never answered yet: engines load for minutes, and are wanted at once then."""
    joining_said_s: float = 60.0
    """When the log says of such a worker that it still does not answer: nobody may be coming there."""
    failures_max: int = 3
    """Probes that are slow or wrong, and requests that find no connection, in a row, that make a worker DOWN. A probe
    that is refused, or told 503, does so at once."""
    ejection_first_s: float = 1.0
    """For how long a worker at which requests fail gets none; twice as long each time that it fails again."""
    ejection_max_s: float = 3.0
    """The longest of these times, so that a worker that is well again is used again soon."""
    return_s: float = 1.0
    """For how long a worker gets but few requests at a time after that."""
    store_call_s_max: float = 5.0
    """A call to the store or index that takes longer hangs, and counts as one that found it away."""
    discover_interval_s: float = 0.5
    """Between two looks for workers in Redis."""
    lease_ttl_s: float = 10.0
    """How long a worker's lease lasts, and so how long one that Redis may have lost is waited for."""
    load_interval_s: float = 0.2
    """Between two questions for the workers' loads."""
    drain_interval_s: float = 1.0
    """Between two exchanges of drains with the other routers."""
    drain_ttl_s: float = 86_400.0
    """A drain that everybody has forgotten ends by itself after this time."""
    gone_ttl_s: float = 600.0
    """How long a worker that has left is named: long enough to be seen by whoever comes to look."""
