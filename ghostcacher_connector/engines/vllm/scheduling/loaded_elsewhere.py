"""What follows from a load that a connector beside ours has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ghostcacher_connector.engines.common.pull_state import Phase
from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked
from ghostcacher_connector.engines.vllm.scheduling.slot_watch import SlotWatch

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.outputs import KVConnectorOutput


def loaded_elsewhere(
    request_id: str,
    tracked: Tracked | None,
    output: KVConnectorOutput,
    watch: SlotWatch | None,
    manager: KVCacheManager | None,
) -> None:
    """Settle a request that another connector has loaded, well or not. tracked: None when it was aborted meanwhile.

    If that has failed, the request computes all of it: vLLM counts what it still needs for the load that failed, and
    where that is more than half of the cache, another load would wait for room for ever. Where it has failed, what was
    given up may still arrive. vLLM keeps the slots for the request until this has returned.
    """
    if tracked is not None:
        tracked.phase = Phase.SETTLED
    if watch is None or manager is None:
        return
    slots = [slot for group in manager.get_blocks(request_id).get_block_ids() for slot in group]
    failed = [slot for slot in slots if slot in output.invalid_block_ids]
    watch.distrust(failed or (slots if request_id in output.failed_recving else ()))
