"""What the stages of a pipeline-parallel engine tell each other: each holds other layers, and none knows the others'.

Blocks may be shared only where every stage of both engines has the same layers in the same layout, so all ranks of an
engine need one fingerprint that covers all of its stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def layout_of_all_stages(vllm_config: VllmConfig, own: str, layers: Sequence[str]) -> str:
    """Return the layout of a rank's KV cache, with those of its counterparts in the other stages; equal on all ranks.

    To be called on every rank at the same time, since the stages wait for each other.
    own: as `kv_layout.describe` gives it. layers: names of the rank's own layers, in order.
    """
    if vllm_config.parallel_config.pipeline_parallel_size == 1:
        return own
    from vllm.distributed.parallel_state import get_pp_group  # noqa: PLC0415 - only in a rank

    group = get_pp_group()
    words = f"{layers[0]}..{layers[-1]}:{own}"
    stages = [
        group.broadcast_object(words if stage == group.rank_in_group else None, src=stage)
        for stage in range(group.world_size)
    ]
    return " | ".join(stages)
