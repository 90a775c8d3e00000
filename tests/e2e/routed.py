"""How end-to-end tests speak to a router past the harness' client: they look at headers, too."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any

from benchmarks.harness import ServerError
from tests.e2e.fleet import REQUEST_TIMEOUT_S

TRIES = 5


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


def ask(url: str, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[Any, dict[str, str]]:
    """Return the JSON of an answer, and its headers. Raises ServerError."""
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=REQUEST_TIMEOUT_S)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **(headers or {})})
        reply = connection.getresponse()
        data = reply.read()
        if reply.status != http.HTTPStatus.OK:
            raise ServerError(f"{path}: status {reply.status}: {data[:500]!r}")
        return json.loads(data), {name.lower(): value for name, value in reply.getheaders()}
    finally:
        connection.close()
