"""Two engines that share, on one device, for as many stages as need them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from benchmarks.gpu_check.sizes import Device, Sizes, sizes_of
from benchmarks.harness import Documents, EngineOptions, RedisServer, ensure_model, model_recipe, start_many, stop_all
from benchmarks.harness.engine import Engine
from benchmarks.harness.report import ProgressLine
from benchmarks.harness.scenario import wait_until_joined, warm_up

Kind = Literal["block-major", "engine-layout", "small-kv", "mla", "window-fp8"]
"""Which engines a stage needs: as they are by default, in vLLM's own layout, with a KV cache that is too small, or with
models of these kinds."""

MODELS: dict[Kind, model_recipe.Kind] = {"mla": "mla", "window-fp8": "window-fp8"}
"""Which model is not plain full attention."""

ARGUMENTS: dict[Kind, tuple[str, ...]] = {
    "window-fp8": ("--disable-hybrid-kv-cache-manager", "--kv-cache-dtype", "fp8"),
}
"""More of vLLM's arguments."""

FULL_GRAPHS = '{"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32]}'
"""Decoding by full CUDA graphs, without Inductor, which would cost a minute of the device for each engine."""

WARM_UP_TOKENS = 200


class Pair(NamedTuple):
    """What a stage works with."""

    a: Engine
    """The engine that computes."""
    b: Engine
    """The engine that pulls."""
    documents: Documents
    sizes: Sizes
    device: Device
    progress: ProgressLine


def options_of(name: str, kind: Kind, model: str, redis_url: str, device: Device, *, eager: bool) -> EngineOptions:
    """Return how one engine of a pair is started."""
    sizes = sizes_of(device)
    graphs = () if eager or device == "cpu" else ("--compilation-config", FULL_GRAPHS)
    settings: dict[str, Any] = {
        "redis_url": redis_url,
        "worker_id": f"gpu-check-{name}",
        "pull": "always",
        "lookup_deadline_ms": 2000.0,
        "pull_timeout_s": 30.0,
    }
    if kind == "engine-layout":
        settings["kv_layout"] = "engine"
    return EngineOptions(
        model=model,
        name=name,
        connector=settings,
        max_model_len=sizes.max_model_len,
        num_blocks=sizes.torture_blocks if kind == "small-kv" else None,
        block_size=32 if device == "cpu" else None,
        eager=not graphs,
        extra_args=(*graphs, *ARGUMENTS.get(kind, ())),
        env={"VLLM_USE_FLASHINFER_SAMPLER": "0"},
    )


@contextmanager
def pair(kind: Kind, device: Device, *, eager: bool, progress: ProgressLine) -> Iterator[Pair]:
    """Start two engines that share, and end them."""
    sizes = sizes_of(device)
    model = str(ensure_model(sizes.model, kind=MODELS.get(kind, "qwen3")))
    with RedisServer() as redis:
        engines = start_many(
            [options_of(name, kind, model, redis.url, device, eager=eager) for name in ("A", "B")], progress
        )
        try:
            wait_until_joined(engines)
            documents = Documents(model)
            for number, engine in enumerate(engines):
                warm_up(engine, documents.tokens(WARM_UP_TOKENS, seed=number))
            yield Pair(*engines, documents, sizes, device, progress)
        finally:
            stop_all(engines)
