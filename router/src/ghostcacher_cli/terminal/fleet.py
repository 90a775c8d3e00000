"""What a router tells of itself and its fleet (/gc/status, /gc/stats, /gc/pods), decoded in this one place.

Fields that are not known are ignored, and those that are missing have a value that shows as nothing: a router of
another version can still be looked at.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from ghostcacher_connector.core.errors import GhostCacherError
from ghostcacher_connector.core.settings import check_http_url

ANSWER_BYTES_MAX = 16 << 20


class RouterUnreachable(GhostCacherError):
    """A router does not answer, refuses, or answers what is no router's answer."""


class Load(msgspec.Struct, frozen=True):
    """Of one worker. kv_blocks_*: of its own cache. prefill_tokens_per_s: measured. age_s: of this report."""

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    prefill_tokens_per_s: float = 0.0
    age_s: float = 0.0


class Pod(msgspec.Struct, frozen=True):
    """One worker. load: None for one that tells nothing of it. why, error: what is wrong with it."""

    id: str
    state: str
    url: str = ""
    models: tuple[str, ...] = ()
    in_flight: int = 0
    load: Load | None = None
    why: str | None = None
    error: str | None = None


class Pods(msgspec.Struct, frozen=True):
    pods: tuple[Pod, ...]


class Status(msgspec.Struct, frozen=True):
    """The router as a whole. workers: count by state. replicas: routers alive; None when that is not known."""

    version: str
    uptime_s: float
    ready: bool
    why_not_ready: str | None = None
    workers: dict[str, int] = {}
    redis_available: bool = False
    replicas: int | None = None
    models: tuple[str, ...] = ()


class Requests(msgspec.Struct, frozen=True):
    total: float = 0.0
    by_status: dict[str, float] = {}


class Quantiles(msgspec.Struct, frozen=True):
    """None before the first."""

    p50: float | None = None
    p90: float | None = None


class Stats(msgspec.Struct, frozen=True):
    """Counters since the router's start."""

    requests: Requests = Requests()
    picks_by_worker: dict[str, float] = {}
    prompt_tokens: float = 0.0
    hit_tokens: float = 0.0
    saved_ttft_ms: float = 0.0
    overhead_ms: Quantiles = Quantiles()
    ttft_ms: Quantiles = Quantiles()


class Snapshot(NamedTuple):
    """A fleet as one router sees it. at: clock of whoever asked, in s."""

    at: float
    status: Status
    stats: Stats
    pods: tuple[Pod, ...]


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
        """Return what the router tells now, in three questions. Raises RouterUnreachable."""
        status, stats, pods = (self._get(path) for path in ("/gc/status", "/gc/stats", "/gc/pods"))
        return decode(status, stats, pods, at=at)

    def documents(self) -> dict[str, Any]:
        """Return the same as plain JSON, as the router gives it. Raises RouterUnreachable."""
        names = ("status", "stats", "pods")
        return {name: _decoded(self._get(f"/gc/{name}"), dict[str, Any]) for name in names}

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
            with urllib.request.urlopen(request, timeout=self._timeout_s) as reply:  # noqa: S310
                return bytes(reply.read(ANSWER_BYTES_MAX))
        except urllib.error.HTTPError as exc:
            with exc:
                raise RouterUnreachable(f"{self.url}{path}: {_refusal(exc.code, exc.read(ANSWER_BYTES_MAX))}") from None
        except (urllib.error.URLError, OSError, ValueError) as exc:
            reason = getattr(exc, "reason", exc)
            raise RouterUnreachable(f"{self.url} does not answer: {reason}; is a router there (--url)?") from None


def decode(status: bytes, stats: bytes, pods: bytes, *, at: float) -> Snapshot:
    """Return what three answers of a router say. Raises RouterUnreachable."""
    return Snapshot(at, _decoded(status, Status), _decoded(stats, Stats), _decoded(pods, Pods).pods)


Kind = TypeVar("Kind")


def _decoded(data: bytes, kind: type[Kind]) -> Kind:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as exc:
        raise RouterUnreachable(f"expected a router's answer, got something else: {exc}") from None


def _refusal(status: int, body: bytes) -> str:
    """Say what a refusal says, in the form of OpenAI's errors when it has that form."""
    advice = "; give its admin token by --token-env" if status in (401, 403) else ""
    try:
        error: Mapping[str, Any] = msgspec.json.decode(body, type=dict[str, dict[str, Any]])["error"]
        return f"{status}: {error['message']}{advice}"
    except (msgspec.DecodeError, KeyError):
        return f"expected a router's answer, got status {status}{advice}"
