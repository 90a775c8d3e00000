"""Makes flow control of its settings, for one router."""

from __future__ import annotations

from collections.abc import Callable

from ghostcacher_router.flow.flow_control import FlowControl, FlowOptions
from ghostcacher_router.flow.settings import FlowSettings
from ghostcacher_router.flow.wishes import WishOptions, parse_weights
from ghostcacher_router.flow.worker_rooms import RoomLimits, WorkerRooms
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.ports import Clock, FleetPort
from ghostcacher_router.signals.queue_estimate import QueueEstimator
from ghostcacher_router.types import Dispatcher


def make_flow_control(
    settings: FlowSettings,
    picker: Dispatcher,
    fleet: FleetPort,
    queues: QueueEstimator,
    metrics: RouterMetrics,
    *,
    routers: Callable[[], int],
    clock: Clock,
) -> FlowControl | None:
    """Return what stands before the picker; None where no part of it is on.

    queues: of this router. routers: returns how many place requests at these workers, this one included.
    """
    if not settings.controls_flow:
        return None
    limits = RoomLimits(
        settings.flow_worker_requests_max,
        settings.flow_worker_waiting_max,
        settings.flow_worker_work_ms_max,
        settings.flow_worker_kv_max,
    )
    options = FlowOptions(
        settings.flow_queue_max,
        settings.flow_queue_bytes_max,
        settings.flow_queue_timeout_s,
        settings.flow_priority_to_engines,
        WishOptions(
            settings.flow_priorities,
            settings.flow_priority_min,
            settings.flow_priority_max,
            settings.flow_tenants,
            settings.flow_deadlines,
        ),
        parse_weights(settings.flow_tenant_weights, "flow_tenant_weights"),
    )
    rooms = WorkerRooms(fleet, queues, limits, routers, clock)
    flow = FlowControl(picker, rooms, options, metrics.flow, clock)
    metrics.gauge(
        "gc_router_queue_requests", "Requests that wait in the router for their turn.", lambda: {"": len(flow.queue)}
    )
    metrics.gauge("gc_router_queue_bytes", "Of their bodies.", lambda: {"": flow.queue.size})
    metrics.gauge(
        "gc_router_saturated_workers",
        "Workers that have no room for another request.",
        lambda: {"": len(rooms.saturated)},
    )
    return flow
