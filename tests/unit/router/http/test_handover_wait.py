"""The first of two steps waits for its turn as any request does, beside the time that it has. Virtual time."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ghostcacher_connector.core.types import PdRole
from ghostcacher_router.http.exchanges.handover import HandedOver, PrefillStep
from ghostcacher_router.http.exchanges.own_request import OwnRequest
from ghostcacher_router.http.protocol.limits import Limits
from ghostcacher_router.http.protocol.request_head import RequestHead
from ghostcacher_router.http.proxy_state import ProxyState
from ghostcacher_simulator.virtual_time import virtual
from tests.support.handover_rig import COMPUTED
from tests.support.proxy_rig import Tally
from tests.unit.router.flow.support import Controlled, settled

PREFILL_S = 5.0
HEAD = RequestHead("POST", b"/v1/completions", "/v1/completions", "", True, True, {}, b"", False, None, False)


async def busy() -> Controlled:
    """One worker that computes prompts, and does, and one that answers."""
    rig = Controlled(2)
    for worker, role in zip(rig.workers, (PdRole.PREFILL, PdRole.DECODE), strict=True):
        worker.worker.pd_role = role
    await rig.send(rig.ask("runs", step=PdRole.PREFILL))
    return rig


def step_behind(rig: Controlled) -> asyncio.Task[HandedOver | None]:
    """Begin a first step whose request waits for its turn."""
    proxy = SimpleNamespace(
        limits=Limits(prefill_s=PREFILL_S), dispatcher=rig.flow, meter=Tally(), clock=asyncio.get_running_loop().time
    )
    ask = rig.ask("waits", step=PdRole.PREFILL)
    step = PrefillStep(cast(ProxyState, proxy), HEAD, ask, b"", b'{"prompt": "a"}')
    return asyncio.ensure_future(step.run())


@virtual
async def test_step_that_had_to_wait_for_its_turn_has_all_of_its_time() -> None:
    async def ask(*_: Any) -> tuple[int, bytes]:
        await asyncio.sleep(PREFILL_S - 1)
        return 200, COMPUTED

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OwnRequest, "ask", ask)
        rig = await busy()
        task = step_behind(rig)
        await asyncio.sleep(4 * PREFILL_S)
        assert len(rig.flow.queue) == 1
        await rig.end("runs")
        assert await task is not None
        rig.check_idle()


@virtual
async def test_step_takes_no_longer_than_its_time_after_its_turn() -> None:
    async def ask(*_: Any) -> tuple[int, bytes]:
        return await asyncio.get_running_loop().create_future()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OwnRequest, "ask", ask)
        rig = await busy()
        task = step_behind(rig)
        await asyncio.sleep(4 * PREFILL_S)
        await rig.end("runs")
        await settled()
        begins = asyncio.get_running_loop().time()
        assert await task is None
        assert asyncio.get_running_loop().time() - begins == pytest.approx(PREFILL_S)
        rig.check_idle()
