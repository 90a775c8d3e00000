"""The endpoints that the router answers itself.

    GET /health                         200 while the process serves
    GET /ready                          200 when a worker can take requests, else 503 and why
    GET /metrics                        Prometheus' text format
    GET /v1/models[/ID]                 models, merged over all workers
    GET /gc/status                      version, uptime, workers by state, Redis, replicas, models
    GET /gc/stats                       counters since the start
    GET /gc/workers                     every worker, with its state, load and requests in flight
    POST, DELETE /gc/workers/ID/drain   give a worker no new requests (?drain=false and DELETE take that back)
    POST /gc/flush                      make routers forget and workers drop; see `AdminPorts.flush`
    POST /gc/prefetch                   have a worker compute or load a prefix before its traffic comes
    GET, POST /gc/explain               every worker's forecast for a prompt, without sending it anywhere
    GET /gc/history, /gc/prefixes, /gc/locks, /gc/links   what the dashboard shows beside these
    GET /gc/ui                          the dashboard: a page, its style sheet and scripts

/gc/pods is an older name of /gc/workers, and stays. access.py says who may use /gc/*; core/admin_api.py and
core/dashboard_api.py have the schema of what it takes and answers. /gc/ui is open to all, since a browser that opens a
page sends no token: it holds nothing, and asks for the token before it asks for anything else.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import NamedTuple
from urllib.parse import unquote

import msgspec

from ghostcacher_connector import __version__
from ghostcacher_connector.core.admin_api import Drain, Flushed, Pods, Prefetched, Queue, Status, Workers
from ghostcacher_connector.core.dashboard_api import History, Links, Locks, Prefixes
from ghostcacher_router.admin.access import Access
from ghostcacher_router.admin.parameters import (
    Explained,
    ExplainedRequest,
    FlushTarget,
    PrefetchTarget,
    draining_of,
    explain_of,
    flush_of,
    history_of,
    links_of,
    prefetch_of,
)
from ghostcacher_router.admin.reports import gone_reports, not_ready, worker_reports
from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.http.protocol.cors import answer_to_preflight
from ghostcacher_router.http.protocol.local_response import LocalRequest, LocalResponse
from ghostcacher_router.http.protocol.refusal import Refusal, error_body
from ghostcacher_router.metrics.catalog import PAGE_TYPE, RouterMetrics
from ghostcacher_router.prompt import BadBody
from ghostcacher_router.types import NoWorker
from ghostcacher_router.ui import ui_files

logger = logging.getLogger(__name__)

ANSWER_S_MAX = 10.0
"""The longest that flush and explain take, which ask Redis several times at most."""
PREFETCH_S_MAX = 300.0
"""The same of a prefetch: a worker computes a long prompt, behind all that it has to do."""

_MODELS = "/v1/models"
_OPEN = ("/health", "/ready", "/metrics", _MODELS)
_DRAIN_PATH = re.compile(r"/gc/(?:workers|pods)/([^/]+)/drain")

Handler = Callable[[LocalRequest], Awaitable[LocalResponse]]


class AdminPorts(NamedTuple):
    """What the admin API needs of routing. None of it blocks the event loop.

    explain and flush may raise BadBody and NoWorker.
    """

    in_flight: Callable[[str], int]
    """Returns how many requests are at a worker."""
    replicas: Callable[[], int | None]
    """Returns how many routers are alive; None when that is not known."""
    refused: Callable[[], str | None]
    """Returns why Redis refuses some of what keeps routers in step, for people; None when it does not."""
    explain: Callable[[ExplainedRequest], Awaitable[Explained]]
    """Returns the terms of the forecast for each worker that could serve a request. Nothing is sent or counted."""
    prefetch: Callable[[PrefetchTarget], Awaitable[Prefetched]]
    """Has a worker compute or load a prefix. Raises what `explain` does, and Refusal."""
    flush: Callable[[FlushTarget], Awaitable[Flushed]]
    """Makes every router forget, through the stream that they share, what text of that scope became which blocks, where
    it was seen, and which worker its sessions were bound to; has every worker with a connector drop its blocks, in all
    of its tiers, and returns what they have dropped."""
    history: Callable[[float | None], History]
    """Returns how the router fared after a time in seconds since 1970; None: in all that is kept."""
    prefixes: Callable[[], Awaitable[Prefixes]]
    """Returns what many prompts begin with, and who holds it."""
    locks: Callable[[], Locks]
    """Returns the ghost locks that are held."""
    links: Callable[[str | None], Awaitable[Links]]
    """Returns how fast a worker, or each of them, reads its peers. Raises Refusal."""
    queue: Callable[[], Queue | None] = lambda: None
    """Returns what waits for its turn; None without flow control."""


class Admin:
    """Answers what the router answers itself: the `LocalEndpoints` of the HTTP proxy."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        metrics: RouterMetrics,
        access: Access,
        ports: AdminPorts,
        router: str = "",
        workerless: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """router: the name of this run of it.

        workerless: the router serves hosted providers alone, and so is ready without a worker.
        """
        self._router, self._workerless = router, workerless
        self._fleet, self._metrics, self._access, self._ports, self._clock = fleet, metrics, access, ports, clock
        self._started_at = clock()
        self._routes: Mapping[str, Mapping[str, Handler]] = {
            "/health": {"GET": self._health},
            "/ready": {"GET": self._ready},
            "/metrics": {"GET": self._page},
            _MODELS: {"GET": self._models},
            "/gc/status": {"GET": self._status},
            "/gc/stats": {"GET": self._stats},
            "/gc/workers": {"GET": self._workers},
            "/gc/pods": {"GET": self._pods},
            "/gc/flush": {"POST": self._flush},
            "/gc/prefetch": {"POST": self._prefetch},
            "/gc/explain": {"GET": self._explain, "POST": self._explain},
            "/gc/history": {"GET": self._history},
            "/gc/prefixes": {"GET": self._prefixes},
            "/gc/locks": {"GET": self._locks},
            "/gc/links": {"GET": self._links},
        }
        self._page_files = ui_files()
        metrics.gauge("gc_router_in_flight", "Requests at each worker.", self._in_flight, label="worker")
        metrics.gauge("gc_router_replicas", "Routers alive, this one included.", lambda: {"": ports.replicas() or 1})

    def __repr__(self) -> str:
        return f"Admin({self._access!r})"

    def match(self, method: str, path: str) -> bool:
        """Say whether this request is answered here. CORS preflights are the engines', where there are any."""
        if _is_for_admins(path):
            return True
        if method == "OPTIONS":
            return self._workerless
        return path in _OPEN or path.startswith(_MODELS + "/")

    async def handle(self, request: LocalRequest) -> LocalResponse:
        """Return the answer. Bounded in time; never raises for what a client sent."""
        limit_s = PREFETCH_S_MAX if request.path == "/gc/prefetch" else ANSWER_S_MAX
        try:
            async with asyncio.timeout(limit_s):
                response = await self._answer(request)
        except Refusal as exc:
            response = _refused(request.path, exc)
        except BadBody as exc:
            response = _refused(request.path, Refusal(400, exc.message, param=exc.param))
        except NoWorker as exc:
            response = _refused(request.path, Refusal(exc.status, exc.message, code=exc.kind))
        except TimeoutError:
            response = _refused(request.path, Refusal(504, f"no answer within {limit_s:g} s"))
        except Exception:
            logger.exception("unexpected error in %s %s", request.method, request.path)
            response = _refused(request.path, Refusal(500, "the router failed; its log says why"))
        return response._replace(body=b"") if request.method == "HEAD" else response

    async def _answer(self, request: LocalRequest) -> LocalResponse:
        if (file := self._page_files.get(request.path)) is not None and request.method in {"GET", "HEAD"}:
            return file
        if request.method == "OPTIONS" and not _is_for_admins(request.path):
            return LocalResponse(200, answer_to_preflight(request.headers), b"")
        if request.path not in _OPEN and not request.path.startswith(_MODELS + "/"):
            # Before anything else: whoever may not use it does not even learn what there is.
            self._access.check(request.headers, request.peer)
        routes = self._routes_of(request.path)
        method = "GET" if request.method == "HEAD" else request.method
        if (handler := routes.get(method)) is None:
            allowed = ", ".join([*routes, *(["HEAD"] if "GET" in routes else [])])
            refused = _refused(request.path, Refusal(405, f"{request.method}: expected {allowed}"))
            return refused._replace(headers=[*refused.headers, (b"allow", allowed.encode())])
        return await handler(request)

    def _routes_of(self, path: str) -> Mapping[str, Handler]:
        if (routes := self._routes.get(path)) is not None:
            return routes
        if path.startswith(_MODELS + "/"):
            return {"GET": partial(self._model, unquote(path.removeprefix(_MODELS + "/")))}
        if (found := _DRAIN_PATH.fullmatch(path)) is not None:
            drain = partial(self._drain, unquote(found[1]))
            return {"POST": drain, "DELETE": drain}
        raise Refusal(
            404, f"{path[:200]}: expected one of {', '.join(self._routes)}, /gc/workers/ID/drain", code="not_found"
        )

    def _in_flight(self) -> Mapping[str, int]:
        return {name: self._ports.in_flight(name) for name in self._fleet.workers}

    def _not_ready(self) -> str | None:
        return None if self._workerless else not_ready(self._fleet)

    # Open to all

    async def _health(self, _: LocalRequest) -> LocalResponse:
        return _json({"status": "ok"})

    async def _ready(self, _: LocalRequest) -> LocalResponse:
        why = self._not_ready()
        return _json({"status": "ready"}) if why is None else _json({"status": "not ready", "why": why}, 503)

    async def _page(self, _: LocalRequest) -> LocalResponse:
        return LocalResponse(200, [(b"content-type", PAGE_TYPE.encode())], self._metrics.page())

    async def _models(self, _: LocalRequest) -> LocalResponse:
        return _json({"object": "list", "data": list(self._fleet.model_objects().values())})

    async def _model(self, model: str, _: LocalRequest) -> LocalResponse:
        found = self._fleet.model_objects().get(model)
        if found is None:
            known = ", ".join(self._fleet.models()) or "none"
            raise Refusal(404, f"The model {model[:200]!r} does not exist; known: {known}", code="model_not_found")
        return _json(found)

    # For people who run it

    async def _status(self, _: LocalRequest) -> LocalResponse:
        fleet = self._fleet
        why = self._not_ready()
        return _json(
            Status(
                version=__version__,
                router=self._router,
                uptime_s=round(self._clock() - self._started_at, 3),
                ready=why is None,
                why_not_ready=why,
                workers={state.value: count for state, count in fleet.count_by_state().items()},
                not_routable=len(fleet.unroutable),
                gone=gone_reports(fleet, self._clock()),
                ejected={name: why for name in fleet.workers if (why := fleet.why_ejected(name)) is not None},
                redis_available=fleet.redis_available,
                redis_error=fleet.redis_error or self._ports.refused(),
                replicas=self._ports.replicas(),
                models=tuple(fleet.models()),
                queue=self._ports.queue(),
            )
        )

    async def _stats(self, _: LocalRequest) -> LocalResponse:
        return _json(self._metrics.stats())

    async def _workers(self, _: LocalRequest) -> LocalResponse:
        return _json(Workers(worker_reports(self._fleet, self._ports.in_flight, self._clock())))

    async def _pods(self, _: LocalRequest) -> LocalResponse:
        return _json(Pods(worker_reports(self._fleet, self._ports.in_flight, self._clock())))

    async def _drain(self, name: str, request: LocalRequest) -> LocalResponse:
        draining = draining_of(request)
        if name not in self._fleet.workers:
            known = ", ".join(sorted(self._fleet.workers)) or "none"
            raise Refusal(404, f"worker {name[:200]!r}: expected one of: {known}", code="worker_not_found")
        self._fleet.drain(name, draining)
        shared = await self._fleet.share_drains()
        worker = self._fleet.workers.get(name)
        return _json(
            Drain(
                id=name,
                draining=draining,
                state=None if worker is None else worker.state.value,
                in_flight=self._ports.in_flight(name),
                shared=shared,
            )
        )

    async def _flush(self, request: LocalRequest) -> LocalResponse:
        target = flush_of(request)
        return _json(await self._ports.flush(target))

    async def _prefetch(self, request: LocalRequest) -> LocalResponse:
        return _json(await self._ports.prefetch(prefetch_of(request)))

    async def _explain(self, request: LocalRequest) -> LocalResponse:
        explained = explain_of(request)
        return _json({"path": explained.path, **(await self._ports.explain(explained))._asdict()})

    async def _history(self, request: LocalRequest) -> LocalResponse:
        return _json(self._ports.history(history_of(request)))

    async def _prefixes(self, _: LocalRequest) -> LocalResponse:
        return _json(await self._ports.prefixes())

    async def _locks(self, _: LocalRequest) -> LocalResponse:
        return _json(self._ports.locks())

    async def _links(self, request: LocalRequest) -> LocalResponse:
        return _json(await self._ports.links(links_of(request)))


def _is_for_admins(path: str) -> bool:
    return path == "/gc" or path.startswith("/gc/")


def _json(value: object, status: int = 200) -> LocalResponse:
    # Not the json module: infinity and NaN become null, which JSON has.
    return LocalResponse(status, [(b"content-type", b"application/json")], msgspec.json.encode(value))


def _refused(path: str, refusal: Refusal) -> LocalResponse:
    headers = [(b"content-type", b"application/json")]
    if refusal.status == 401:  # noqa: PLR2004 - the status that asks for this header
        headers.append((b"www-authenticate", b"Bearer"))
    return LocalResponse(refusal.status, headers, error_body(path, refusal))
