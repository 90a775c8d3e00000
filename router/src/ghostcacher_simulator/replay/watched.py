"""A run that meets failures and is watched: what does not hold ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ghostcacher_simulator.load.requests import Load
from ghostcacher_simulator.machines.workers import FleetSpec
from ghostcacher_simulator.replay.failures import RENEW_S, Failure, check_workers, meet
from ghostcacher_simulator.replay.invariants import Invariants
from ghostcacher_simulator.replay.policies import Entrant
from ghostcacher_simulator.replay.replay import Replay, Run, first_of
from ghostcacher_simulator.replay.workers import REPORT_S

SETTLED_S = 2 * RENEW_S + 2 * REPORT_S
"""After the last failure and the last request: what is to be told, is told."""


async def watched_replay(
    entrant: Entrant, load: Load, fleet: FleetSpec, failures: Sequence[Failure] = (), *, clients: int | None = None
) -> Run:
    """Run a load while failures happen, and check what must hold at each step, and at the end.

    clients: as of a `Replay`. Raises ConfigError for a failure of a worker that is not there, and InvariantBroken.
    """
    check_workers(failures, fleet.workers)
    replay = Replay(entrant, load, fleet, clients=clients)
    invariants = Invariants(replay)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: invariants.note(context.get("exception") or context["message"]))
    try:
        async with asyncio.TaskGroup() as group:
            going = group.create_task(replay.run())
            group.create_task(meet(replay, failures))
    except BaseExceptionGroup as exc:
        raise first_of(exc) from exc
    await asyncio.sleep(SETTLED_S)
    for worker in replay.workers:
        worker.report()
    invariants.check_end()
    return going.result()
