"""The settings of flow control: a part of the router's."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import CheckedSettings, Milliseconds, Seconds, Text
from ghostcacher_router.flow.wishes import CACHE_SALT, HEADER_NAME, parse_weights

MIB = 1 << 20
Priority = Annotated[int, Meta(ge=-1000, le=1000)]


class FlowSettings(CheckedSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who waits in the router while all workers are saturated, for how long, and in which order."""

    flow_queue_max: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="requests that wait in the router while no worker has room; beyond, they get 429; 0: none "
            "waits, all are sent on at once, a count",
        ),
    ] = 0
    flow_queue_bytes_max: Annotated[
        int, Meta(ge=1, le=1024 * 1024 * MIB, description="of their bodies; beyond, they get 429, in bytes")
    ] = 256 * MIB
    flow_queue_timeout_s: Annotated[
        Seconds, Meta(ge=0.1, le=3600, description="longest wait of a request in that queue; then it gets 503, in s")
    ] = 60.0
    flow_worker_requests_max: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000,
            description="requests from which on a worker has no room for more, such as its --max-num-seqs and a few; "
            "where it reports no load, each router has its share of them, a count",
        ),
    ] = 256
    flow_worker_waiting_max: Annotated[
        int,
        Meta(
            ge=1,
            le=10_000,
            description="the same of requests that wait in the scheduler of a worker that reports its load, a count",
        ),
    ] = 8
    flow_worker_work_ms_max: Annotated[
        Milliseconds,
        Meta(ge=1, le=600_000, description="the same of prompts that such a worker has still to compute, in ms"),
    ] = 2000.0
    flow_worker_kv_max: Annotated[
        float,
        Meta(ge=0.01, le=1.0, description="the same of its KV memory that running requests need, as a part of all"),
    ] = 0.95
    flow_priorities: Annotated[
        Literal["off", "header", "client"],
        Meta(
            description="whose word says which requests go first: header: x-gc-priority alone, which a trusted proxy "
            "sets and takes from clients; client: that, or else the body's priority. Lower goes first, 0 is the default"
        ),
    ] = "off"
    flow_priority_min: Annotated[
        Priority, Meta(description="the first that may be asked for; lower ones get 400, so that nobody overtakes all")
    ] = 0
    flow_priority_max: Annotated[Priority, Meta(description="the last that may be asked for")] = 100
    flow_priority_to_engines: Annotated[
        bool,
        Meta(
            description="write the priority into the bodies of requests, for engines that run with "
            "--scheduling-policy priority; vLLM refuses any but 0 without it"
        ),
    ] = False
    flow_tenants: Annotated[
        Text | None,
        Meta(
            description="what names the tenant of a request, between whom turns are shared by work: cache_salt (of the "
            "body), or a header that a trusted proxy sets; none: all are one"
        ),
    ] = None
    flow_tenant_weights: Annotated[
        tuple[Text, ...],
        Meta(
            max_length=1024, description="tenants whose share is not that of every other, as name=weight, such as a=4"
        ),
    ] = ()
    flow_deadlines: Annotated[
        bool,
        Meta(
            description="regard x-gc-deadline-ms, the time in ms that a request may wait for its turn and its worker, "
            "from when the router has all of it; then it gets 504"
        ),
    ] = False

    def check_together(self) -> None:
        """Check what one type cannot say; raise ConfigError."""
        if self.flow_priority_min > self.flow_priority_max:
            raise ConfigError(
                f"flow_priority_min: expected at most flow_priority_max={self.flow_priority_max}, "
                f"got {self.flow_priority_min}"
            )
        if self.flow_tenants not in (None, CACHE_SALT) and not HEADER_NAME.fullmatch(self.flow_tenants or ""):
            raise ConfigError(f"flow_tenants: expected {CACHE_SALT} or the name of a header, got {self.flow_tenants!r}")
        parse_weights(self.flow_tenant_weights, "flow_tenant_weights")
        if self.flow_tenant_weights and self.flow_tenants is None:
            raise ConfigError("flow_tenants: expected what names a tenant, beside flow_tenant_weights, got none")
        if self.flow_queue_max:
            return
        for name, given, is_used in (
            ("flow_tenants", self.flow_tenants, False),
            ("flow_priorities", self.flow_priorities, self.flow_priorities == "off" or self.flow_priority_to_engines),
        ):
            if given is not None and not is_used:
                raise ConfigError(
                    f"flow_queue_max: expected at least 1 beside {name}={given}, since it says who of those that wait "
                    "goes first, got 0: nobody waits"
                )

    @property
    def controls_flow(self) -> bool:
        """Return whether any part of it is on."""
        return bool(self.flow_queue_max or self.flow_deadlines or self.flow_priority_to_engines)
