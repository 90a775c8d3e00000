"""vLLM's offloading to host memory for engines on CPUs, which it refuses: its own manager, copies by memcpy.

What to keep and what to evict is decided by the original's scheduler half. Replaced is the worker half alone, whose
copies need CUDA streams. A copy is done when it is submitted: after the forward pass that computed what it reads, and
before one that reads what it writes.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, GPULoadStoreSpec, LoadStoreSpec, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class CpuCopySpec(CPUOffloadingSpec):
    """The original, with a worker for CPUs; vLLM finds it by this name (spec_name, spec_module_path)."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        assert self.blocks_per_chunk == 1, "one block a chunk is the default, and all that is copied here"
        self._worker = self._worker or CpuCopyWorker(kv_caches, self.num_chunks)
        return self._worker


class CpuCopyWorker(OffloadingWorker):
    """Copies blocks between the engine's cache and as many slots as the manager counts."""

    def __init__(self, kv_caches: CanonicalKVCaches, slots: int) -> None:
        """slots: of one block of all layers each."""
        assert len(kv_caches.group_data_refs) == 1, "the models here have one kind of layer"
        self._engine = [one.tensor.view(torch.int8).view(-1, one.page_size_bytes) for one in kv_caches.tensors]
        # Touched now: else the first copies would pay for the kernel's zeroing of pages.
        self._host = [torch.zeros((slots, one.shape[1]), dtype=torch.int8) for one in self._engine]
        self._done: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        return self._copy(job_id, self._engine, src_spec, self._host, dst_spec)

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        return self._copy(job_id, self._host, src_spec, self._engine, dst_spec)

    def get_finished(self) -> list[TransferResult]:
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        """Return at once: no copy is ever under way."""

    def _copy(self, job_id: int, sources: list[torch.Tensor], src: Any, targets: list[torch.Tensor], dst: Any) -> bool:
        began = time.perf_counter()
        pairs = list(zip(src.block_ids.tolist(), dst.block_ids.tolist(), strict=True))
        for source, target in zip(sources, targets, strict=True):
            for row, slot in pairs:
                target[slot].copy_(source[row])
        size = len(pairs) * sum(source.shape[1] for source in sources)
        self._done.append(TransferResult(job_id, True, size, time.perf_counter() - began))
        return True
