"""What is remembered of each request, from its arrival to its end, and how its blocks are named.

    ASKED --answer--> PLANNED --loaded, or not--> SETTLED
      '--nothing to pull, too late, or not wanted----^

SETTLED is final: a request is pulled for at most once, so that a failed pull cannot repeat itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.utils import get_storage_hash_str

from ghostcacher_connector.core.types import BlockHash, PrefixHit
from ghostcacher_connector.pull.planner import PullPlan

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


class Phase(Enum):
    """See the module's docstring."""

    ASKED = "asked"
    PLANNED = "planned"
    SETTLED = "settled"


@dataclass(slots=True)
class Tracked:
    """One request.

    chain: hashes of the prompt's full pages; empty when they mean something on this engine only. pullable: pages
    ``[0, pullable)`` may be pulled. deadline: when to stop waiting for the index. hits: the index's answer.
    reported_as: the router's id of the request, until its prompt is reported as computed.
    """

    req: Req
    chain: list[BlockHash]
    pullable: int
    phase: Phase = Phase.SETTLED
    deadline: float = 0.0
    hits: list[PrefixHit] = field(default_factory=list)
    plan: PullPlan | None = None
    reported_as: str | None = None


def track(req: Req, page_tokens: int) -> Tracked:
    """Return what is known of a request that has just arrived.

    All full pages may be pulled but one that holds the last token: it is computed in any case, for its logits.
    """
    if not shareable(req):
        return Tracked(req, [], 0)
    tokens = len(req.origin_input_ids)
    full = tokens // page_tokens
    key = RadixKey(req.origin_input_ids, extra_key=req.extra_key, cache_salt=req.cache_salt)[: full * page_tokens]
    names = get_storage_hash_str(key, None, page_size=page_tokens) if full else []
    return Tracked(req, [bytes.fromhex(name) for name in names], max(0, tokens - 1) // page_tokens)


def shareable(req: Req) -> bool:
    """Say whether the names of this request's pages mean the same on every worker.

    Pages of images are named by a number made from the image, a LoRA by an id of its server, overridden embeddings by
    nothing at all; a session may hold tokens that are not in its prompt.
    """
    return (
        req.lora_id is None
        and req.multimodal_inputs is None
        and req.input_embeds is None
        and req.positional_embed_overrides is None
        and req.session is None
    )
