"""What /gc/explain says of a request whose prompt one worker computes, and another one answers."""

from __future__ import annotations

from functools import partial
from typing import Any

from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.admin.actions import AdminActions
from ghostcacher_router.admin.parameters import Explained, ExplainedRequest
from ghostcacher_router.http.exchanges.handover import steps_of
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_simulator.text import text_of
from ghostcacher_simulator.virtual_time import virtual
from tests.support.routing_sim import Router, Sim, make_sim

TEXT = text_of("text", 4000)
ROLES = {"w0": PdRole.PREFILL, "w1": PdRole.PREFILL, "w2": PdRole.DECODE, "w3": PdRole.DECODE}


async def apart() -> Sim:
    sim = await make_sim(len(ROLES))
    for name, role in ROLES.items():
        sim.engines[name].worker.pd_role = role
    return sim


async def explain(router: Router, *, prefill_tokens_min: int) -> Explained:
    fleet: Any = router.fleet
    steps = partial(steps_of, Limits(prefill_tokens_min=prefill_tokens_min), router.picker)
    workers: Any = None  # Nothing is flushed.
    actions = AdminActions(
        fleet,
        router.text,
        router.routing,
        lambda *_: router.ask(TEXT).shape,
        steps=steps,
        workers=workers,
        router=router.name,
        seed=lambda: 7,
    )
    return await actions.explain(ExplainedRequest("/v1/completions", b'{"prompt": "text"}'))


@virtual
async def test_both_decisions_are_explained() -> None:
    """The first goes by the prompt, among those that compute; the second by load, among those that answer."""
    sim = await apart()
    router = sim.routers[0]
    served = await router._serve(router.ask(TEXT)._replace(step=PdRole.PREFILL), TEXT)
    sim.engines["w2"].extra_tokens = 9000
    await sim.settle(2)
    explained = await explain(router, prefill_tokens_min=1000)
    assert {row["worker"] for row in explained.prefill} == {"w0", "w1"}
    assert [bool(row["local_tokens"]) for row in explained.prefill] == [True, False]
    assert explained.prefill[0]["worker"] == served.worker
    assert [(row["worker"], row["computed_tokens"]) for row in explained.workers] == [("w3", 1), ("w2", 1)]
    step = router.ask(TEXT)._replace(step=PdRole.PREFILL)
    assert (await router.picker.place(step)).worker == served.worker


@virtual
async def test_request_for_one_worker_is_explained_once() -> None:
    """Its prompt is too short to be computed elsewhere."""
    explained = await explain((await apart()).routers[0], prefill_tokens_min=100_000)
    assert explained.prefill == []
    assert {row["worker"] for row in explained.workers} == {"w2", "w3"}
    assert all(row["computed_tokens"] not in (0, 1) for row in explained.workers)
