"""Which data-parallel rank an engine is: what vLLM says of it, and what follows for names, ports and routes.

vLLM runs the ranks of a dense model as if each were alone: before it makes the connector, it sets `data_parallel_size`
to 1. What remains is a suffix of the engine's id, and `data_parallel_index`. A mixture of experts keeps its sizes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig

SUFFIX = re.compile(r"_dp(\d+)$")
"""What vLLM puts behind the id of each engine of several data-parallel ones."""


def data_parallel_rank(vllm_config: VllmConfig) -> int | None:
    """Return the number of this engine among the data-parallel ones of its deployment; None where it is alone."""
    parallel = vllm_config.parallel_config
    if parallel.data_parallel_size > 1:
        return int(parallel.data_parallel_index)
    assert vllm_config.kv_transfer_config is not None
    suffix = SUFFIX.search(str(vllm_config.kv_transfer_config.engine_id))
    return int(suffix[1]) if suffix is not None else None


def front_rank(vllm_config: VllmConfig) -> int | None:
    """Return the number by which this engine's HTTP server knows it, for the header X-data-parallel-rank.

    None where the server has no other engine, since it then refuses every number but 0. A server that balances only
    among the engines of its own machine counts only these.
    """
    parallel = vllm_config.parallel_config
    if parallel.data_parallel_external_lb:
        return None
    rank = data_parallel_rank(vllm_config)
    if rank is None or not parallel.data_parallel_hybrid_lb:
        return rank
    assert parallel.data_parallel_rank_local is not None
    return int(parallel.data_parallel_rank_local)


def relay_port_offset(vllm_config: VllmConfig) -> int:
    """Return how far this rank's relay port is above the one that all ranks are given."""
    parallel = vllm_config.parallel_config
    return (data_parallel_rank(vllm_config) or 0) * int(parallel.world_size) + int(parallel.rank)
