"""What a command line says of flow control in the simulated routers: a router's own settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.settings import from_text, types_of
from ghostcacher_router.flow.settings import FlowSettings
from ghostcacher_router.flow.wishes import CACHE_SALT
from ghostcacher_simulator.load.tenants import Tenant

PREFIX = "flow_"
PRIORITY_MAX = 100
"""What a router takes where nothing else is said."""
MEANINGLESS = {"flow_priority_to_engines"}
"""Simulated engines go by the order in which requests come."""
_TYPES = {name.removeprefix(PREFIX): kind for name, kind in types_of(FlowSettings).items() if name not in MEANINGLESS}
EXPECTED = "a setting of a router without its flow_, such as queue_max=200, any number of times"


def flow_of(words: Sequence[str], tenants: Sequence[Tenant]) -> FlowSettings | None:
    """Return the settings of flow control; None where there is to be none. Raises ConfigError.

    What tenants have (priorities, deadlines, names) counts where nothing else is said.
    """
    if not words:
        return None
    priorities = [tenant.priority for tenant in tenants]
    given: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in _TYPES:
            raise ConfigError(f"--flow: expected NAME=VALUE with a name of {', '.join(_TYPES)}, got {word!r}")
        given[PREFIX + name] = from_text(f"--flow {name}", text, _TYPES[name])
    if given.get("flow_tenants") not in (None, CACHE_SALT):
        raise ConfigError(f"--flow tenants: expected {CACHE_SALT} or nothing, got {given['flow_tenants']!r}")
    if given.get("flow_queue_max") and any(priorities):
        allowed = {"flow_priority_min": min(0, *priorities), "flow_priority_max": max(PRIORITY_MAX, *priorities)}
        given = {"flow_priorities": "client", **allowed} | given
    if given.get("flow_queue_max") and tenants:
        given = {"flow_tenants": CACHE_SALT} | given
    if any(tenant.deadline is not None for tenant in tenants):
        given = {"flow_deadlines": True} | given
    return FlowSettings(**given)
