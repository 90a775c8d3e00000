"""Spans of look-ups and pulls beneath SGLang's own span of the request, at a collector."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="SGLang's environment is of before its traces")

from opentelemetry import trace as otel
from opentelemetry.util._once import Once
from sglang.srt.disaggregation.utils import DisaggregationMode
from sglang.srt.observability import trace as sglang_trace
from sglang.srt.observability.req_time_stats import APIServerReqTimeStats, SchedulerReqTimeStats

from ghostcacher_connector.core.tracing import Tracer, open_tracer
from ghostcacher_connector.core.types import MissReason
from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.engines.sglang import hooks
from ghostcacher_connector.engines.sglang.scheduling.requests import Tracked
from ghostcacher_connector.pull.lookups import LookupAnswer
from ghostcacher_connector.transfer.memory import Fault
from tests.sglang.loading_rig import COUNT, PAGE, Rig
from tests.sglang.test_matching import CHAIN, KEYS, matcher
from tests.sglang.test_matching import request as planned
from tests.support.spans import Seen, collector

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Traced:
    """A process of SGLang that traces. tracer: of the connector in it."""

    def __init__(self, tracer: Tracer, seen: list[Seen]) -> None:
        self.tracer, self._seen = tracer, seen

    def named(self, name: str) -> list[Seen]:
        """Return the spans with this name that have come to the collector."""
        provider: Any = otel.get_tracer_provider()
        provider.force_flush()
        return [span for span in self._seen if span.name == name]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    """Begin to trace as `--enable-trace` has SGLang's processes do."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    monkeypatch.setattr(otel, "_TRACER_PROVIDER", None)
    monkeypatch.setattr(otel, "_TRACER_PROVIDER_SET_ONCE", Once())
    for name in ("opentelemetry_initialized", "tracer", "global_trace_modules"):
        monkeypatch.setattr(sglang_trace, name, getattr(sglang_trace, name))
    with collector() as (endpoint, seen):
        sglang_trace.process_tracing_init(f"{endpoint}/v1/traces", "sglang-of-the-test")
        yield Traced(open_tracer("ghostcacher-connector"), seen)
        provider: Any = otel.get_tracer_provider()
        provider.shutdown()


def received(tracked: Tracked, headers: dict[str, str] | None = HEADERS) -> APIServerReqTimeStats:
    """Have SGLang's server take a request with these headers and hand it to its scheduler; return the server's part."""
    stats = APIServerReqTimeStats(disagg_mode=DisaggregationMode.NULL)
    stats.init_trace_ctx("r", None, headers)
    stats.set_created_time(time.perf_counter())
    sent = pickle.loads(pickle.dumps(stats))  # noqa: S301 - our own, as SGLang sends it
    req: Any = SimpleNamespace(rid="r", time_stats=SchedulerReqTimeStats.new_from_obj(sent))
    tracked.req = req
    return stats


def looked_up(traced: Traced, answer: LookupAnswer, headers: dict[str, str] | None = HEADERS) -> APIServerReqTimeStats:
    """Have a request find this answer of the index when SGLang looks for its prefix."""
    tracked = planned()
    tracked.phase, tracked.hits = Phase.HELD, []
    stats = received(tracked, headers)
    found = matcher(tracer=traced.tracer)
    lookups: Any = SimpleNamespace(start=lambda *_, **__: None, poll=lambda *_, **__: answer)
    found._lookups = lookups
    found.match(tracked, KEYS)
    return stats


def test_look_up_is_beneath_sglangs_span_of_the_request(traced: Traced) -> None:
    """Which is the client's child; all three are sent where SGLang's spans go."""
    stats = looked_up(traced, LookupAnswer(planned().hits, 0.001, None))
    stats.trace_ctx.trace_req_finish()
    (root,) = traced.named(" Req r")
    (lookup,) = traced.named("lookup")
    assert (root.trace, root.parent, lookup.trace, lookup.parent) == (TRACE, PARENT, TRACE, root.id)
    assert lookup.service == root.service == "sglang-of-the-test"
    asked = len(CHAIN)
    assert lookup.attributes == {"outcome": "hit", "blocks_asked": asked, "holders": 1, "blocks_held": asked}


def test_look_up_that_finds_nothing_says_why(traced: Traced) -> None:
    looked_up(traced, LookupAnswer([], 0.001, MissReason.NOT_INDEXED))
    (lookup,) = traced.named("lookup")
    assert (lookup.attributes["outcome"], lookup.attributes["holders"]) == ("not_indexed", 0)


@pytest.fixture
def rig(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = Rig(traced.tracer)
    monkeypatch.setattr(hooks, "_linker", rig.linker)
    yield rig
    rig.transport.let.set()
    rig.puller.close()


def traced_request(rig: Rig) -> Tracked:
    """Return a request that is traced, with a plan to pull its pages."""
    tracked = rig.request()
    fields = vars(tracked.req)
    received(tracked)
    vars(tracked.req).update({name: value for name, value in fields.items() if name != "rid"})
    return tracked


def pulled(rig: Rig) -> bool:
    """Have a traced request's pages pulled; return whether they are in SGLang's tree."""
    return rig.load(traced_request(rig)) == COUNT * PAGE


def test_pull_says_what_was_moved_from_whom(traced: Traced, rig: Rig) -> None:
    assert pulled(rig)
    (pull,) = traced.named("pull")
    assert (pull.trace, pull.error) == (TRACE, None)
    said = dict(pull.attributes)
    assert said.pop("transfer_s") > 0
    assert said == {
        "source": "peer",
        "transport": rig.transport.name,
        "outcome": "done",
        "bytes": COUNT * sum(segment.slot_bytes for segment in rig.memory.rank.segments),
        "blocks_asked": COUNT,
        "blocks_usable": COUNT,
    }


def test_pull_of_pages_that_were_reused_meanwhile_says_so(traced: Traced, rig: Rig) -> None:
    rig.fabric.inject(rig.peer.agent_name, Fault.REUSED_AFTER_READ)
    assert not pulled(rig)
    (stale,) = traced.named("pull")
    assert (stale.error, stale.attributes["blocks_usable"]) == ("stale: stale_generation", 0)


def test_pull_that_was_given_up_says_so(traced: Traced, rig: Rig) -> None:
    """Its READ hangs; the request goes on without it."""
    rig.hang(traced_request(rig))
    rig.now += 2.0
    rig.loader.settle()
    (hung,) = traced.named("pull")
    assert (hung.error, hung.attributes["source"], hung.attributes["bytes"]) == ("failed: timeout", "peer", 0)


def test_pull_of_which_another_rank_lacks_its_share_has_failed(traced: Traced, rig: Rig) -> None:
    """This rank's pages are there, and SGLang computes them all the same."""
    tracked = traced_request(rig)
    rig.begin(tracked)
    others: Any = SimpleNamespace(rank=0, least_of=lambda values: [min(value, 0) for value in values])
    rig.loader._ranks = others
    rig.over(tracked)
    (pull,) = traced.named("pull")
    assert (pull.attributes["outcome"], pull.attributes["blocks_usable"]) == ("failed", 0)
    assert pull.error is not None


def test_request_that_sglang_does_not_trace_has_no_spans(traced: Traced, rig: Rig) -> None:
    """Its tracing may be off, or the client have the request left out."""
    tracked = rig.request()
    tracked.req.time_stats = SchedulerReqTimeStats(disagg_mode=DisaggregationMode.NULL)
    assert tracked.trace_headers is None
    assert rig.load(tracked) == COUNT * PAGE
    unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    looked_up(traced, LookupAnswer(planned().hits, 0.001, None), unsampled)
    assert traced.named("pull") == traced.named("lookup") == []
