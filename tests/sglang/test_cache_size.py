"""What SGLang says in its metrics of how much its cache holds is what a router reads there."""

from __future__ import annotations

from prometheus_client import REGISTRY, generate_latest
from sglang.srt.observability.metrics_collector import SchedulerMetricsCollector
from sglang.srt.runtime_context import get_context

from ghostcacher_router.fleet.engine_metrics import cache_tokens_of

LABELS = {"model_name": 'a "model"', "engine_type": "unified", "tp_rank": "0", "pp_rank": "0", "moe_ep_rank": "0"}


def test_page_of_sglang_says_how_much_its_cache_holds() -> None:
    """From SGLang's own collector, which tells it once at the start."""
    with get_context().override_server_args() as server_args:
        collector = SchedulerMetricsCollector(dict(LABELS), server_args)
    collector.emit_constants(
        max_total_num_tokens=50_000,
        max_total_num_tokens_swa=10_000,
        weight_memory_usage_gb=1.0,
        kv_cache_memory_usage_gb=1.0,
        graph_memory_usage_gb={},
        max_running_requests_under_SLO=None,
        page_size=1,
        num_pages=50_000,
        context_len=4096,
        startup_available_gpu_memory_gb=1.0,
    )
    assert cache_tokens_of(generate_latest(REGISTRY)) == 50_000
