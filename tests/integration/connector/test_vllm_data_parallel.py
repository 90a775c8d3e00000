"""Data-parallel ranks of vLLM: each is a worker with a name, ports and a route of its own."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.redis_server import RedisServer
from ghostcacher_cli.up.machine import free_port, is_port_free
from ghostcacher_connector.config import Settings
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.engines.vllm.data_parallel import data_parallel_rank, front_rank, relay_port_offset
from ghostcacher_connector.engines.vllm.identity import worker_name
from tests.integration.connector.enginesim import SimEngine
from tests.support.index_parts import wait_until

pytestmark = pytest.mark.engine

SIZE = 2
WAIT_S = 60.0


def dense_rank(config: Any, rank: int) -> None:
    """Do to a configuration what vLLM does before it makes the engine of a dense model's rank (run_engine_core)."""
    parallel = config.parallel_config
    parallel.data_parallel_size = parallel.data_parallel_size_local = SIZE
    parallel.data_parallel_rank_local = rank
    config.kv_transfer_config.engine_id = f"{config.kv_transfer_config.engine_id}_dp{rank}"
    parallel.data_parallel_index = rank
    parallel.reconfigure_for_independent_dp_rank()


def expert_rank(config: Any, rank: int) -> None:
    """The same for a mixture of experts, whose ranks go in lockstep and keep their sizes."""
    parallel = config.parallel_config
    parallel.data_parallel_size = parallel.data_parallel_size_local = SIZE
    parallel.data_parallel_rank_local = rank
    config.kv_transfer_config.engine_id = f"{config.kv_transfer_config.engine_id}_dp{rank}"
    parallel.data_parallel_index = parallel.data_parallel_rank = rank


KINDS = (dense_rank, expert_rank)
Kind = Callable[[Any, int], None]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer(tcp=True) as server:
        yield server


def config_of(model: Path, kind: Kind, rank: int) -> Any:
    config = SimEngine.make_config("w", model, {}, in_flight=1, role="kv_both", step_tokens=64)
    kind(config, rank)
    return config


@pytest.mark.parametrize("kind", KINDS)
def test_every_rank_has_a_name_and_a_number(model: Path, kind: Kind) -> None:
    """The name stays over restarts; the number is the one by which the HTTP server in front knows the rank."""
    configs = [config_of(model, kind, rank) for rank in range(SIZE)]
    assert [worker_name(config, Settings(worker_id="w")) for config in configs] == ["w-dp0", "w-dp1"]
    assert [data_parallel_rank(config) for config in configs] == [0, 1]
    assert [front_rank(config) for config in configs] == [0, 1]


def test_engine_that_is_alone_has_no_number(model: Path) -> None:
    """Its server would take any number but 0 for an error."""
    config = SimEngine.make_config("w", model, {}, in_flight=1, role="kv_both", step_tokens=64)
    assert data_parallel_rank(config) is front_rank(config) is None
    assert relay_port_offset(config) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_server_that_does_not_balance_among_all_ranks_knows_them_by_other_numbers(model: Path, kind: Kind) -> None:
    """One server for each rank has nothing to choose; one for each machine counts the ranks of its machine alone."""
    config = config_of(model, kind, 1)
    config.parallel_config.data_parallel_external_lb = True
    assert front_rank(config) is None
    config.parallel_config.data_parallel_external_lb = False
    config.parallel_config.data_parallel_hybrid_lb = True
    config.parallel_config.data_parallel_rank_local = 0
    assert front_rank(config) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_relay_ports_of_all_ranks_differ(model: Path, kind: Kind) -> None:
    """Tensor-parallel ranks of a data-parallel rank lie side by side."""
    offsets = []
    for index in range(SIZE):
        config = config_of(model, kind, index)
        config.parallel_config.world_size = 4
        for rank in range(4):
            config.parallel_config.rank = rank
            offsets.append(relay_port_offset(config))
    assert offsets == list(range(4 * SIZE))


def free_ports(count: int) -> int:
    """Return the first of `count` ports in a row that were free a moment ago, and that no outgoing connection gets."""
    while True:
        last = free_port()
        if all(is_port_free("127.0.0.1", last - offset) for offset in range(1, count)):
            return last - count + 1


def test_ranks_with_fixed_ports_start_and_show_pages_of_their_own(model: Path, redis: RedisServer) -> None:
    """What one configuration gives to both ranks: a port of the metrics page, and one of the relay."""
    base = free_ports(2 * SIZE)
    settings = {
        "redis_url": redis.url,
        "redis_timeout_s": 1.5,
        "pull": "always",
        "lookup_deadline_ms": 5000.0,
        "metrics_port": base,
        "relay_listen": f"127.0.0.1:{base + SIZE}",
    }
    with ExitStack() as stack:
        engines = []
        for rank in range(SIZE):
            engine = SimEngine("fixed", model, settings, adapt=partial(dense_rank, rank=rank))
            stack.callback(engine.close)
            engines.append(engine)
        wait_until(lambda: all(engine.peers_ready(1) for engine in engines), WAIT_S, "both ranks to know each other")
        records = engines[0].connector._scheduler._fleet.live_workers.records()
        assert {record.worker: record.ranks[0].relay for record in records} == {
            f"fixed-dp{rank}": f"127.0.0.1:{base + SIZE + rank}" for rank in range(SIZE)
        }
        assert [(record.worker, record.data_parallel_rank) for record in records] == [
            ("fixed-dp0", 0),
            ("fixed-dp1", 1),
        ]
        for rank in range(SIZE):
            with closing(urllib.request.urlopen(f"http://127.0.0.1:{base + rank}/metrics", timeout=10)) as page:
                assert b"gc_peers_live" in page.read()


def test_port_that_is_too_high_for_the_last_rank_is_named(model: Path, redis: RedisServer) -> None:
    """Before anything is shared, by the setting's name."""
    settings = {"redis_url": redis.url, "redis_timeout_s": 1.5, "relay_listen": "127.0.0.1:65535"}
    with pytest.raises(ConfigError, match="relay_listen: expected a port of at most 65534"):
        SimEngine("high", model, settings, adapt=partial(dense_rank, rank=1))
