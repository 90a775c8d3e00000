"""vLLM's connector for Mooncake's store without CUDA events, of which a CPU build of torch has none.

The event says when a forward pass has computed what is to be stored. On a CPU that is so as soon as the pass returns.
"""

from __future__ import annotations

from vllm.distributed.kv_transfer.kv_connector.v1.mooncake.store.connector import MooncakeStoreConnector


class MooncakeStoreOnCpu(MooncakeStoreConnector):
    """The connector; vLLM finds it by this name. All but the event is the original's."""

    def wait_for_save(self) -> None:
        """Queue the blocks that this step has computed; the original's sending thread stores them."""
        worker = self.connector_worker
        for request in self._get_connector_metadata().requests:
            if worker.can_put and request.can_save:
                worker.kv_send_thread.add_request(request)
