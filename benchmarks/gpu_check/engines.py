"""Two engines that share, on one device, for as many stages as need them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_check.kinds import ENGINES, KINDS, EngineKind
from benchmarks.gpu_check.sizes import Device, Sizes, sizes_of
from benchmarks.harness import Documents, EngineOptions, RedisServer, ensure_model, start_many, stop_all
from benchmarks.harness.engine import Engine
from benchmarks.harness.lora_adapter import make_adapter
from benchmarks.harness.report import ProgressLine
from benchmarks.harness.scenario import nudge, wait_until_joined, warm_up

FULL_GRAPHS = '{"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32]}'
"""Decoding by full CUDA graphs, without Inductor, which would cost a minute of the device for each engine."""

WARM_UP_TOKENS = 200
ADAPTER_SEED = 1


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
    kind: EngineKind


def options_of(
    name: str, kind: str, model: Path, redis_url: str, device: Device, *, eager: bool, adapter: str | None = None
) -> EngineOptions:
    """Return how one engine of a pair is started. kind: a name in `ENGINES`. adapter: folder of a LoRA adapter."""
    of_kind, sizes = ENGINES[kind], sizes_of(device, kinds=kind in KINDS)
    graphs = () if eager or device == "cpu" else ("--compilation-config", FULL_GRAPHS)
    settings: dict[str, Any] = {
        "redis_url": redis_url,
        "worker_id": f"gpu-check-{name}",
        "pull": "always",
        "lookup_deadline_ms": 2000.0,
        "pull_timeout_s": 30.0,
        **of_kind.settings,
    }
    return EngineOptions(
        model=str(model),
        name=name,
        connector=settings,
        max_model_len=sizes.max_model_len,
        num_blocks=of_kind.blocks(device, sizes.torture_blocks),
        block_size=of_kind.block_tokens(device) if device == "cpu" else of_kind.gpu_block_tokens,
        # On a CPU two shapes of one computation are too far apart in bfloat16 to see a wrong block of some kinds.
        dtype="float32" if device == "cpu" and kind in KINDS else "bfloat16",
        eager=not graphs,
        adapter=adapter,
        extra_args=(*graphs, *of_kind.arguments_for(model)),
        env={"VLLM_USE_FLASHINFER_SAMPLER": "0", **of_kind.environment()},
    )


@contextmanager
def pair(kind: str, device: Device, *, eager: bool, progress: ProgressLine) -> Iterator[Pair]:
    """Start two engines of a kind in `ENGINES` that share, and end them."""
    of_kind, sizes = ENGINES[kind], sizes_of(device, kinds=kind in KINDS)
    model = ensure_model(sizes.model, kind=of_kind.model)
    with RedisServer() as redis, tempfile.TemporaryDirectory(prefix="ghostcacher-adapters-") as folder:
        options = []
        for name in ("A", "B"):
            adapter = make_adapter(Path(folder) / name, model, seed=ADAPTER_SEED) if of_kind.adapter else None
            options.append(options_of(name, kind, model, redis.url, device, eager=eager, adapter=adapter))
        engines = start_many(options, progress)
        try:
            wait_until_joined(engines)
            documents = Documents(model)
            for number, engine in enumerate(engines):
                warm_up(engine, documents.tokens(WARM_UP_TOKENS, seed=number))
                nudge(engine.client)  # with the cache it has forgotten what its adapter holds, which a step tells it
            yield Pair(*engines, documents, sizes, device, progress, of_kind)
        finally:
            stop_all(engines)
