"""Small fleets and loads for tests of replays."""

from __future__ import annotations

from collections.abc import Sequence

from ghostcacher_simulator.engine import Profile
from ghostcacher_simulator.load.requests import Load, Row, make_requests
from ghostcacher_simulator.machines.workers import FleetSpec, HostTier, WorkerSpec
from ghostcacher_simulator.replay.policies import Entrant, entrants

BLOCK = 100
PROFILE = Profile(
    kv_blocks=24,
    block_tokens=BLOCK,
    prefill_tokens_per_s=1_000.0,
    arrival_s=0.0,
    publish_s=0.001,
    block_bytes=1_000,
    pull_bytes_per_s=10_000.0,
    pull_fixed_s=0.0,
)


def fleet(workers: int, *, kv_blocks: int = 24, host: HostTier | None = None, price: float | None = None) -> FleetSpec:
    return FleetSpec(workers, WorkerSpec(PROFILE._replace(kv_blocks=kv_blocks), host=host, usd_per_hour=price))


def load(*prompts: tuple[float, str], blocks: int = 8, answer_tokens: int = 2) -> Load:
    """Return a load of prompts of so many blocks and ten tokens: when each comes, and what names its text."""
    rows: Sequence[Row] = [
        Row(
            at_s, blocks * BLOCK + 10, answer_tokens, [*(f"{name}/{place}" for place in range(blocks)), f"end {number}"]
        )
        for number, (at_s, name) in enumerate(prompts)
    ]
    return Load("test", make_requests(rows, block_tokens=BLOCK), BLOCK)


def entrant(key: str) -> Entrant:
    return next(each for each in entrants(2) if each.key == key)
