"""The arrows of the design: who may import whom, read from the sources."""

from __future__ import annotations

import pytest

from tests.unit.architecture import PACKAGES, circle_in, file_arrows, imports_of, room_of, sources

BASICS = {"", "core.types", "core.errors", "core.backoff", "core.breaker", "core.periodic", "core.threads"}
"""What every room may import; "" is the package itself, for its version."""

COORDINATION = {"core.coordination", "core.index"}

ARROWS: dict[str, set[str]] = {
    # What workers, routers and tools share.
    "core.admin_api": set(),
    "core.dashboard_api": {"core.admin_api"},
    "core.types": set(),
    "core.errors": set(),
    "core.backoff": set(),
    "core.breaker": set(),
    "core.threads": set(),
    "core.periodic": set(),
    "core.prefix_tree": set(),
    "core.settings": set(),
    "core.log_format": set(),
    "core.tracing": set(),
    "core.addresses": {"core.settings"},
    "core.object_url": {"core.settings"},
    "core.retention": {"core.settings"},
    "core.schema": set(),
    "core.sections": set(),
    "core.process": set(),
    "core.redis": {"core.process"},
    "core.stamps": {"core.schema"},
    "core.refusals": set(),
    "core.index": {"core.redis", "core.schema", "core.stamps", "core.refusals"},
    "core.coordination": {"core.redis", "core.schema", "core.stamps", "core.refusals", "core.index"},
    "core.open": {"core.redis", "core.index", "core.coordination"},
    # The connector, loaded inside each engine worker.
    "config": {"core.addresses", "core.log_format", "core.object_url", "core.retention", "core.settings"},
    "slots": set(),
    "identity": set(),
    "metrics": set(),
    "objects": {"config", "core.object_url", "metrics"},
    "transfer": {"core.addresses", "core.log_format", "core.schema", "core.settings", "slots"},
    "pull": {"config", "core.index", "core.tracing", "metrics", "transfer"},
    "publish": {"core.index", "core.coordination", "core.schema", "metrics", "pull"},
    "tiers": {
        "core.coordination",
        "core.index",
        "core.retention",
        "core.sections",
        "metrics",
        "objects",
        "slots",
        "transfer",
    },
    "worker": {
        "config",
        "core.addresses",
        "core.index",
        "core.open",
        "core.schema",
        "core.settings",
        "metrics",
        "objects",
        "publish",
        "pull",
        "slots",
        "transfer",
    },
    "engines": set(),
    "engines.common": {
        "config",
        "core.coordination",
        "core.log_format",
        "core.retention",
        "core.sections",
        "core.tracing",
        "identity",
        "metrics",
        "publish",
        "pull",
        "tiers",
    },
    "engines.vllm": {"*"},
    "engines.sglang": {"*"},
    # The router.
    "ghostcacher_router.types": set(),
    "ghostcacher_router.ports": {"ghostcacher_router.types", *COORDINATION},
    "ghostcacher_router.metrics": {"core.admin_api", "ghostcacher_router.types"},
    "ghostcacher_router.prompt": {"core.sections", "ghostcacher_router.types"},
    "ghostcacher_router.parsing": {"ghostcacher_router.types", "ghostcacher_router.prompt"},
    "ghostcacher_router.prefix_map": {"ghostcacher_router.types", *COORDINATION},
    "ghostcacher_router.http.protocol": {"ghostcacher_router.types"},
    "ghostcacher_router.dns": set(),
    "ghostcacher_router.store_calls": set(),
    "ghostcacher_router.upstreams": {
        "ghostcacher_router.types",
        "ghostcacher_router.dns",
        "ghostcacher_router.http.protocol",
    },
    "ghostcacher_router.http": {
        "core.log_format",
        "core.tracing",
        "ghostcacher_router.types",
        "ghostcacher_router.dns",
        "ghostcacher_router.prompt",
        "ghostcacher_router.http.protocol",
        "ghostcacher_router.upstreams",
    },
    "ghostcacher_router.fleet": {
        "ghostcacher_router.types",
        "ghostcacher_router.ports",
        "ghostcacher_router.dns",
        "ghostcacher_router.store_calls",
        "ghostcacher_router.metrics",
        *COORDINATION,
    },
    "ghostcacher_router.providers": {
        "core.settings",
        "ghostcacher_router.types",
        "ghostcacher_router.dns",
        "ghostcacher_router.fleet",
        "ghostcacher_router.http.protocol",
        "ghostcacher_router.metrics",
        "ghostcacher_router.prompt",
        "ghostcacher_router.upstreams",
    },
    "ghostcacher_router.flow": {
        "core.admin_api",
        "core.settings",
        "ghostcacher_router.types",
        "ghostcacher_router.ports",
        "ghostcacher_router.metrics",
        "ghostcacher_router.signals",
    },
    "ghostcacher_router.config": {
        "core.log_format",
        "core.settings",
        "ghostcacher_router.settings_file",
        "ghostcacher_router.fleet",
        "ghostcacher_router.flow",
        "ghostcacher_router.providers",
    },
    "ghostcacher_router.process_signals": {"ghostcacher_router.config"},
    "ghostcacher_router.signals": {"ghostcacher_router.types", "ghostcacher_router.ports", *COORDINATION},
    "ghostcacher_router.ghostlock": {
        "ghostcacher_router.types",
        "ghostcacher_router.ports",
        "ghostcacher_router.signals",
        *COORDINATION,
    },
    "ghostcacher_router.feed": {
        "ghostcacher_router.ports",
        "ghostcacher_router.prefix_map",
        "ghostcacher_router.signals",
        *COORDINATION,
    },
    "ghostcacher_router.placement": {
        "ghostcacher_router.types",
        "ghostcacher_router.ports",
        "ghostcacher_router.feed",
        "ghostcacher_router.metrics",
        "ghostcacher_router.signals",
        "ghostcacher_router.ghostlock",
        *COORDINATION,
    },
    "ghostcacher_router.sync": {
        "ghostcacher_router.types",
        "ghostcacher_router.feed",
        "ghostcacher_router.prefix_map",
        "ghostcacher_router.ghostlock",
        "ghostcacher_router.placement",
        *COORDINATION,
    },
    "ghostcacher_router.build": {
        "ghostcacher_router.types",
        "ghostcacher_router.ports",
        "ghostcacher_router.feed",
        "ghostcacher_router.flow",
        "ghostcacher_router.signals",
        "ghostcacher_router.ghostlock",
        "ghostcacher_router.placement",
        "ghostcacher_router.sync",
        *COORDINATION,
    },
    "ghostcacher_router.admin": {
        "core.admin_api",
        "core.dashboard_api",
        "core.sections",
        "ghostcacher_router.types",
        "ghostcacher_router.ports",
        "ghostcacher_router.build",
        "ghostcacher_router.fleet",
        "ghostcacher_router.ghostlock",
        "ghostcacher_router.http.protocol",
        "ghostcacher_router.metrics",
        "ghostcacher_router.placement",
        "ghostcacher_router.prefix_map",
        "ghostcacher_router.prompt",
        "ghostcacher_router.signals",
        "ghostcacher_router.ui",
        *COORDINATION,
    },
    "ghostcacher_router.ui": {"ghostcacher_router.http.protocol"},
    "ghostcacher_router.settings_file": set(),
    "ghostcacher_router.stores": {"core.open", "ghostcacher_router.config", *COORDINATION},
    "ghostcacher_router.epp": {
        "core.settings",
        "ghostcacher_router.types",
        "ghostcacher_router.config",
        "ghostcacher_router.dns",
        "ghostcacher_router.fleet",
        "ghostcacher_router.http",
        "ghostcacher_router.http.protocol",
        "ghostcacher_router.metrics",
        "ghostcacher_router.prompt",
        "ghostcacher_router.upstreams",
    },
    "ghostcacher_router.endpoint_picker": {
        "core.settings",
        "ghostcacher_router.app",
        "ghostcacher_router.epp",
        "ghostcacher_router.process_signals",
    },
    "ghostcacher_router.processes": {
        "core.admin_api",
        "core.dashboard_api",
        "core.settings",
        "ghostcacher_router.config",
        "ghostcacher_router.feed",
        "ghostcacher_router.http",
        "ghostcacher_router.http.protocol",
        "ghostcacher_router.metrics",
    },
    "ghostcacher_router.setup": {
        "ghostcacher_router.config",
        "ghostcacher_router.dns",
        "ghostcacher_router.http.protocol",
        "ghostcacher_router.metrics",
        "ghostcacher_router.providers",
    },
    "ghostcacher_router.app": {
        "ghostcacher_router.*",
        "core.admin_api",
        "core.settings",
        "core.tracing",
        *COORDINATION,
    },
    "ghostcacher_router.child_main": {
        "core.log_format",
        "ghostcacher_router.app",
        "ghostcacher_router.processes",
    },
    "ghostcacher_router.feed_main": {
        "core.log_format",
        "ghostcacher_router.feed",
        "ghostcacher_router.processes",
        "ghostcacher_router.store_calls",
        "ghostcacher_router.stores",
    },
    # Simulated engines.
    "ghostcacher_simulator.text": {"core.coordination"},
    "ghostcacher_simulator.pool": set(),
    "ghostcacher_simulator.processor": set(),
    "ghostcacher_simulator.engine": {
        "ghostcacher_simulator.pool",
        "ghostcacher_simulator.processor",
        "ghostcacher_simulator.text",
        *COORDINATION,
    },
    "ghostcacher_simulator.steps": set(),
    "ghostcacher_simulator.batching": {
        "ghostcacher_simulator.engine",
        "ghostcacher_simulator.steps",
        "ghostcacher_simulator.text",
        *COORDINATION,
    },
    "ghostcacher_simulator.connector": {"ghostcacher_simulator.pool", *COORDINATION},
    "ghostcacher_simulator.http_server": set(),
    "ghostcacher_simulator.api": {"ghostcacher_simulator.engine", "ghostcacher_simulator.http_server"},
    "ghostcacher_simulator.virtual_time": set(),
    "ghostcacher_simulator.load": {"ghostcacher_simulator.engine", "ghostcacher_simulator.text"},
    "ghostcacher_simulator.machines": {
        "ghostcacher_simulator.engine",
        "ghostcacher_simulator.processor",
        "ghostcacher_simulator.steps",
    },
    "ghostcacher_simulator.replay": {
        "pull",
        "core.retention",
        "core.schema",
        "core.settings",
        "ghostcacher_router.types",
        "ghostcacher_router.build",
        "ghostcacher_router.flow",
        "ghostcacher_router.fleet",
        "ghostcacher_router.metrics",
        "ghostcacher_router.placement",
        "ghostcacher_router.prefix_map",
        "ghostcacher_router.prompt",
        "ghostcacher_simulator.batching",
        "ghostcacher_simulator.connector",
        "ghostcacher_simulator.engine",
        "ghostcacher_simulator.load",
        "ghostcacher_simulator.machines",
        "ghostcacher_simulator.pool",
        "ghostcacher_simulator.processor",
        "ghostcacher_simulator.text",
        *COORDINATION,
    },
    "ghostcacher_simulator.__main__": {"ghostcacher_simulator.*", "core.schema", *COORDINATION},
    # The command line.
    "ghostcacher_cli.terminal": {"core.admin_api", "core.settings"},
    "ghostcacher_cli.up": {
        "config",
        "core.addresses",
        "core.object_url",
        "core.settings",
        "core.redis",
        "core.process",
        "ghostcacher_router.config",
        "ghostcacher_cli.terminal",
    },
    "ghostcacher_cli.doctor": {"*"},
    "ghostcacher_cli.analyze": {
        "core.prefix_tree",
        "core.retention",
        "ghostcacher_router.prompt",
        "ghostcacher_cli.terminal",
    },
    "ghostcacher_cli.simulate": {
        "core.retention",
        "ghostcacher_simulator.load",
        "ghostcacher_simulator.machines",
        "ghostcacher_simulator.replay",
        "ghostcacher_simulator.virtual_time",
        "ghostcacher_cli.terminal",
    },
    "ghostcacher_cli.main": {
        "ghostcacher_cli.*",
        "core.log_format",
        "core.settings",
        "ghostcacher_router.app",
        "ghostcacher_router.config",
        "ghostcacher_router.endpoint_picker",
        "ghostcacher_router.epp",
        "ghostcacher_router.processes",
    },
    # The client: a distribution of its own.
    "ghostcacher.client": set(),
}
"""Room -> the rooms that it may import beside `BASICS`: the code map of docs/ARCHITECTURE.md as a table. Rooms of the
connector go without its name. "*" is any room of the connector, "PACKAGE.*" any room of that package.
"""

PACKAGES_BELOW = {
    "ghostcacher_cli": {"ghostcacher_router", "ghostcacher_simulator"},
    "ghostcacher_simulator": {"ghostcacher_router"},
}
"""Package -> the packages beside the connector that its rooms may import."""


def allowed(room: str, target: str) -> bool:
    rules = ARROWS[room]
    package = target.partition(".")[0]
    connector = package not in PACKAGES
    return target in rules | BASICS | {room} or (connector and "*" in rules) or f"{package}.*" in rules


@pytest.mark.parametrize("module", sorted(sources()))
def test_imports_follow_the_arrows(module: str) -> None:
    """cli -> simulator -> router -> core, connector -> core, and inside each of them as the table says."""
    room = room_of(module)
    if module in PACKAGES or room in {"core", "engines"}:
        return
    wrong = [
        f"line {line}: {room} must not import {name}"
        for name, line in imports_of(sources()[module])
        if name in sources() and not allowed(room, room_of(name))
    ]
    assert not wrong, wrong


def test_every_room_is_in_the_table() -> None:
    """A folder that the table does not name would be free of rules; a rule about one that is gone guards nothing."""
    rooms = {room_of(module) for module in sources() if module not in PACKAGES} - {"core", "engines"}
    assert rooms == set(ARROWS) - {"engines"}


def test_table_has_no_circle_and_no_way_back() -> None:
    """The rooms have an order: no rule leads back to its own room, and nothing imports engines or the CLI."""
    exact = {room: {rule for rule in rules if "*" not in rule} for room, rules in ARROWS.items()}
    assert circle_in(exact) is None
    for room, rules in exact.items():
        package = room.partition(".")[0]
        outside = {rule.partition(".")[0] for rule in rules} & set(PACKAGES) - {package}
        assert outside <= PACKAGES_BELOW.get(package, set()), room
        assert not any(rule.startswith("engines") for rule in rules), room


def test_no_circle_of_files() -> None:
    """No module imports, over others or for types only, itself."""
    circle = circle_in(file_arrows())
    assert circle is None, " -> ".join(circle or [])


def test_circles_are_found() -> None:
    """The search itself: a circle behind a detour is found, a graph whose branches meet has none."""
    assert circle_in({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}) is None
    assert circle_in({"a": ["b"], "b": ["c", "d"], "c": [], "d": ["b"]}) == ["b", "d", "b"]
