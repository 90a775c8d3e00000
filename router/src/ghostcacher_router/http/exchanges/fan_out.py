"""One request sent to every server of the fleet, where the client asks for that: ``X-GC-Fan-Out: all``.

For what changes an engine, such as loading an adapter, and never for what a client waits to be computed: `PATHS` has
all that can be sent so. Each server gets the request as it came, on a connection of its own, and is waited for at most
`fan_out_s`, together with the wait for its turn. The answer says what each of them answered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import NamedTuple

from ghostcacher_router.http.exchanges.own_request import ask_server
from ghostcacher_router.http.protocol.local_response import LocalRequest, LocalResponse, error_response
from ghostcacher_router.http.protocol.refusal import Refusal
from ghostcacher_router.http.protocol.request_head import RequestHead, rank_line
from ghostcacher_router.http.proxy_state import ProxyState
from ghostcacher_router.types import Server

HEADER = b"x-gc-fan-out"
PATHS = frozenset(
    {
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/load_lora_adapter",
        "/unload_lora_adapter",
        "/load_lora_adapter_from_tensors",
        "/update_weights_from_disk",
        "/reset_prefix_cache",
        "/reset_mm_cache",
        "/reset_encoder_cache",
        "/flush_cache",
        "/abort_request",
        "/abort_requests",
        "/pause",
        "/resume",
        "/pause_generation",
        "/continue_generation",
        "/sleep",
        "/wake_up",
        "/start_profile",
        "/stop_profile",
    }
)
"""What vLLM and SGLang have that is meant for one engine, and wanted of all."""
MULTI_STATUS = 207


class Result(NamedTuple):
    """What became of the request at one server."""

    worker: str
    """Its name; of several data-parallel ranks behind one server, the first one's."""
    status: int | None
    """Of its answer; None when it did not answer."""
    body: str
    """Its answer, or as much of it as is kept."""
    error: str | None
    """Why it did not answer; None when it did."""


async def fan_out(proxy: ProxyState, head: RequestHead, request_id: bytes, request: LocalRequest) -> LocalResponse:
    """Return the answer of them all: 200, or the status that all of them agree on, else 207."""
    servers = proxy.dispatcher.servers()
    refusal = _refused(head, servers)
    if refusal is not None:
        return error_response(head.path, refusal)
    results = await asyncio.gather(*(_bounded(proxy, server, head, request_id, request.body) for server in servers))
    proxy.dispatcher.told_all(head.path)
    statuses = {result.status for result in results}
    same = statuses.pop() if len(statuses) == 1 else None
    answers = [{**result._asdict(), "body": _decoded(result.body)} for result in results]
    body = {"ok": all(result.status == 200 for result in results), "results": answers}  # noqa: PLR2004
    return LocalResponse(same or MULTI_STATUS, [(b"content-type", b"application/json")], json.dumps(body).encode())


def _refused(head: RequestHead, servers: Sequence[Server]) -> Refusal | None:
    """Return why the request cannot be sent to all; None when it can."""
    wanted = head.headers[HEADER]
    if wanted != b"all":
        return Refusal(400, f"x-gc-fan-out: expected 'all', got {wanted[:64].decode('latin-1')!r}", code="bad_fan_out")
    if head.path not in PATHS:
        expected = ", ".join(sorted(PATHS))
        return Refusal(400, f"x-gc-fan-out: expected one of the paths {expected}; got another", code="bad_fan_out")
    if not servers:
        return Refusal(503, "no worker is ready", code="no_worker", retry_after_s=2)
    return None


async def _bounded(proxy: ProxyState, server: Server, head: RequestHead, request_id: bytes, body: bytes) -> Result:
    limit_s = proxy.limits.fan_out_s
    try:
        async with asyncio.timeout(limit_s), proxy.fan_outs:
            return await _ask(proxy, server, head, request_id, body)
    except TimeoutError:
        return Result(server.name, None, "", f"no answer within {limit_s:g} s")
    except OSError as exc:
        return Result(server.name, None, "", str(exc))


async def _ask(proxy: ProxyState, server: Server, head: RequestHead, request_id: bytes, body: bytes) -> Result:
    """Return the answer of one server. Raises OSError when it gives none."""
    own = b"X-Request-Id: %b\r\n%b" % (request_id, rank_line(head, None))
    status, answer = await ask_server(proxy, server.endpoint, head, own, body)
    return Result(server.name, status, answer.decode(errors="replace"), None)


def _decoded(body: str) -> object:
    """Return an answer as JSON where it is such, else as text."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body
