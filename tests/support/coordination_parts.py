"""Loads, prompt chains and map updates for tests of the coordination store."""

from __future__ import annotations

import os

from ghostcacher_connector.core.coordination.base import LoadReport, PrefixMapUpdate, PromptChain
from ghostcacher_connector.core.coordination.tier_load import TierLoad
from ghostcacher_connector.core.index.base import WorkerRef
from ghostcacher_connector.core.types import Tier
from tests.support.index_parts import NAMESPACE, chain


def make_ref(worker: str = "w1", *, namespace: str = NAMESPACE) -> WorkerRef:
    return WorkerRef(namespace, worker, os.urandom(16))


def make_load(running: int = 1, *, waiting_tokens: int = 0) -> LoadReport:
    return LoadReport(
        running=running,
        waiting=0,
        waiting_tokens=waiting_tokens,
        kv_blocks_used=3,
        kv_blocks_total=100,
        block_tokens=16,
        block_bytes=4096,
        prefill_tokens_per_s=1e4,
        pull_bytes_per_s=0.0,
        pull_fixed_s=0.004,
        tiers=(TierLoad(Tier.HOST, 3, 10, (0, 1, 2, 0, 0), 5, 6, 7, 1),),
    )


def make_chain(request: str = "r1", blocks: int = 3) -> PromptChain:
    return PromptChain(request, blocks * 16, tuple(range(1, blocks + 1)), tuple(chain(blocks)))


def make_update(router: str = "router-1", *, seed: int = 0, count: int = 2) -> PrefixMapUpdate:
    digests = tuple(chain(count, seed, width=16))
    return PrefixMapUpdate(NAMESPACE, digests, tuple(range(1, count + 1)), tuple(chain(count)), 4.0, router)
