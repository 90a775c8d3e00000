"""One trace from a client through the router and a worker's look-up to the pull, at a collector."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from vllm.tracing import extract_trace_headers

from benchmarks.harness.router import RouterProcess
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.app import Router
from ghostcacher_router.config import RouterSettings
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import tokens_of
from tests.integration.connector.test_vllm_host_tier import BLOCKS, PROMPT_TOKENS, compute, tier_of
from tests.support.index_parts import wait_until
from tests.support.local_http import Asked, answering
from tests.support.spans import Seen, collector

pytestmark = pytest.mark.engine

WAIT_S = 60.0
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def front_end() -> Iterator[tuple[str, list[Mapping[str, str]]]]:
    """Serve as an engine's API server: yield its URL, and of each request the headers that vLLM hands to its engine."""
    handed: list[Mapping[str, str]] = []

    def answer(asked: Asked) -> tuple[int, bytes]:
        if asked.method == "GET":
            return 200, json.dumps({"object": "list", "data": [{"id": "m"}]}).encode()
        handed.append(extract_trace_headers(asked.headers))
        return 200, b"{}"

    with answering(answer) as url:
        yield url, handed


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Seen]]:
    """What a collector gets from every process of the test that traces."""
    with collector() as (endpoint, seen):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield seen


def ask(router: RouterProcess) -> None:
    body = json.dumps({"model": "m", "prompt": "x"}).encode()
    request = urllib.request.Request(  # noqa: S310
        f"{router.url}/v1/completions", body, {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b"}
    )
    with urllib.request.urlopen(request, timeout=WAIT_S) as answer:  # noqa: S310
        assert answer.status == 200


def fleet(make: Make, **settings: Any) -> tuple[SimEngine, SimEngine]:
    """Return an engine that holds a prompt, and one that traces and does not have it."""
    holder, reader = make("a"), make("b", settings={"tracing": True, **settings})
    for engine in (holder, reader):
        wait_until(lambda engine=engine: engine.peers_ready(1), WAIT_S)  # type: ignore[misc]
    compute(holder, 1)
    wait_until(holder.all_published, WAIT_S)
    return holder, reader


def test_trace_leads_from_the_client_to_the_pull(make: Make, collected: list[Seen], tmp_path: Path) -> None:
    """Each span under the one that caused it, with what was moved from whom, and what came of it."""
    _, reader = fleet(make)
    with ExitStack() as stack:
        url, handed = stack.enter_context(front_end())
        router = RouterProcess(workers=[url], arguments=["--tracing"], log_dir=tmp_path)
        ask(stack.enter_context(router.wait_workers(1)))
    reader.add("traced", tokens_of(1, PROMPT_TOKENS), trace_headers=handed[0])
    reader.add("not traced", tokens_of(2, PROMPT_TOKENS))
    reader.run()
    wait_until(lambda: len(collected) >= 5, WAIT_S, "every span")
    reader.close()
    spans = {span.name: span for span in collected}
    assert sorted(span.name for span in collected) == ["lookup", "pull", "request", "route", "upstream"]
    assert {span.trace for span in collected} == {TRACE}
    request, upstream, lookup, pull = (spans[name] for name in ("request", "upstream", "lookup", "pull"))
    assert (request.parent, spans["route"].parent, upstream.parent) == (PARENT, request.id, request.id)
    assert (lookup.parent, pull.parent) == (upstream.id, upstream.id)
    assert {span.service for span in (request, upstream)} == {"ghostcacher-router"}
    assert {span.service for span in (lookup, pull)} == {"ghostcacher-connector"}
    block_bytes = reader.worker._worker._runtime.endpoint.bytes_per_slot
    assert pull.attributes.pop("transfer_s") > 0  # type: ignore[attr-defined]
    assert pull.attributes == {
        "source": "a",
        "transport": "nixl",
        "outcome": "done",
        "bytes": BLOCKS * block_bytes,
        "blocks_asked": BLOCKS,
        "blocks_usable": BLOCKS,
    }
    assert lookup.attributes == {"outcome": "hit", "blocks_asked": BLOCKS, "holders": 1, "blocks_held": BLOCKS}
    assert request.begin_ns <= upstream.begin_ns <= upstream.end_ns <= request.end_ns
    assert lookup.begin_ns <= lookup.end_ns <= pull.begin_ns <= pull.end_ns
    assert {span.error for span in collected} == {None}


def test_what_was_not_found_or_not_valid_is_said(make: Make, collected: list[Seen]) -> None:
    """A prompt that nobody holds, and one whose blocks are overwritten before they are read."""
    holder, reader = fleet(make)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    reader.add("unknown", tokens_of(9, PROMPT_TOKENS), trace_headers=headers)
    reader.run()
    table = holder.worker._worker._table
    slots = np.arange(table.slot_count)
    table.bump(slots, np.array([table.generation(slot) + 1 for slot in slots], dtype=np.uint64))
    reader.add("stale", tokens_of(1, PROMPT_TOKENS), trace_headers=headers)
    reader.run()
    wait_until(lambda: len(collected) >= 3, WAIT_S, "every span")
    first, second, pull = collected
    assert (first.attributes["outcome"], first.attributes["holders"]) == ("not_indexed", 0)
    assert second.attributes["outcome"] == "hit"
    assert (pull.attributes["outcome"], pull.attributes["reason"]) == ("stale", "stale_generation")
    assert (pull.attributes["blocks_usable"], pull.error) == (0, "stale: stale_generation")


def test_own_host_memory_is_a_source_like_a_peer(make: Make, collected: list[Seen]) -> None:
    """Loaded from there without asking the index: there is a pull and no look-up."""
    engine = make("a", blocks=16, settings={"tracing": True, **tier_of(64)})
    for seed in range(4):
        compute(engine, seed)
    compute(engine, 0, trace_headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    wait_until(lambda: collected, WAIT_S, "a span")
    engine.close()
    (pull,) = collected
    assert (pull.name, pull.attributes["source"], pull.attributes["transport"]) == ("pull", "a", "local")


def test_router_without_the_package_says_so_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not begin to serve untraced."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match="tracing: expected OpenTelemetry to be installed"):
        Router(RouterSettings(redis=False, workers=("http://127.0.0.1:1",), tracing=True))
