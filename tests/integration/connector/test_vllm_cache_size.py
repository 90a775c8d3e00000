"""What vLLM says in its metrics of how much its cache holds is what a router reads there."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import REGISTRY, generate_latest
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.metrics.loggers import PrometheusStatLogger

from ghostcacher_router.fleet.engine_metrics import cache_tokens_of
from tests.integration.connector.enginesim import make_model_dir

BLOCKS, BLOCK_TOKENS = 661, 16


@pytest.mark.parametrize(("ranks", "size"), [(1, 10_000), (2, 10_000), (1, None), (2, None)])
def test_page_of_vllm_says_how_much_its_cache_holds(tmp_path: Path, ranks: int, size: int | None) -> None:
    """From vLLM's own logger: its size in tokens, of each rank; else its blocks, which it counts over all ranks."""
    config = EngineArgs(
        model=str(make_model_dir(tmp_path / "model")),
        skip_tokenizer_init=True,
        max_model_len=512,
        block_size=BLOCK_TOKENS,
        enforce_eager=True,
    ).create_engine_config()
    config.cache_config.num_gpu_blocks = BLOCKS * ranks
    config.cache_config.kv_cache_size_tokens = size
    PrometheusStatLogger(config, list(range(ranks))).log_engine_initialized()
    assert cache_tokens_of(generate_latest(REGISTRY)) == ranks * (size or BLOCKS * BLOCK_TOKENS)
