"""Tells a worker in a request's body from which other one it can pull the prefix: vLLM's P2P tier reads it there.

    "kv_transfer_params": {"remote_kv_source": {"kv_request_id": ..., "remote_host": ..., "remote_port": ...}}

An engine without that tier reads past it. What a client has put there itself stays as it is.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from ghostcacher_router.types import Body, KvSource, LongBody

PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
BODY_BYTES_MAX = 8 << 20
"""A longer body goes as it came: it would hold up the event loop while it is looked at."""


class _Fields(msgspec.Struct):
    kv_transfer_params: Any = None


def with_source(body: Body, path: str, source: KvSource, request_id: str) -> Body:
    """Return the body with the source in it, or as it is where that cannot be. request_id: as the worker sees it."""
    if path not in PATHS or len(body) > BODY_BYTES_MAX:
        return body
    data = (body.join() if isinstance(body, LongBody) else body).rstrip()
    try:
        taken = msgspec.json.decode(data, type=_Fields).kv_transfer_params is not None
    except msgspec.MsgspecError:
        return body
    if taken or data[:-1].rstrip().endswith(b"{"):
        return body
    named = {"kv_request_id": request_id, "remote_host": source.host, "remote_port": source.port}
    return data[:-1] + b',"kv_transfer_params":%b}' % json.dumps({"remote_kv_source": named}).encode()
