"""`ghostcacher up` with two data-parallel ranks behind one server of vLLM: workers that the router addresses apart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks.harness import Client, Documents
from ghostcacher_cli.terminal.fleet import RouterClient, RouterUnreachable
from ghostcacher_cli.up.machine import free_port
from ghostcacher_connector.core.admin_api import Worker
from tests.e2e.fleet import BLOCK_TOKENS, TOLERANCE, until
from tests.e2e.routed import ask

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

RANKS = 2
READY_S = 780.0
ENGINE = ("--data-parallel-size", str(RANKS), "--enforce-eager", "--max-model-len", "1024", "--dtype", "float32")
ENGINE += ("--served-model-name", "m", "--block-size", str(BLOCK_TOKENS))
TOKENS = 12 * BLOCK_TOKENS


class Front(NamedTuple):
    """What was started."""

    url: str
    """Of the router."""
    metrics_port: int
    """Given to all ranks."""
    documents: Documents
    """Prompts that nobody has seen."""

    def workers(self) -> list[Worker]:
        try:
            return list(RouterClient(self.url, None).snapshot(0.0).workers)
        except RouterUnreachable:
            return []

    def hits(self, rank: int) -> float:
        """Return how many blocks a rank has pulled, from its own page."""
        return Client(f"http://127.0.0.1:{self.metrics_port + rank}").metrics().sum("gc_cache_hits_total")

    def complete(self, prompt: str | list[int], rank: int | None = None) -> tuple[Any, str]:
        """Return an answer's log-probabilities, and the worker that gave it. rank: to be named by the client."""
        body = {"model": "m", "prompt": prompt, "max_tokens": 4, "temperature": 0, "logprobs": 1}
        named = {} if rank is None else {"X-data-parallel-rank": str(rank)}
        answer, headers = ask(self.url, "/v1/completions", body, named)
        return answer["choices"][0]["logprobs"]["token_logprobs"], headers["x-gc-worker"]


@pytest.fixture(scope="module")
def front(model: Path, log_dir: Path) -> Iterator[Front]:
    port, metrics_port, relay_port = free_port(), free_port(), free_port()
    command = [sys.executable, "-m", "ghostcacher_cli.main", "up", str(model), "--workers", "1", "--port", str(port)]
    command += ["--kv-gib", "1", "--log-dir", str(log_dir), *ENGINE]
    with tempfile.TemporaryDirectory(prefix="gc-dp-") as runtime:
        env = os.environ | {
            "XDG_RUNTIME_DIR": runtime,
            "GC_PULL": "always",
            "GC_REDIS_TIMEOUT_S": "1.0",
            "GC_LOOKUP_DEADLINE_MS": "5000",
            "GC_METRICS_PORT": str(metrics_port),
            "GC_RELAY_LISTEN": f"127.0.0.1:{relay_port}",
        }
        os.chmod(runtime, 0o700)
        with (log_dir / "up.log").open("wb") as log:
            up = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        front = Front(f"http://127.0.0.1:{port}", metrics_port, Documents(model))
        try:
            until(
                lambda: up.poll() is not None or [each.state for each in front.workers()] == ["ready"] * RANKS,
                "both ranks to be ready for the router",
                timeout_s=READY_S,
            )
            assert up.poll() is None, (log_dir / "up.log").read_text()
            yield front
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait(120)


def test_every_rank_is_a_worker_of_its_own(front: Front) -> None:
    """With a name and a number of its own, at one address; `ghostcacher status` shows both."""
    workers = front.workers()
    port = front.url.rpartition(":")[2]
    assert [worker.id for worker in workers] == [f"w1-{port}-dp{rank}" for rank in range(RANKS)]
    assert [worker.data_parallel_rank for worker in workers] == list(range(RANKS))
    assert len({worker.url for worker in workers}) == 1
    command = [sys.executable, "-m", "ghostcacher_cli.main", "status", "--url", front.url]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert all(worker.id in shown for worker in workers)


@pytest.mark.parametrize("owner", range(RANKS))
def test_prefix_computed_by_one_rank_is_pulled_by_the_other(front: Front, owner: int) -> None:
    """The header picks the rank that computes; the other one pulls the prefix, and gives the same answer."""
    names, reader = [worker.id for worker in front.workers()], 1 - owner
    before = front.hits(reader)

    def pulled(prompt: list[int]) -> bool:
        computed, there = front.complete(prompt, owner)
        assert there == names[owner]
        again, there = front.complete(prompt, reader)
        assert there == names[reader]
        assert again == pytest.approx(computed, abs=TOLERANCE)
        return front.hits(reader) > before

    # What is published takes a moment to be found, and what was computed twice is in both caches: so each time anew.
    seeds = iter(range(1000 * owner, 1000 * (owner + 1)))
    until(lambda: pulled(front.documents.tokens(TOKENS + 1, seed=next(seeds))), "a pull from the other rank")


@pytest.mark.parametrize("owner", range(RANKS))
def test_router_chooses_the_rank_that_has_the_prefix(front: Front, owner: int) -> None:
    """Nobody names a rank: the request goes to the one whose blocks the router knows of."""
    name = front.workers()[owner].id
    text = front.documents.text(TOKENS, seed=5000 + owner)
    front.complete(text, owner)

    def known() -> bool:
        answer, _ = ask(front.url, "/gc/explain", {"model": "m", "prompt": text})
        return any(each["local_tokens"] > 0 for each in answer["workers"] if each["worker"] == name)

    until(known, "the router to know which rank has the prefix")
    assert front.complete(text)[1] == name
