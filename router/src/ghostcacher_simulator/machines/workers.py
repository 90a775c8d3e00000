"""A worker in numbers, and a fleet of equal ones."""

from __future__ import annotations

from typing import NamedTuple

from ghostcacher_simulator.engine import Profile
from ghostcacher_simulator.processor import Cores
from ghostcacher_simulator.steps import Batching

SIMULATED_BLOCK_BYTES = 64 << 20
"""KV of 512 tokens of a model with 128 KiB a token."""


class HostTier(NamedTuple):
    """Host memory under an engine's cache."""

    blocks: int
    """KV blocks that it holds, from 1."""
    bytes_per_s: float
    """Rate at which blocks are loaded from it."""
    policy: str = "hit-density"
    """The eviction policy, as the setting `eviction_policy`."""


class ObjectTier(NamedTuple):
    """An object store under the host tiers of all workers."""

    bytes_per_s: float
    """Rate at which one worker reads from it, and writes."""
    fixed_s: float = 0.02
    """Of one read, whatever its size."""
    blocks: int | None = None
    """KV blocks that it holds, from 1; None: any number."""
    queue_bytes: float = float(1 << 30)
    """That wait to be written at one worker, at most; beyond it blocks are dropped."""
    usd_per_gb_month: float | None = None
    """What storing 10^9 bytes for 30 days costs; None where that is not known."""


class WorkerSpec(NamedTuple):
    """One worker."""

    profile: Profile
    """Its engine's cache, its rate of computing prompts, its link to peers."""
    batching: Batching = Batching()
    """How its engine makes steps."""
    host: HostTier | None = None
    """Its host tier; None where it has none."""
    usd_per_hour: float | None = None
    """What it costs; None where that is not known."""


class FleetSpec(NamedTuple):
    """A fleet."""

    workers: int
    """How many, from 1."""
    worker: WorkerSpec
    """What each of them is."""
    cores: Cores | None = None
    """What they share: engines of one machine. None: none slows another one down."""
    objects: ObjectTier | None = None
    """What they keep together, behind their host tiers; None where they have none."""


def fleet_of(workers: int, kv_blocks: int, prefill_tokens_per_s: float, block_tokens: int = 512) -> FleetSpec:
    """Return a fleet of engines of which little is said: the rest is as usual for a model of some 8 B parameters."""
    profile = Profile(
        kv_blocks=kv_blocks,
        block_tokens=block_tokens,
        prefill_tokens_per_s=prefill_tokens_per_s,
        publish_s=0.006,
        block_bytes=SIMULATED_BLOCK_BYTES * block_tokens // 512,
        pull_bytes_per_s=10e9,
    )
    return FleetSpec(workers, WorkerSpec(profile))
