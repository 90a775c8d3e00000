"""What the workers and routers of a simulated fleet share: who is told when there is something to read."""

from __future__ import annotations

from ghostcacher_connector.core.coordination.base import Flush, PromptChain
from ghostcacher_connector.core.index.base import ref_of
from ghostcacher_simulator.replay.stores import Stores
from ghostcacher_simulator.virtual_time import virtual
from tests.support.index_parts import make_record

CHAIN = PromptChain("q1", 16, (1,), (b"h" * 32,))


@virtual
async def test_readers_are_told_of_what_they_read_and_of_nothing_else() -> None:
    """Reports of prompts, what routers say, and Redis' going; a load alone is not read from there."""
    stores, ref = Stores(pulls=True), ref_of(make_record("w0"))
    client, told = stores.client(), stores.coordination.reader()
    assert told.is_set()
    client.heartbeat("r0", ttl_s=10.0)

    def is_told() -> bool:
        found = told.is_set()
        told.clear()
        return found

    is_told()
    stores.coordination.publish(ref, None, [], [], ttl_s=1.0)
    assert not is_told()
    stores.coordination.publish(ref, None, [CHAIN], [], ttl_s=1.0)
    assert is_told()
    stores.coordination.publish(ref, None, [], ["q1"], ttl_s=1.0)
    assert is_told()
    client.append_updates([Flush("all", b"", "r0")])
    assert is_told()
    stores.reach(reachable=False)
    assert is_told()
    assert not client.reachable
