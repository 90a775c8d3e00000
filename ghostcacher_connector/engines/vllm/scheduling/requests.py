"""What the scheduler's half remembers of each request, from its arrival to its end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ghostcacher_connector.engines.common.pull_state import PullState

if TYPE_CHECKING:
    from vllm.v1.request import Request


@dataclass(slots=True)
class Tracked(PullState):
    """One request."""

    request: Request
    """vLLM's own object of it."""
    published: int = 0
    """Blocks ``[0, published)`` need no publishing any more."""
    given: int = 0
    """Tokens whose KV it has from this cache or from a peer; another request may still be computing them."""
    own_step: bool = False
    """It has computed tokens of its own, and so everything before them is final."""

    joins_until: float = math.inf
    """Until when it may wait for pulls of other requests, on the matcher's clock; infinite before the first one."""
    preemptions: int = 0
    """How often it had been preempted when it was last asked for."""

    @property
    def request_id(self) -> str:
        return str(self.request.request_id)


def shareable(request: Request) -> bool:
    """Say whether the chain hash of this request's blocks means the same on every worker.

    A LoRA is hashed by its name and a multimodal item may be hashed by a name that the client chose: two workers
    can hold different things under one name.
    """
    return request.lora_request is None and not request.mm_features and request.prompt_embeds is None


def pull_wanted(request: Request) -> bool:
    """Say whether the client left pulling on (``kv_transfer_params: {"gc_pull": false}`` turns it off)."""
    params = request.kv_transfer_params
    return not (isinstance(params, dict) and params.get("gc_pull") is False)
