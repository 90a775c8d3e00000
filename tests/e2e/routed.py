"""How end-to-end tests speak to a router past the harness' client: they look at headers, too."""

from __future__ import annotations

import http.client
import itertools
import json
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from types import TracebackType
from typing import Any, Self

from benchmarks.harness import Client, ServerError
from ghostcacher_connector.core.coordination.redis import RedisCoordinationStore
from ghostcacher_router.signals.sessions import session_key
from tests.e2e.fleet import REQUEST_TIMEOUT_S

TRIES = 10
HELD_TOKENS = 4000
"""Of an answer that holds a place in an engine: it takes far longer than whatever is asked meanwhile."""


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


class Asking(AbstractContextManager["Asking"]):
    """Requests that are under way at once at a router, each on a connection of its own.

    order: the names of those whose answers began, in that order: each keeps its place in an engine until it is there.
    """

    def __init__(self, url: str) -> None:
        self._host, self._port = url.removeprefix("http://").split(":")
        self._pool = ThreadPoolExecutor(32)
        self._held: list[tuple[http.client.HTTPConnection, http.client.HTTPResponse]] = []
        self.order: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._held:
            self.let_go()
        self._pool.shutdown()

    def hold(self, count: int) -> None:
        """Take so many places of engines: by answers that have begun, and are long."""
        for _ in range(count):
            connection = self._connection()
            _send(connection, "hold", {}, {})
            reply = connection.getresponse()
            self._held.append((connection, reply))
            assert reply.status == http.HTTPStatus.OK, reply.read()
            assert reply.read(1)

    def let_go(self) -> None:
        """Give one of these places back: its client leaves."""
        connection, reply = self._held.pop()
        reply.close()
        connection.close()

    def send(
        self, name: str, headers: dict[str, str] | None = None, **fields: Any
    ) -> Future[tuple[int, dict[str, str]]]:
        """Send a request; return what will be the status and the headers of its answer. Its client leaves it then."""
        return self._pool.submit(self._ask, name, headers or {}, fields)

    def _ask(self, name: str, headers: dict[str, str], fields: dict[str, Any]) -> tuple[int, dict[str, str]]:
        with closing(self._connection()) as connection:
            _send(connection, name, headers, fields)
            reply = connection.getresponse()
            with reply:
                begins = reply.read(1)
                if begins and reply.status == http.HTTPStatus.OK:
                    self.order.append(name)
            return reply.status, {key.lower(): value for key, value in reply.getheaders()}

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, int(self._port), timeout=REQUEST_TIMEOUT_S)


def _send(connection: http.client.HTTPConnection, prompt: str, headers: dict[str, str], fields: dict[str, Any]) -> None:
    long = {"max_tokens": HELD_TOKENS, "ignore_eos": True, "stream": True}
    body = {"model": "m", "prompt": prompt, **long, **fields}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json", **headers})


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
