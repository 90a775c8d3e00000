"""An HTTP proxy whose engines named p... compute prompts, and hand them over to the others, which answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.prompt import parse_body
from ghostcacher_router.types import LongBody, Outcome, RequestShape
from tests.support.mock_engine import MockEngine, Peer, Received
from tests.support.prompts import CHAT, say
from tests.support.proxy_rig import POST, Client, Rig, eventually

PARAMS = {"do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[1, 2]], "remote_port": 5600}
COMPUTED = json.dumps({"choices": [], "kv_transfer_params": PARAMS}).encode()
CONVERSATION: dict[str, Any] = {"model": "m", "messages": [say("user", "hello " * 40)], "max_tokens": 9}
SHORT = Limits(prefill_tokens_min=0)


def parse(path: str, body: Any, headers: Mapping[bytes, bytes]) -> RequestShape:
    return parse_body(path, body.join() if isinstance(body, LongBody) else body, headers, 7)


def two_steps(rig: Rig) -> Rig:
    """Have the rig's engines that are named p... compute, and read bodies as a router does."""
    rig.state.parse = parse
    rig.dispatcher.computing = {engine.name for engine in rig.engines if engine.name.startswith("p")}
    return rig


def request(body: dict[str, Any], path: str = CHAT) -> bytes:
    data = json.dumps(body).encode()
    return POST.replace(CHAT.encode(), path.encode()) + b"Content-Length: %d\r\n\r\n%b" % (len(data), data)


def bodies(engine: MockEngine) -> list[dict[str, Any]]:
    return [json.loads(received.body) for received in engine.received]


def steps(rig: Rig) -> list[tuple[str, str | None, Outcome | None]]:
    return [(place.worker, place.ask.step and place.ask.step.value, place.outcome) for place in rig.placements]


def breaks(peer: Peer, _: Received) -> None:
    peer.abort()


async def never(peer: Peer, _: Received) -> None:
    """Take a request, and say nothing."""
    await peer.left()


async def asked(rig: Rig, engine: MockEngine) -> Client:
    """Send a request that an engine takes, and return its client."""
    client = await two_steps(rig).client()
    client.send(request(CONVERSATION))
    await eventually(lambda: engine.received)
    return client
