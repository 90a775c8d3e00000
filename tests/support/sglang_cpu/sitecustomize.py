"""Lets the released SGLang 0.5.23 run on a CPU: see README.md. To be put on PYTHONPATH.

Python runs this in every process of a server, spawned ones included. Nothing heavy is imported here: each patch is made
when the module that it concerns is imported.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import shutil
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_kept: list[Any] = []


def before_torchvision() -> None:
    """Define the operators that torchvision registers fake kernels for: its own library cannot be loaded."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


def before_sglang() -> None:
    """Where triton is not installed, use the stub that SGLang carries for Apple silicon."""
    if importlib.util.find_spec("triton") is not None:
        return
    import torch

    places = (Path(folder) / "sglang" / "_platform_stubs.py" for folder in sys.path)
    spec = importlib.util.spec_from_file_location("_sgl_platform_stubs", next(p for p in places if p.exists()))
    assert spec is not None
    assert spec.loader is not None
    stubs: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = stubs
    spec.loader.exec_module(stubs)
    stubs.sys = types.SimpleNamespace(platform="darwin", modules=sys.modules, meta_path=sys.meta_path)
    stubs.platform = types.SimpleNamespace(machine=lambda: "arm64")
    stubs._patch_non_blocking = lambda: None
    real: Any = torch.backends.mps.is_available
    torch.backends.mps.is_available = lambda: True
    try:
        stubs.install_platform_stubs()
    finally:
        torch.backends.mps.is_available = real


def after_host_pool(module: Any) -> None:
    """There is no CUDA to pin host memory with."""
    init = module.HostKVCache.__init__

    def unpinned(self: Any, **options: Any) -> None:
        options["pin_memory"] = False
        init(self, **options)

    module.HostKVCache.__init__ = unpinned


def after_lora(module: Any) -> None:
    """Nor to copy a batch's adapters faster to a device, which the backend in PyTorch does on every machine."""
    import torch

    class Unpinned(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        @staticmethod
        def zeros(*args: Any, **options: Any) -> Any:
            return torch.zeros(*args, **{**options, "pin_memory": False})

        @staticmethod
        def tensor(*args: Any, **options: Any) -> Any:
            return torch.tensor(*args, **{**options, "pin_memory": False})

    module.torch = Unpinned("torch")
    if not torch.cuda.is_available():
        torch.Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[method-assign]


def after_host_mha(module: Any) -> None:
    """The copies of ``--hicache-io-backend direct`` come from the native kernels; plain indexing does the same."""

    def transfer_kv_direct(
        src_layers: Sequence[Any], dst_layers: Sequence[Any], src_indices: Any, dst_indices: Any, page_size: int
    ) -> None:
        for source, target in zip(src_layers, dst_layers, strict=True):
            target[dst_indices] = source[src_indices]

    def per_layer(
        src_ptrs: Sequence[Any],
        dst_ptrs: Sequence[Any],
        src_indices: Any,
        dst_indices: Any,
        layer_id: int,
        page_size: int,
    ) -> None:
        for source, target in zip(src_ptrs, dst_ptrs, strict=True):
            target[dst_indices] = source[src_indices // page_size, layer_id, src_indices % page_size]

    def all_layers(
        src_ptrs: Sequence[Any], dst_ptrs: Sequence[Any], src_indices: Any, dst_indices: Any, page_size: int
    ) -> None:
        each = len(src_ptrs) // len(dst_ptrs)  # K layers, then V layers
        for number, target in enumerate(dst_ptrs):
            for layer in range(each):
                rows = src_ptrs[number * each + layer][src_indices]
                target[dst_indices // page_size, layer, dst_indices % page_size] = rows

    module.transfer_kv_direct = transfer_kv_direct
    module.transfer_kv_per_layer_direct_pf_lf = per_layer
    module.transfer_kv_all_layer_direct_lf_pf = all_layers


def after_native_hash(module: Any) -> None:
    """SGLang compiles the hash of its pages when it is first used; without a compiler: the same in Python."""
    if shutil.which("g++") and Path("/usr/include/openssl/sha.h").exists():
        return

    def get_native_hash(token_ids: Any, prior_digest: bytes | None, page_size: int | None = None) -> str | list[str]:
        raw, count, width, is_bigram = module._native_hash_input(token_ids)
        if width != 1 or is_bigram:
            raise NotImplementedError("keys of bigrams in the Python hash")
        digest, names = prior_digest or b"", []
        for start in range(0, count, page_size or max(count, 1)):
            end = min(count, start + (page_size or count))
            page = b"".join(int(token).to_bytes(4, "little") for token in raw[start:end])
            digest = hashlib.sha256(digest + page).digest()
            names.append(digest.hex())
        return names if page_size else names[-1]

    module.get_native_hash = get_native_hash


_BEFORE: dict[str, Callable[[], None]] = {"torchvision": before_torchvision, "sglang": before_sglang}
_AFTER: dict[str, Callable[[Any], None]] = {
    "sglang.srt.lora.backend.torch_backend": after_lora,
    "sglang.srt.lora.layers": after_lora,
    "sglang.srt.mem_cache.cpp_utils.native_hash": after_native_hash,
    "sglang.srt.mem_cache.pool_host.base": after_host_pool,
    "sglang.srt.mem_cache.pool_host.mha": after_host_mha,
}


class _Patcher(importlib.abc.MetaPathFinder):
    """Runs each patch once, around the import of its module."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, _target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if before := _BEFORE.pop(name, None):
            before()
        after = _AFTER.pop(name, None)
        if after is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def run_and_patch(module: types.ModuleType) -> None:
            run(module)
            after(module)

        spec.loader.exec_module = run_and_patch  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Patcher())
