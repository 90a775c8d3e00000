"""Real engines, a real Redis and a measuring client, for the demo, the benchmarks and the end-to-end tests.

    model = ensure_model("tiny")
    with RedisServer() as redis:
        options = [EngineOptions(model=str(model), name=name, connector={"redis_url": redis.url}) for name in "ab"]
        a, b = start_many(options)
        try:
            print(a.client.complete("def main(", max_tokens=8))
        finally:
            stop_all([a, b])

Nothing that is started here outlives the process that started it, however that process ends.
"""

from benchmarks.harness.client import Client, Completion, Metrics, ServerError, compare, metrics, run_concurrently
from benchmarks.harness.documents import Documents
from benchmarks.harness.engine import Engine, EngineStartError, start_many, stop_all, wait_all_ready
from benchmarks.harness.launch import EngineOptions
from benchmarks.harness.model import ensure_model
from benchmarks.harness.redis_server import RedisServer
from ghostcacher_cli.up.machine import NotEnoughMemory, core_shares, free_port
from ghostcacher_connector.core.process.guarded import GuardedProcess

__all__ = [
    "Client",
    "Completion",
    "Documents",
    "Engine",
    "EngineOptions",
    "EngineStartError",
    "GuardedProcess",
    "Metrics",
    "NotEnoughMemory",
    "RedisServer",
    "ServerError",
    "compare",
    "core_shares",
    "ensure_model",
    "free_port",
    "metrics",
    "run_concurrently",
    "start_many",
    "stop_all",
    "wait_all_ready",
]
