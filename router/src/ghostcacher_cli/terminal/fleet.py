"""Asks a router about itself and its fleet: /gc/status, /gc/stats and /gc/workers."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, NamedTuple, TypeVar

import msgspec

from ghostcacher_cli.loopback_http import open_url
from ghostcacher_connector.core.admin_api import Stats, Status, Worker, Workers
from ghostcacher_connector.core.errors import GhostCacherError
from ghostcacher_connector.core.settings import check_http_url

ANSWER_BYTES_MAX = 16 << 20


class RouterUnreachable(GhostCacherError):
    """A router does not answer, refuses, or answers what is no router's answer."""


class Snapshot(NamedTuple):
    """A fleet as one router sees it."""

    at: float
    """When it was asked, in seconds of the clock of whoever asked."""
    status: Status
    """The router as a whole."""
    stats: Stats
    """Its counters."""
    workers: tuple[Worker, ...]
    """Its workers, gone ones included."""


class RouterClient:
    """Asks one router. Raises ConfigError for a URL that makes no sense."""

    def __init__(self, url: str, token: str | None, *, timeout_s: float = 2.0) -> None:
        check_http_url("--url", url)
        self.url = url.rstrip("/").removesuffix("/v1")
        self._token = token
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"RouterClient({self.url})"

    def snapshot(self, at: float) -> Snapshot:
        """Return what the router answers now to three questions. Raises RouterUnreachable."""
        status, stats, workers = (self._get(path) for path in ("/gc/status", "/gc/stats", "/gc/workers"))
        return decode(status, stats, workers, at=at)

    def documents(self) -> dict[str, Any]:
        """Return the same as plain JSON, as the router gives it. Raises RouterUnreachable.

        The workers are there twice, since programs may know them by their older name.
        """
        found = {name: decoded(self._get(f"/gc/{name}"), dict[str, Any]) for name in ("status", "stats", "workers")}
        return found | {"pods": {"pods": found["workers"].get("workers", [])}}

    def is_ready(self) -> bool:
        """Say whether the router can serve a request."""
        try:
            self._get("/ready")
        except RouterUnreachable:
            return False
        return True

    def _get(self, path: str) -> bytes:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        request = urllib.request.Request(self.url + path, headers=headers)  # noqa: S310 - its scheme is checked above
        try:
            with open_url(request, timeout_s=self._timeout_s) as reply:
                return bytes(reply.read(ANSWER_BYTES_MAX))
        except urllib.error.HTTPError as exc:
            with exc:
                raise RouterUnreachable(f"{self.url}{path}: {_refusal(exc.code, exc.read(ANSWER_BYTES_MAX))}") from None
        except (OSError, ValueError, HTTPException) as exc:
            reason = getattr(exc, "reason", exc)
            raise RouterUnreachable(f"{self.url} does not answer: {reason}; is a router there (--url)?") from None


def decode(status: bytes, stats: bytes, workers: bytes, *, at: float) -> Snapshot:
    """Return what three answers of a router say. Raises RouterUnreachable."""
    return Snapshot(at, decoded(status, Status), decoded(stats, Stats), decoded(workers, Workers).workers)


def is_well(status: Status) -> bool:
    """Say whether a fleet can serve, has all its workers, and gets from Redis what it asks for."""
    lacking = status.gone or status.ejected or status.workers.get("down", 0)
    return status.ready and not lacking and status.redis_error is None


Kind = TypeVar("Kind")


def decoded(data: bytes, kind: type[Kind]) -> Kind:
    """Return a part of a router's answer. Raises RouterUnreachable for what is none."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as exc:
        raise RouterUnreachable(f"expected a router's answer, got something else: {exc}") from None


def _refusal(status: int, body: bytes) -> str:
    """Say what a refusal says, in the form of OpenAI's errors when it has that form."""
    wants_token = status == HTTPStatus.UNAUTHORIZED
    advice = "; give its admin token in GC_ROUTER_ADMIN_TOKEN, or name another variable by --token-env" * wants_token
    try:
        error: Mapping[str, Any] = msgspec.json.decode(body, type=dict[str, dict[str, Any]])["error"]
        return f"{status}: {error['message']}{advice}"
    except (msgspec.DecodeError, KeyError):
        return f"expected a router's answer, got status {status}{advice}"
