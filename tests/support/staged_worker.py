"""A worker of vLLM for pipeline stages on a CPU (``--worker-cls``).

What a stage gets from the one before it is put into tensors that vLLM makes in the run that warms a model up, and on
CPUs it leaves that run out where nothing is compiled.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.parallel_state import get_pp_group
from vllm.v1.worker.cpu_worker import CPUWorker


class StagedWorker(CPUWorker):
    """See the module's docstring."""

    def load_model(self, *args: Any, **options: Any) -> None:
        super().load_model(*args, **options)
        runner = self.model_runner
        if not get_pp_group().is_first_rank:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
            )
