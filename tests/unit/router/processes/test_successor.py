"""A process that is to replace one which serves."""

from __future__ import annotations

import pytest

from ghostcacher_connector.core.errors import GhostCacherError
from ghostcacher_router.app import Router
from ghostcacher_router.config import RouterSettings
from ghostcacher_router.warm_up import wait_until_of_use
from tests.support.mock_engine import MiniEngine
from tests.support.proxy_rig import on_loop


@on_loop
async def test_successor_without_a_worker_does_not_take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says why; the one before goes on, and may know workers of which Redis does not tell now."""
    monkeypatch.setattr("ghostcacher_router.warm_up.SUCCESSOR_S_MAX", 0.0)
    router = Router(RouterSettings(redis=False, workers=("http://127.0.0.1:1",)))
    with pytest.raises(GhostCacherError, match=r"no worker is known.*: the process that was to be replaced goes on"):
        await wait_until_of_use(router._fleet)
    await router.stop()


@on_loop
async def test_successor_waits_until_it_knows_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the first answers take, within its time."""
    monkeypatch.setattr("ghostcacher_router.warm_up.SUCCESSOR_S_MAX", 60.0)
    async with MiniEngine() as engine:
        router = Router(RouterSettings(redis=False, workers=(engine.endpoint.url,)))
        await router._fleet.start()
        await wait_until_of_use(router._fleet)
        assert [worker.state.value for worker in router._fleet.workers.values()] == ["ready"]
        await router.stop()
