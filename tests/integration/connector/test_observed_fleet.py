"""A real Prometheus scrapes a running fleet: every panel of the dashboard shows something, every alert sees its series.

The fleet: a router and two simulated engines behind it, and two engines with vLLM's real scheduler, which pull from
each other, and have a host tier and objects.
"""

from __future__ import annotations

import json
import math
import secrets
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("vllm")

from benchmarks.harness.redis_server import RedisServer
from benchmarks.harness.router import RouterProcess
from ghostcacher_connector.core.process.guarded import GuardedProcess
from ghostcacher_connector.metrics import MetricsPage, read_gauges, serve
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.test_vllm_host_tier import compute
from tests.integration.connector.test_vllm_objects import objects_at
from tests.support.dashboard import Asked, queries
from tests.support.index_parts import wait_until
from tests.support.prometheus import Prometheus, prometheus
from tests.support.promql import selectors

pytestmark = pytest.mark.engine

PATIENCE_S = 120.0
RULES = Path(__file__).resolve().parents[3] / "deploy" / "prometheus" / "ghostcacher.rules.yml"
LOGS = ("--access-log", "--log-format", "json")
ONLY_AFTER_TROUBLE = {"gc_router_ejections_total", "gc_router_worker_downs_total", "gc_quarantined_reads"}
"""Their labels are not known before: a fleet in which nothing has failed has none of these series."""


class Observed:
    """The fleet, and what goes on in it."""

    def __init__(self, engines: list[SimEngine], pages: list[MetricsPage], router: RouterProcess) -> None:
        self._engines, self._pages, self._router = engines, pages, router
        self.rounds = 0

    def router_lines(self) -> list[dict[str, Any]]:
        """Return the router's log."""
        return [json.loads(line) for line in self._router.process.log_tail(1_000_000).splitlines()]

    def work(self) -> None:
        """Have every engine and the router answer something, some of it known to others, and export what they count."""
        self.rounds += 1
        for number, engine in enumerate(self._engines):
            compute(engine, 10_000 * number + self.rounds)
            wait_until(engine.all_published, PATIENCE_S)
        for number, engine in enumerate(self._engines):
            compute(engine, 10_000 * (1 - number) + self.rounds)
        for engine, page in zip(self._engines, self._pages, strict=True):
            # As the engine's front end does: what came with its steps, and what is asked for beside them.
            delta, engine.delta = engine.delta, {}
            page.apply(delta)
            page.apply(read_gauges(str(engine.config.kv_transfer_config.engine_id)))
        self._ask(f"document {self.rounds % 4} " * 400)

    def _ask(self, prompt: str) -> None:
        body = json.dumps({"model": "m", "prompt": prompt, "stream": True}).encode()
        request = urllib.request.Request(f"{self._router.url}/v1/completions", body)  # noqa: S310
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310
            assert b"[DONE]" in answer.read()


@pytest.fixture
def fleet(make: Make, redis_server: RedisServer, tmp_path: Path) -> Iterator[tuple[Observed, Prometheus]]:
    settings = objects_at(f"file://{tmp_path}/objects")
    engines = [make(name, blocks=16, settings=settings) for name in ("a", "b")]
    for engine in engines:
        wait_until(lambda engine=engine: engine.peers_ready(1), PATIENCE_S)  # type: ignore[misc]
    with ExitStack() as stack:
        for name in ("sim-1", "sim-2"):
            command = [sys.executable, "-m", "ghostcacher_simulator", redis_server.url, name]
            command += [secrets.token_hex(16), "60"]
            stack.callback(GuardedProcess(command, log=tmp_path / f"{name}.log", grace_s=5.0).stop)
        router = stack.enter_context(
            RouterProcess(redis_url=redis_server.url, log_dir=tmp_path, arguments=LOGS)
        ).wait_workers(2)
        pages = [serve(0) for _ in engines]
        for page in pages:
            stack.callback(page.close)
        targets = {"engines": [f"127.0.0.1:{page.port}" for page in pages], "routers": [f"127.0.0.1:{router.port}"]}
        server = stack.enter_context(prometheus(tmp_path, targets, RULES))
        yield Observed(engines, pages, router), server


def without_data(server: Prometheus, asked: list[Asked]) -> list[Asked]:
    """Return the queries that have no series with a number in it."""
    found = {each: [float(series["value"][1]) for series in server.query(each.expression)] for each in asked}
    return [each for each, values in found.items() if all(map(math.isnan, values))]


def test_every_panel_shows_something_and_every_alert_sees_its_series(fleet: tuple[Observed, Prometheus]) -> None:
    """While the fleet works. Prometheus evaluates every rule without an error."""
    observed, server = fleet
    missing, deadline = queries(window="30s"), time.monotonic() + PATIENCE_S
    # Of four documents, so that the fifth round asks for one again.
    while (missing or observed.rounds < 5) and time.monotonic() < deadline:
        observed.work()
        missing = without_data(server, missing)
    assert [(each.row, each.panel, each.expression) for each in missing] == []
    # A page that is late once is down until it is asked again, and its series are gone for as long.
    wait_until(lambda: set(server.targets().values()) == {"up"}, PATIENCE_S, "every page to be read")
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    watched = {each.metric for rule in rules for each in selectors(rule["expr"])} - ONLY_AFTER_TROUBLE
    wait_until(lambda: all(map(server.query, watched)), PATIENCE_S, f"a series of each of {sorted(watched)}")
    loaded = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in loaded} == {rule["alert"] for rule in rules}
    wait_until(lambda: _healths(server) == {"ok"}, PATIENCE_S, "every rule to be evaluated")
    requests = [line for line in observed.router_lines() if line.get("path") == "/v1/completions"]
    assert requests[-1].keys() >= {"time", "level", "logger", "message", "client", "method", "status", "took_ms"}
    assert {line["worker"] for line in requests} <= {"sim-1", "sim-2"}
    assert all(line["ttft_ms"] > 0 and line["request_id"].startswith("gc-") for line in requests)
    known = [line for line in requests if line["cached_tokens"]]
    assert known, "a document that was asked for before"
    assert all(line["forecast_ms"] is not None and line["reason"] for line in known)


def _healths(server: Prometheus) -> set[str]:
    return {rule["health"] for group in server.get("rules")["groups"] for rule in group["rules"]}
