"""Reads the queries and bodies of requests to /gc/*. Raises Refusal, 400, naming the field that is wrong."""

from __future__ import annotations

import json
from math import isfinite, nan
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from ghostcacher_connector.core.coordination.flushes import FLUSHED_BLOCKS_MAX
from ghostcacher_connector.core.types import FlushScope
from ghostcacher_router.http.protocol.local_response import LocalRequest
from ghostcacher_router.http.protocol.refusal import Refusal

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"

WARMED_PATHS = (CHAT, COMPLETIONS, "/v1/messages")
FIELDS_MAX = 32
KEY_BYTES_MAX = 64
BLOCK_BYTES_MAX = 128
_BOOLS = {"1": True, "true": True, "0": False, "false": False}


class FlushTarget(NamedTuple):
    """What routers are to forget, and workers to drop. Of DOC and PREFIX it has `request`, `key` or `blocks`."""

    scope: FlushScope
    """What kind of thing it is."""
    session: str | None = None
    """The client's own name for it, of SESSION."""
    path: str = CHAT
    """Where `request` would be sent."""
    request: bytes | None = None
    """The body of a request that has the documents, or the prompt."""
    key: bytes | None = None
    """The digest of a boundary."""
    blocks: tuple[bytes, ...] = ()
    """Chain hashes of KV blocks."""


class PrefetchTarget(NamedTuple):
    """A prefix that is to be warmed."""

    path: str
    """Where a request that has it would be sent."""
    body: dict[str, Any]
    """Such a request."""
    worker: str | None
    """Where it is to be warmed; None: where the next such request would be placed."""


class ExplainedRequest(NamedTuple):
    """A request whose placement is to be explained."""

    path: str
    """Where it would be sent."""
    body: bytes
    """Its body."""


class Explained(NamedTuple):
    """The terms of forecasts, each as in `admin_api.WorkerForecast`, the best worker first."""

    workers: list[dict[str, object]]
    """Of those that could answer the request."""
    prefill: list[dict[str, object]]
    """Of those that could compute its prompt for one that answers; empty where one worker does both."""


def query_of(request: LocalRequest) -> dict[str, str]:
    """Return the fields of a query, each once."""
    try:
        pairs = parse_qsl(
            request.query, keep_blank_values=True, strict_parsing=bool(request.query), max_num_fields=FIELDS_MAX
        )
    except ValueError as exc:
        raise _wrong(None, f"the query: expected name=value&..., at most {FIELDS_MAX}") from exc
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _wrong(None, "the query: expected each field once")
    return found


def draining_of(request: LocalRequest) -> bool:
    """Return whether a request to .../drain wants a drain; DELETE takes it back, as ?drain=false does."""
    query = query_of(request)
    _only(query, {"drain"})
    text = query.get("drain", "true").lower()
    if text not in _BOOLS:
        raise _wrong("drain", f"expected true or false, got {_shown(text)}")
    return _BOOLS[text] and request.method != "DELETE"


def flush_of(request: LocalRequest) -> FlushTarget:
    """Return what a request to /gc/flush wants to be forgotten."""
    body = _object(request.body)
    try:
        scope = FlushScope(body.get("scope"))
    except ValueError:
        expected = ", ".join(scope.value for scope in FlushScope)
        raise _wrong("scope", f"expected one of {expected}, got {_shown(body.get('scope'))}") from None
    if scope in {FlushScope.ALL, FlushScope.TOOLS}:
        _only(body, {"scope"})
        return FlushTarget(scope)
    if scope is FlushScope.SESSION:
        _only(body, {"scope", "session"})
        return FlushTarget(scope, session=_text(body, "session"))
    _only(body, {"scope", "request", "path", "key", "blocks"})
    if len(body.keys() & {"request", "key", "blocks"}) != 1:
        raise _wrong(
            "request",
            "expected one of `request`, the body of a request, `key`, a digest in hex, and `blocks`, hashes in hex",
        )
    if "blocks" in body:
        return FlushTarget(scope, blocks=_blocks(body["blocks"]))
    if "key" in body:
        return FlushTarget(scope, key=_key(body))
    if not isinstance(body["request"], dict):
        raise _wrong("request", f"expected an object, the body of a request, got {_shown(body['request'])}")
    path = _text(body, "path") if "path" in body else path_for(body["request"])
    return FlushTarget(scope, path=path, request=json.dumps(body["request"]).encode())


def prefetch_of(request: LocalRequest) -> PrefetchTarget:
    """Return what a request to /gc/prefetch wants to be warmed: the body of a request, and `worker` and `path`."""
    body = _object(request.body)
    worker = _text(body, "worker") if "worker" in body else None
    path = _text(body, "path") if "path" in body else path_for(body)
    if path not in WARMED_PATHS:
        raise _wrong("path", f"expected one of {', '.join(WARMED_PATHS)}, got {_shown(path)}")
    field = "prompt" if path == COMPLETIONS else "messages"
    if not body.get(field):
        raise _wrong(field, f"expected what is to be warmed, for {path}; got {_shown(body.get(field))}")
    return PrefetchTarget(path, {name: body[name] for name in body if name not in {"worker", "path"}}, worker)


def explain_of(request: LocalRequest) -> ExplainedRequest:
    """Return the request that /gc/explain is asked about: GET ?model=&prompt=, or POST with its body (and ?path=)."""
    query = query_of(request)
    if request.method == "POST":
        _only(query, {"path"})
        body = _object(request.body)
        return ExplainedRequest(query.get("path") or path_for(body), request.body)
    _only(query, {"model", "prompt"})
    if "prompt" not in query:
        raise _wrong("prompt", "expected ?prompt=, or POST with the body of a request, got neither")
    return ExplainedRequest(COMPLETIONS, json.dumps(query).encode())


def history_of(request: LocalRequest) -> float | None:
    """Return the time after which /gc/history is asked for, in seconds since 1970; None: all that is kept."""
    query = query_of(request)
    _only(query, {"after"})
    text = query.get("after")
    try:
        after = None if text is None else float(text)
    except ValueError:
        after = nan
    if after is not None and not isfinite(after):
        raise _wrong("after", f"expected seconds since 1970, got {_shown(text)}")
    return after


def links_of(request: LocalRequest) -> str | None:
    """Return the worker that /gc/links is asked about; None: all of them."""
    query = query_of(request)
    _only(query, {"worker"})
    return query.get("worker")


def path_for(body: dict[str, Any]) -> str:
    """Return the path that a request's body is most likely meant for."""
    if "messages" not in body:
        if "prompt" in body:
            return COMPLETIONS
        if "input" in body:
            return RESPONSES
    return CHAT


def _object(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as exc:
        reason = str(exc) if isinstance(exc, json.JSONDecodeError) else type(exc).__name__
        raise _wrong(None, f"the body: expected JSON: {reason}") from exc
    if not isinstance(body, dict):
        raise _wrong(None, f"the body: expected a JSON object, got {type(body).__name__}")
    return body


def _text(body: dict[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str) or not value:
        raise _wrong(field, f"expected a text, got {_shown(value)}")
    return value


def _key(body: dict[str, Any]) -> bytes:
    try:
        key = bytes.fromhex(_text(body, "key"))
    except ValueError:
        key = b""
    if not 0 < len(key) <= KEY_BYTES_MAX:
        raise _wrong("key", f"expected a digest in hex, up to {KEY_BYTES_MAX} bytes, got {_shown(body['key'])}")
    return key


def _blocks(given: object) -> tuple[bytes, ...]:
    try:
        blocks = tuple(map(bytes.fromhex, given)) if isinstance(given, list) else ()
    except (TypeError, ValueError):
        blocks = ()
    if not 0 < len(blocks) <= FLUSHED_BLOCKS_MAX or not all(0 < len(block) <= BLOCK_BYTES_MAX for block in blocks):
        raise _wrong("blocks", f"expected 1 to {FLUSHED_BLOCKS_MAX} hashes in hex, got {_shown(given)}")
    return blocks


def _only(found: dict[str, Any], known: set[str]) -> None:
    for field in found:
        if field not in known:
            raise _wrong(field[:64], f"unknown; known are {', '.join(sorted(known))}")


def _wrong(field: str | None, why: str) -> Refusal:
    return Refusal(400, why if field is None else f"{field}: {why}", param=field, code="invalid_value")


def _shown(value: object) -> str:
    return repr(value)[:100]
