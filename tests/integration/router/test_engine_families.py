"""Which engine a worker runs, as far as prompts differ by it; over real sockets."""

from __future__ import annotations

import asyncio

import msgspec

from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_router.fleet.fleet import Fleet
from ghostcacher_router.fleet.options import FleetOptions
from ghostcacher_router.metrics.catalog import RouterMetrics
from tests.support.index_parts import make_record
from tests.support.mock_engine import MiniEngine, until

FAST = FleetOptions(health_interval_s=0.05, discover_interval_s=0.02, lease_ttl_s=0.5)


def test_models_of_sglang_are_known_to_keep_the_billing_line() -> None:
    """From when the worker has told its models, until it leaves."""

    async def main() -> None:
        index = MemoryIndex()
        fleet = Fleet(metrics=RouterMetrics(), index=index, options=FAST)
        async with MiniEngine(["s"]) as engine:
            record = make_record("a")
            record = msgspec.structs.replace(record, http=engine.endpoint.url, fingerprint={"engine": "sglang"})
            await fleet.start()
            assert fleet.billing_kept() == frozenset()
            index.join(record, lease_ttl_s=600.0)
            await until(lambda: fleet.billing_kept() == {None, "s"})
            index.leave(ref_of(record))
            await until(lambda: not fleet.billing_kept())
            await fleet.stop()

    asyncio.run(main())
