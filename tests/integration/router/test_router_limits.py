"""Each setting that bounds something reaches the part of the router that holds to it."""

from __future__ import annotations

from typing import Any

import pytest

from ghostcacher_router.app import Router
from ghostcacher_router.config import RouterSettings
from tests.support.proxy_rig import on_loop

WORKERS = ("http://127.0.0.1:1",)
MIB = 1 << 20
OF_CLIENTS: list[tuple[str, str, Any]] = [
    ("head_bytes_max", "head_bytes_max", 9000),
    ("body_bytes_max", "body_bytes_max", 3 * MIB),
    ("buffered_bytes_max", "buffered_bytes_max", 900 * MIB),
    ("connections_max", "connections_max", 77),
    ("connections_per_address_max", "connections_per_address_max", 3),
    ("allowed_origins", "allowed_origins", ("https://a.example",)),
    ("client_header_timeout_s", "client_header_s", 3.5),
    ("client_body_timeout_s", "client_body_s", 33.5),
    ("keep_alive_timeout_s", "keep_alive_s", 34.5),
    ("connect_timeout_s", "connect_s", 1.5),
    ("read_timeout_s", "worker_silence_s", 35.5),
    ("upstream_idle_s", "upstream_idle_s", 2.5),
    ("retries_max", "retries_max", 1),
]
OF_THE_FLEET: list[tuple[str, str, Any]] = [
    ("health_interval_s", "health_interval_s", 7.5),
    ("health_failures_max", "failures_max", 7),
    ("load_interval_ms", "load_interval_s", 0.75),
]


@pytest.mark.parametrize(("setting", "limit", "value"), OF_CLIENTS)
@on_loop
async def test_setting_bounds_clients_and_connections_to_workers(setting: str, limit: str, value: Any) -> None:
    """It is no default by accident."""
    router = Router(RouterSettings(redis=False, workers=WORKERS, **{setting: value}))
    limits = router._proxy.state.limits
    assert (getattr(limits, limit), limits._field_defaults[limit] != value) == (value, True)
    await router.stop()


@pytest.mark.parametrize(("setting", "option", "value"), OF_THE_FLEET)
@on_loop
async def test_setting_bounds_what_the_fleet_does(setting: str, option: str, value: Any) -> None:
    """The one of load reports is in milliseconds, as people write it."""
    given = int(value * 1e3) if setting.endswith("_ms") else value
    router = Router(RouterSettings(redis=False, workers=WORKERS, **{setting: given}))
    assert getattr(router._fleet.options, option) == value
    await router.stop()
