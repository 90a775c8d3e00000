"""The connector with a clock around every call that vLLM makes of it, for the benchmark of its overhead.

The CPU time of the calls goes to a small file that the benchmark reads. Most of what the clocks cost is counted as the
connector's: how much that is shows `wait_for_save`, which does nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

from ghostcacher_connector.engines.vllm.connector import GhostCacherConnector as Timed

FILE_VARIABLE = "GHOSTCACHER_TIMES"
CALLS = (
    "handle_preemptions",
    "start_load_kv",
    "wait_for_save",
    "get_transfer_results",
    "get_block_ids_with_load_errors",
    "build_connector_worker_meta",
    "get_kv_connector_stats",
    "on_new_request",
    "get_num_new_matched_tokens",
    "update_state_after_alloc",
    "build_connector_meta",
    "update_connector_output",
    "request_finished_all_groups",
)
"""All calls of requests and steps. Those of each layer do nothing: that vLLM makes them is its own cost."""

SHAPE = 2, len(CALLS), 2

Times = npt.NDArray[np.float64]
Answer = TypeVar("Answer")


def make_times(path: Path) -> Times:
    """Make the file and return its contents, which change as the engine runs.

    Shape (roles, calls, 2): seconds and count of each of `CALLS`, by the scheduler's half and by the rank's.
    """
    return np.memmap(path, dtype=np.float64, mode="w+", shape=SHAPE)


class GhostCacherConnector(Timed):
    """The connector, timed; vLLM finds it by this name."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        times = np.memmap(os.environ[FILE_VARIABLE], dtype=np.float64, mode="r+", shape=SHAPE)
        own = times[0 if role is KVConnectorRole.SCHEDULER else 1]
        for name, row in zip(CALLS, own, strict=True):
            setattr(self, name, _timed(getattr(self, name), row))


def _timed(call: Callable[..., Answer], row: Times) -> Callable[..., Answer]:
    @wraps(call)
    def timed(*args: Any, **kwargs: Any) -> Answer:
        began = time.thread_time()
        try:
            return call(*args, **kwargs)
        finally:
            row[0] += time.thread_time() - began
            row[1] += 1

    return timed
