"""Small fleets, loads and failures that a seed makes: what is the same for one seed, and different for another."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from ghostcacher_router.flow.settings import FlowSettings
from ghostcacher_simulator.engine import Profile
from ghostcacher_simulator.load.generated import Agents, Chat, Documents, Made, Rag, make_load
from ghostcacher_simulator.load.requests import Load
from ghostcacher_simulator.load.tenants import Tenant, shared_out
from ghostcacher_simulator.machines.workers import FleetSpec, HostTier, ObjectTier, WorkerSpec
from ghostcacher_simulator.replay.failures import Failure
from ghostcacher_simulator.replay.policies import Entrant, entrants
from ghostcacher_simulator.replay.replay import Run
from ghostcacher_simulator.replay.watched import watched_replay
from ghostcacher_simulator.steps import Batching
from ghostcacher_simulator.virtual_time import run_virtual

BLOCK_TOKENS = 64
OWN_SHARE = 0.8
"""Of the fleets, those with the project's own routers."""
TIERED_SHARE = 0.5
"""Those with host tiers."""
OBJECTS_SHARE = 0.5
"""Of these, those with an object tier."""
FLOW_SHARE = 0.4
"""Of the project's own routers, those with flow control."""


class Case(NamedTuple):
    """One fleet and what happens to it."""

    entrant: Entrant
    load: Load
    fleet: FleetSpec
    failures: tuple[Failure, ...]


def case_of(seed: int) -> Case:
    """Return what a seed makes."""
    rng = Random(seed)
    workers, load = rng.randint(1, 5), _load(rng)
    longest = max(-(-(each.prompt.tokens + each.prompt.answer_tokens) // BLOCK_TOKENS) for each in load.requests)
    host = HostTier(rng.randint(1, 3 * longest), 1e9, rng.choice(["hit-density", "lru", "seed-score"]))
    tiered = rng.random() < TIERED_SHARE
    profile = Profile(
        # A cache that hardly evicts leaves a tier nothing to do.
        kv_blocks=int(longest * rng.choice([1.0, 1.3] if tiered else [0.9, 1.2, 2.0, 4.0])) + 1,
        block_tokens=BLOCK_TOKENS,
        prefill_tokens_per_s=rng.choice([500.0, 2_000.0, 10_000.0]),
        block_bytes=1 << 20,
        pull_bytes_per_s=rng.choice([1e7, 1e8, 1e9]),
    )
    spec = WorkerSpec(profile, Batching(step_tokens=rng.choice([256, 2_048])), host if tiered else None)
    own = rng.random() < OWN_SHARE
    flow, tenants = _flow(Random(f"flow {seed}")) if own else (None, [])
    chosen = rng.choice([each for each in entrants(rng.randint(2, 3), flow) if each.own == own])
    load = shared_out(load, tenants, seed=seed)
    failures = tuple(_failure(rng, workers, load.duration_s) for _ in range(rng.choice([0, 1, 2, 4])))
    stored = ObjectTier(rng.choice([1e8, 1e10]), 0.001, rng.choice([None, longest]))
    objects = stored if tiered and rng.random() < OBJECTS_SHARE else None
    return Case(chosen, load, FleetSpec(workers, spec, objects=objects), failures)


def run_case(seed: int) -> Run:
    """Run what a seed makes, watched. What does not hold is raised with the seed, and what it made."""
    case = case_of(seed)
    try:
        return run_virtual(watched_replay(*case))
    except Exception as exc:
        failures = ", ".join(map(str, case.failures)) or "no failure"
        made = f"{case.entrant.key}, {case.load.name}, {case.fleet.workers} workers, {failures}"
        raise AssertionError(f"seed {seed}: {type(exc).__name__}: {exc} ({made})") from exc


def _load(rng: Random) -> Load:
    requests, rate = rng.randint(3, 25), rng.choice([1.0, 4.0, 20.0, 200.0])
    tools = rng.choice([400, 2_500])
    kinds: list[Made] = [
        Documents(requests=requests, rate=rate, documents=rng.randint(1, 5), tokens=rng.randint(64, 4_000), answer=20),
        Rag(requests=requests, rate=rate, passages=6, found=2, tokens=200, rules=rng.choice([0, 128]), answer=20),
        Chat(requests=requests, rate=rate, turns=4, rules=128, message=60, answer=40, pause=rng.choice([0.0, 2.0])),
        Agents(requests=requests, rate=rate, kinds=2, turns=5, tools=tools, message=100, answer=20, pause=1.0),
    ]
    return make_load(rng.choice(kinds), seed=rng.randrange(1 << 30), block_tokens=BLOCK_TOKENS)


def _flow(rng: Random) -> tuple[FlowSettings | None, list[Tenant]]:
    """Return flow control, and those who ask; none for most. From numbers of its own, so that all else stays alike."""
    if rng.random() >= FLOW_SHARE:
        return None, []
    settings = FlowSettings(
        flow_queue_max=rng.choice([1, 3, 100]),
        flow_queue_bytes_max=rng.choice([20_000, 1 << 28]),
        flow_queue_timeout_s=rng.choice([0.5, 60.0]),
        flow_worker_requests_max=rng.choice([1, 3, 256]),
        flow_worker_waiting_max=rng.choice([1, 8]),
        flow_priorities="client",
        flow_priority_min=-9,
        flow_tenants="cache_salt",
        flow_deadlines=True,
    )
    late = rng.choice([None, 0.05, 2.0])
    return settings, [Tenant("a"), Tenant("b", 0.3, rng.choice([0, 5])), Tenant("c", 0.3, -5, late)]


def _failure(rng: Random, workers: int, duration_s: float) -> Failure:
    at_s, lasts_s, worker = rng.uniform(0, duration_s + 1), rng.uniform(0.1, 10), f"w{rng.randrange(workers)}"
    return rng.choice(
        [
            Failure("death", at_s, worker),
            Failure("death", at_s, worker, lasts_s),
            Failure("redis", at_s, None, lasts_s),
            Failure("flush", at_s),
            Failure("link", at_s, worker, lasts_s, rng.choice([2.0, 50.0])),
            Failure("drain", at_s, worker),
            Failure("drain", at_s, worker, lasts_s),
            Failure("restart", at_s),
        ]
    )
