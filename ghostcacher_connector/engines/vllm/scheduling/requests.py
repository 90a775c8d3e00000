"""What the scheduler's half remembers of each request, from its arrival to its end.

    NEW --ask--> ASKED --answer--> PLANNED --allocated--> LOADING --received--> SETTLED
                   '--nothing to pull, too late, or not wanted--------------------^

SETTLED is final: a request is pulled for at most once, so that a failed pull cannot repeat itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from ghostcacher_connector.core.types import PrefixHit
from ghostcacher_connector.pull.planner import PullPlan

if TYPE_CHECKING:
    from vllm.v1.request import Request


class Phase(Enum):
    """See the module's docstring."""

    NEW = "new"
    ASKED = "asked"
    PLANNED = "planned"
    LOADING = "loading"
    SETTLED = "settled"


@dataclass(slots=True)
class Tracked:
    """One request.

    published: blocks ``[0, published)`` need no publishing any more. given: tokens whose KV it has from this cache or
    from a peer; another request may still be computing them. own_step: it has computed tokens of its own, and so
    everything before them is final. deadline: when to stop waiting for the index. hits: the index's answer.
    reported_as: the router's id of the request, until its prompt is reported as computed.
    """

    request: Request
    phase: Phase = Phase.NEW
    published: int = 0
    given: int = 0
    own_step: bool = False
    deadline: float = 0.0
    hits: list[PrefixHit] = field(default_factory=list)
    plan: PullPlan | None = None
    reported_as: str | None = None


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
