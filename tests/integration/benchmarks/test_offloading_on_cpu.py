"""vLLM's offloading with copies on the CPU, by vLLM's own classes."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.kv_offload.base import CanonicalKVCacheRef, CanonicalKVCaches, CanonicalKVCacheTensor, GPULoadStoreSpec
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec

from benchmarks.peers.offloading_on_cpu import CpuCopyWorker

pytestmark = pytest.mark.engine

BLOCKS, PAGE = 6, 32


def test_stored_blocks_loaded_elsewhere_have_their_bytes() -> None:
    """Blocks of all layers go down and come up into other blocks as they were; the others keep theirs."""
    layers = [torch.randint(-128, 128, (BLOCKS, PAGE), dtype=torch.int8) for _ in range(2)]
    before = [layer.clone() for layer in layers]
    caches = CanonicalKVCaches(
        [CanonicalKVCacheTensor(layer, PAGE) for layer in layers],
        [[CanonicalKVCacheRef(index, PAGE) for index in range(2)]],
    )
    worker = CpuCopyWorker(caches, slots=3)
    worker.submit_store(1, GPULoadStoreSpec([4, 1], [2], [0]), CPULoadStoreSpec([2, 0]))
    for layer in layers:
        layer[[1, 4]] = 0
    worker.submit_load(2, CPULoadStoreSpec([0, 2]), GPULoadStoreSpec([5, 0], [2], [0]))
    done = worker.get_finished()
    size = 2 * 2 * PAGE
    assert [(one.job_id, one.success, one.transfer_size) for one in done] == [(1, True, size), (2, True, size)]
    assert worker.get_finished() == []
    for layer, was in zip(layers, before, strict=True):
        assert torch.equal(layer[5], was[1])
        assert torch.equal(layer[0], was[4])
        assert torch.equal(layer[[2, 3]], was[[2, 3]])
