"""How end-to-end tests speak to a router past the harness' client: they look at headers, too."""

from __future__ import annotations

import http.client
import json
from typing import Any

from benchmarks.harness import ServerError
from tests.e2e.fleet import REQUEST_TIMEOUT_S


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
