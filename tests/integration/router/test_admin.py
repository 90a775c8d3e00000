"""The router's own endpoints, over a real fleet and real engines' answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import msgspec
import pytest

from ghostcacher_connector.core.admin_api import GONE, Flushed, Prefetched, Status, Workers
from ghostcacher_connector.core.coordination.memory import MemoryCoordinationStore
from ghostcacher_connector.core.dashboard_api import History, Links, Locks, Prefixes
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.core.types import FlushScope, WorkerRecord
from ghostcacher_router.admin.access import Access
from ghostcacher_router.admin.admin import Admin, AdminPorts
from ghostcacher_router.admin.parameters import Explained, ExplainedRequest, FlushTarget, PrefetchTarget
from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.fleet.options import FleetOptions
from ghostcacher_router.http.protocol.local_response import LocalRequest, LocalResponse
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.prompt import BadBody
from ghostcacher_router.types import NoWorker
from tests.support.index_parts import make_record
from tests.support.mock_engine import MiniEngine, until

FAST = FleetOptions(
    health_interval_s=0.05, joining_max_s=0.05, discover_interval_s=0.02, drain_interval_s=0.02, lease_ttl_s=0.2
)
"""A lease this short also bounds how long a fleet waits for leases that all ended at once."""
HEADERS = {b"host": b"localhost:8000"}


class Routing:
    """What routing would do, or fail to."""

    def __init__(self) -> None:
        self.flushed: list[FlushTarget] = []
        self.prefetched: list[PrefetchTarget] = []
        self.explained: list[ExplainedRequest] = []
        self.fails: Exception | None = None
        self.busy: set[str] = set()

    def in_flight(self, worker: str) -> int:
        return 3 if worker in self.busy else 0

    async def flush(self, ask: FlushTarget) -> Flushed:
        self.flushed.append(ask)
        return Flushed(ask.scope)

    async def prefetch(self, ask: PrefetchTarget) -> Prefetched:
        self.prefetched.append(ask)
        return Prefetched("a", 1.5, 100, 60)

    async def prefixes(self) -> Prefixes:
        return Prefixes(seen=7)

    async def links(self, worker: str | None) -> Links:
        return Links(readers=0 if worker is None else 1)

    async def explain(self, ask: ExplainedRequest) -> Explained:
        self.explained.append(ask)
        if self.fails is not None:
            raise self.fails
        return Explained([{"worker": "a", "total_ms": float("inf")}], [{"worker": "b"}])


class Subject:
    def __init__(self, admin: Admin, fleet: Fleet, index: MemoryIndex, routing: Routing) -> None:
        self.admin, self.fleet, self.index, self.routing = admin, fleet, index, routing

    async def send(self, method: str, target: str, body: bytes = b"") -> LocalResponse:
        path, _, query = target.partition("?")
        assert self.admin.match(method, path)
        return await self.admin.handle(LocalRequest(method, path, query, HEADERS, body, "127.0.0.1"))

    async def get(self, target: str) -> Any:
        response = await self.send("GET", target)
        assert response.status == 200, response
        return json.loads(response.body)


@contextlib.asynccontextmanager
async def router(*engines: MiniEngine, token: str | None = None) -> AsyncIterator[Subject]:
    index, metrics, routing = MemoryIndex(), RouterMetrics(), Routing()
    static = [engine.endpoint for engine in engines]
    fleet = Fleet(metrics=metrics, static=static, index=index, store=MemoryCoordinationStore(), options=FAST)
    ports = AdminPorts(
        in_flight=routing.in_flight,
        replicas=lambda: 2,
        refused=lambda: None,
        explain=routing.explain,
        prefetch=routing.prefetch,
        flush=routing.flush,
        history=lambda after: History("r", after or 0.0, 5.0),
        prefixes=routing.prefixes,
        locks=Locks,
        links=routing.links,
    )
    admin = Admin(fleet=fleet, metrics=metrics, access=Access(token=token, loopback=True), ports=ports)
    await fleet.start()
    routing.busy = set(fleet.workers)
    try:
        yield Subject(admin, fleet, index, routing)
    finally:
        await fleet.stop()


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 280))


def test_ready_says_why_not() -> None:
    """Not ready without a worker, with one that is down, and ready with one that answers."""

    async def main() -> None:
        async with router() as lonely:
            response = await lonely.send("GET", "/ready")
            assert (response.status, b"no worker is known" in response.body) == (503, True)
        async with MiniEngine() as engine, router(engine) as subject:
            assert (await subject.send("GET", "/health")).status == 200
            await until(lambda: bool(subject.fleet.serving(None)))
            assert await subject.get("/ready") == {"status": "ready"}
            await engine.refuse()
            await until(lambda: not subject.fleet.serving(None))
            response = await subject.send("GET", "/ready")
            assert json.loads(response.body)["why"] == "no worker is ready: 1 down"

    run(main())


def test_models_are_those_of_all_workers() -> None:
    """Merged, each once, as the engines describe them; and one by its name."""

    async def main() -> None:
        async with MiniEngine(["x", "a/b"]) as one, MiniEngine(["x", "y"]) as two, router(one, two) as subject:
            await until(lambda: len(subject.fleet.serving(None)) == 2)
            models = await subject.get("/v1/models")
            assert [model["id"] for model in models["data"]] == ["a/b", "x", "y"]
            assert models["data"][0]["max_model_len"] == 512
            assert (await subject.get("/v1/models/a%2Fb"))["id"] == (await subject.get("/v1/models/a/b"))["id"] == "a/b"
            missing = await subject.send("GET", "/v1/models/z")
            assert (missing.status, json.loads(missing.body)["error"]["code"]) == (404, "model_not_found")

    run(main())


def test_status_stats_and_pods_show_the_fleet() -> None:
    """People see every worker, those that cannot be used included, and no secret."""

    async def main() -> None:
        async with MiniEngine() as engine, router(engine) as subject:
            subject.index.join(msgspec.structs.replace(make_record("mute"), http=None), lease_ttl_s=60.0)
            await until(lambda: bool(subject.fleet.serving("m")) and bool(subject.fleet.unroutable))
            status = await subject.get("/gc/status")
            assert (status["workers"]["ready"], status["not_routable"]) == (1, 1)
            assert (status["redis_available"], status["replicas"], status["models"]) == (True, 2, ["m"])
            pods = (await subject.get("/gc/pods"))["pods"]
            assert [(pod["state"], pod.get("in_flight"), pod.get("lease")) for pod in pods] == [
                ("ready", 3, "static"),
                ("not_routable", None, None),
            ]
            workers = (await subject.get("/gc/workers"))["workers"]
            assert [(worker["id"], worker.keys()) for worker in workers] == [(pod["id"], pod.keys()) for pod in pods]
            assert (await subject.get("/gc/stats"))["requests"]["total"] == 0
            page = await subject.send("GET", "/metrics")
            assert b'gc_router_workers{state="ready"} 1.0' in page.body
            assert b"gc_router_replicas 2.0" in page.body

    run(main())


@pytest.mark.parametrize("path", ["/gc/workers", "/gc/pods"])
def test_drain_and_back(path: str) -> None:
    """A drained worker gets nothing, shows what it still does, and comes back when asked."""

    async def main() -> None:
        async with MiniEngine() as engine, router(engine) as subject:
            await until(lambda: bool(subject.fleet.serving("m")))
            target = f"{path}/127.0.0.1%3A{engine.port}/drain"
            drained = json.loads((await subject.send("POST", target)).body)
            assert (drained["state"], drained["in_flight"], drained["shared"]) == ("draining", 3, True)
            assert subject.fleet.serving(None) == []
            assert json.loads((await subject.send("DELETE", target)).body)["state"] == "ready"
            await subject.send("POST", target)
            assert json.loads((await subject.send("POST", target + "?drain=false")).body)["state"] == "ready"
            assert (await subject.send("POST", target + "?drain=maybe")).status == 400
            assert (await subject.send("POST", f"{path}/nobody/drain")).status == 404

    run(main())


def joined(subject: Subject, engine: MiniEngine) -> WorkerRecord:
    """Let a worker in that has a lease."""
    record = msgspec.structs.replace(make_record("w"), http=engine.endpoint.url)
    subject.index.join(record, lease_ttl_s=60.0)
    return record


def test_worker_that_dies_is_named_until_it_is_back() -> None:
    """It is in no count and gets nothing, but status and workers say who is gone, since when, and what was wrong."""

    async def main() -> None:
        async with MiniEngine() as engine, router() as subject:
            record = joined(subject, engine)
            await until(lambda: bool(subject.fleet.serving("m")))
            assert (await subject.get("/gc/status"))["gone"] == []
            await engine.refuse()
            await until(lambda: not subject.fleet.serving(None))
            subject.index.leave(ref_of(record))
            await until(lambda: "w" not in subject.fleet.workers)
            status = msgspec.convert(await subject.get("/gc/status"), Status)
            (gone,) = status.gone
            assert (gone.id, gone.state, gone.url) == ("w", GONE, engine.endpoint.url)
            assert 0.0 <= gone.state_s < 60.0
            assert gone.error
            assert gone.error in (gone.why or "")
            assert status.why_not_ready == "no worker is left: w gone"
            assert sum(status.workers.values()) == 0
            rows = msgspec.convert(await subject.get("/gc/workers"), Workers).workers
            assert [(row.id, row.state) for row in rows] == [("w", GONE)]
            assert subject.fleet.serving(None) == []
            assert (await subject.send("POST", "/gc/workers/w/drain")).status == 404
            subject.index.join(msgspec.structs.replace(record, incarnation=b"n" * 16), lease_ttl_s=60.0)
            await until(lambda: "w" in subject.fleet.workers)
            assert (await subject.get("/gc/status"))["gone"] == []

    run(main())


def test_worker_that_was_drained_leaves_without_a_trace() -> None:
    """Whoever drains it knows that it goes."""

    async def main() -> None:
        async with MiniEngine() as engine, router() as subject:
            record = joined(subject, engine)
            await until(lambda: bool(subject.fleet.serving("m")))
            await subject.send("POST", "/gc/workers/w/drain")
            subject.index.leave(ref_of(record))
            await until(lambda: "w" not in subject.fleet.workers)
            assert (await subject.get("/gc/status"))["gone"] == []
            assert (await subject.get("/gc/workers"))["workers"] == []

    run(main())


def test_prefetch_reaches_routing_and_says_what_came_of_it() -> None:
    """Where, how long, and how much of it was there already."""

    async def main() -> None:
        async with router() as subject:
            answer = await subject.send("POST", "/gc/prefetch", b'{"model": "m", "prompt": "x", "worker": "a"}')
            assert json.loads(answer.body) == {
                "worker": "a",
                "seconds": 1.5,
                "prompt_tokens": 100,
                "cached_tokens": 60,
            }
            asked = PrefetchTarget("/v1/completions", {"model": "m", "prompt": "x"}, "a")
            assert subject.routing.prefetched == [asked]

    run(main())


def test_flush_and_explain_reach_routing() -> None:
    """What was asked arrives; what routing refuses is the client's error; what is infinite is still JSON."""

    async def main() -> None:
        async with router() as subject:
            flushed = await subject.send("POST", "/gc/flush", b'{"scope": "all"}')
            assert json.loads(flushed.body) == {"flushed": "all"}
            assert subject.routing.flushed == [FlushTarget(FlushScope.ALL)]
            explained = await subject.get("/gc/explain?model=m&prompt=p")
            assert explained["workers"] == [{"worker": "a", "total_ms": None}]
            assert explained["prefill"] == [{"worker": "b"}]
            for failure, status in (
                (BadBody("no", "messages"), 400),
                (NoWorker(404, "no model", kind="model_not_found"), 404),
                (TimeoutError(), 504),
                (RuntimeError("a bug"), 500),
            ):
                subject.routing.fails = failure
                response = await subject.send("POST", "/gc/explain", b"{}")
                assert (response.status, b"a bug" in response.body) == (status, False)

    run(main())


@pytest.mark.parametrize(
    ("method", "target", "status", "allow"),
    [
        ("POST", "/health", 405, b"GET, HEAD"),
        ("DELETE", "/v1/models", 405, b"GET, HEAD"),
        ("GET", "/gc/flush", 405, b"POST"),
        ("GET", "/gc/prefetch", 405, b"POST"),
        ("GET", "/gc/pods/a/drain", 405, b"POST, DELETE"),
        ("GET", "/gc/workers/a/drain", 405, b"POST, DELETE"),
        ("POST", "/gc/workers", 405, b"GET, HEAD"),
        ("PUT", "/gc/explain", 405, b"GET, POST, HEAD"),
        ("GET", "/gc", 404, None),
        ("GET", "/gc/", 404, None),
        ("GET", "/gc/nothing", 404, None),
        ("POST", "/gc/pods//drain", 404, None),
        ("POST", "/gc/pods/a/b/drain", 404, None),
        ("POST", "/gc/workers//drain", 404, None),
        ("POST", "/gc/workersx/a/drain", 404, None),
        ("POST", "/gc/flush", 400, None),
        ("POST", "/gc/prefetch", 400, None),
        ("GET", "/gc/explain?", 400, None),
        ("GET", "/gc/history?after=yesterday", 400, None),
        ("GET", "/gc/history?after=nan", 400, None),
        ("GET", "/gc/history?before=1", 400, None),
        ("GET", "/gc/links?reader=a", 400, None),
        ("POST", "/gc/history", 405, b"GET, HEAD"),
        ("GET", "/gc/ui/nothing.js", 404, None),
        ("GET", "/gc/ui/../admin.py", 404, None),
        ("POST", "/gc/ui", 404, None),
    ],
)
def test_wrong_requests(method: str, target: str, status: int, allow: bytes | None) -> None:
    """The right status, what is allowed, and the error in OpenAI's shape."""

    async def main() -> None:
        async with router() as subject:
            response = await subject.send(method, target)
            assert response.status == status
            assert dict(response.headers).get(b"allow") == allow
            assert json.loads(response.body)["error"]["message"]

    run(main())


def test_head_has_no_body() -> None:
    """Load balancers that ask with HEAD get the status alone."""

    async def main() -> None:
        async with router() as subject:
            response = await subject.send("HEAD", "/ready")
            assert (response.status, response.body) == (503, b"")

    run(main())


@pytest.mark.parametrize(
    "target",
    [
        "/gc/status",
        "/gc/stats",
        "/gc/workers",
        "/gc/pods",
        "/gc/explain",
        "/gc/history",
        "/gc/prefixes",
        "/gc/locks",
        "/gc/links",
        "/gc/ui/nothing.js",
        "/gc/nothing",
        "/gc",
    ],
)
def test_everything_under_gc_asks_for_the_token(target: str) -> None:
    """With a token set nothing is told without it, not even what there is; the open endpoints stay open."""

    async def main() -> None:
        async with router(token="correct horse battery") as subject:
            response = await subject.send("GET", target)
            assert (response.status, dict(response.headers)[b"www-authenticate"]) == (401, b"Bearer")
            for path in ("/health", "/metrics", "/v1/models"):
                assert (await subject.send("GET", path)).status == 200

    run(main())


def test_what_is_not_ours_goes_to_workers() -> None:
    """Other paths, paths that only begin alike, and preflights of what engines offer, too."""

    async def main() -> None:
        async with router() as subject:
            for method, path in (
                ("GET", "/gcx"),
                ("GET", "/healthz"),
                ("GET", "/v1/modelsx"),
                ("OPTIONS", "/v1/models"),
            ):
                assert not subject.admin.match(method, path), path

    run(main())
