"""How end-to-end tests speak to a router past the harness' client: they look at headers, too."""

from __future__ import annotations

import http.client
import itertools
import json
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

from benchmarks.harness import Client, ServerError
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_router.signals.sessions import session_key
from tests.e2e.fleet import REQUEST_TIMEOUT_S

TRIES = 10


def once_undisturbed(attempt: Callable[[], str]) -> None:
    """Assert that one of a few attempts has nothing to complain of, which is what an attempt returns.

    For what the router does when its forecasts are right: they are measured, and a machine that does something else for
    a moment makes one worker seem, or be, several times slower. What then is best is another thing than the usual.
    """
    complaints = []
    for _ in range(TRIES):
        complaint = attempt()
        if not complaint:
            return
        complaints.append(complaint)
    raise AssertionError("\n".join(complaints))


def loads_reported(url: str, workers: Iterable[str]) -> bool:
    """Say whether a router has heard the load of each of these workers: then it forecasts, and does not guess."""
    answer, _ = ask(url, "/gc/explain", {"model": "m", "prompt": "def main():"})
    return {entry["worker"] for entry in answer["workers"] if entry["load_reported"]} == set(workers)


def followers(urls: Iterable[str]) -> float:
    """Return how many requests routers have sent after another one's computing, so far."""
    pages = [Client(url).metrics() for url in urls]
    return sum(page.sum("gc_ghost_locks_total", result=how) for page in pages for how in ("followed", "waited"))


_bursts = itertools.count(1)


def sessions_at(redis_url: str, workers: Iterable[str]) -> dict[str, str]:
    """Return a new session for each worker, which every router will keep there when nothing speaks against it."""
    burst = next(_bursts)
    sessions = {worker: f"at-{worker}-{burst}" for worker in workers}
    with closing(RedisCoordinationStore(redis_url, timeout_s=5.0)) as store:
        store.put_sessions({session_key("m", name): worker for worker, name in sessions.items()}, ttl_s=3600)
    return sessions


def respond(url: str, given: str | list[Any], *, stream: bool) -> tuple[Any, dict[str, str]]:
    """Return the response object of /v1/responses, and the answer's headers. Raises ServerError."""
    body = {"model": "m", "input": given, "max_output_tokens": 4, "temperature": 0.0, "stream": stream}
    data, headers = post(url, "/v1/responses", body)
    if not stream:
        return json.loads(data), headers
    lines = [line for line in data.splitlines() if line.startswith(b"data: ")]
    return json.loads(lines[-1].removeprefix(b"data: "))["response"], headers


def ask(url: str, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[Any, dict[str, str]]:
    """Return the JSON of an answer, and its headers. Raises ServerError."""
    data, found = post(url, path, body, headers)
    return json.loads(data), found


def post(
    url: str, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
) -> tuple[bytes, dict[str, str]]:
    """Return the body of an answer, and its headers. Raises ServerError."""
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=REQUEST_TIMEOUT_S)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **(headers or {})})
        reply = connection.getresponse()
        data = reply.read()
        if reply.status != http.HTTPStatus.OK:
            raise ServerError(f"{path}: status {reply.status}: {data[:500]!r}")
        return data, {name.lower(): value for name, value in reply.getheaders()}
    finally:
        connection.close()
