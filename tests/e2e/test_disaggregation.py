"""Two whole engines that compute prompts and one that answers, behind a router: vLLM's NixlConnector beside ours.

Run by ``make test-kinds`` alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.harness import Client, Completion, ensure_model
from benchmarks.harness.router import RouterProcess
from tests.e2e.fleet import BLOCK_TOKENS, REQUEST_TIMEOUT_S, TOLERANCE, Fleet, assert_same, running, until
from tests.e2e.routed import ask, loads_reported

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.environ.get("GHOSTCACHER_KINDS") != "all", reason="run by make test-kinds"),
]

NAMES = {"p1": "kv_producer", "p2": "kv_producer", "d": "kv_consumer"}
BLOCKS = 20
COMPLETIONS = "/v1/completions"


class Apart(NamedTuple):
    """The engines, and a router before them."""

    fleet: Fleet
    router: RouterProcess

    @property
    def client(self) -> Client:
        return Client(self.router.url, model="m", timeout_s=REQUEST_TIMEOUT_S)

    def handed(self) -> float:
        """Return how many prompts have been handed over."""
        return self.client.metrics().sum("gc_router_handovers_total", result="handed")

    def read(self) -> float:
        """Return how many tokens' KV the engine that answers has had from others.

        Its answers say instead what the engine that computed the prompt had in its cache.
        """
        return self.fleet.client("d").metrics().sum("vllm:external_prefix_cache_hits_total")

    def alone(self, prompt: list[int], count: int) -> Completion:
        """Return the answer of the engine that answers, without anybody's help."""
        return self.fleet.recompute("d", prompt, max_tokens=count)


@pytest.fixture(scope="module")
def apart(log_dir: Path) -> Iterator[Apart]:
    options = {name: {"nixl_role": role} for name, role in NAMES.items()}
    with running(ensure_model("tiny"), options, log_dir=log_dir) as fleet:
        arguments = ("--prefill-tokens-min", str(2 * BLOCK_TOKENS))
        with RouterProcess(redis_url=fleet.redis.url, arguments=arguments, log_dir=log_dir) as router:
            router.wait_workers(len(NAMES))
            until(lambda: loads_reported(router.url, {"d"}), "the load of the engine that answers")
            yield Apart(fleet, router)


def test_engines_say_what_they_do(apart: Apart) -> None:
    """By the connector beside ours: the router has no list."""
    roles = {name: apart.fleet.worker(name).pd_role for name in NAMES}
    assert roles == {"p1": "prefill", "p2": "prefill", "d": "decode"}


def test_answer_to_a_prompt_that_was_handed_over_is_that_of_one_engine(apart: Apart) -> None:
    """Token by token, streamed; and what was handed over the engine that answers does not publish."""
    prompt, before = apart.fleet.document(BLOCKS * BLOCK_TOKENS + 7), apart.handed()
    published, read = apart.fleet.settled_entries("d"), apart.read()
    answer = apart.client.complete(prompt, max_tokens=24, ignore_eos=True)
    assert apart.handed() == before + 1
    assert apart.read() >= read + BLOCKS * BLOCK_TOKENS
    assert apart.fleet.settled_entries("d") == published
    assert_same(answer, apart.alone(prompt, 24), tolerance=TOLERANCE)


def test_chat_is_handed_over_not_streamed(apart: Apart) -> None:
    """The answer is whole, and is of the engine that answers."""
    before = apart.handed()
    body = {"model": "m", "messages": [{"role": "user", "content": apart.fleet.text(400)}], "max_tokens": 5}
    answer, headers = ask(apart.router.url, "/v1/chat/completions", body)
    assert apart.handed() == before + 1
    assert headers["x-gc-worker"] == "d"
    assert answer["usage"]["completion_tokens"] == 5


def test_prefill_engine_hands_over_what_it_has_pulled(apart: Apart) -> None:
    """The second one pulls from the first; the third reads all of it from the second."""
    fleet, prompt = apart.fleet, apart.fleet.document(BLOCKS * BLOCK_TOKENS + 7)
    fleet.prime("p2", "p1")
    fleet.compute("p1", prompt)
    counters = fleet.counters("p2")
    first = {"model": "m", "prompt": prompt, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}}
    handed, _ = ask(fleet.engines["p2"].url, COMPLETIONS, first)
    answer = fleet.client("d").complete(
        prompt, max_tokens=24, ignore_eos=True, kv_transfer_params=handed["kv_transfer_params"]
    )
    counters.reach("gc_cache_hits_total", BLOCKS)
    assert_same(answer, apart.alone(prompt, 24), tolerance=TOLERANCE)


def test_answers_go_on_without_prefill_engines(apart: Apart) -> None:
    """They end, and the engine that answers computes: the last test, for they do not come back."""
    for name in ("p1", "p2"):
        apart.fleet.engines[name].kill()
    prompt = apart.fleet.document(BLOCKS * BLOCK_TOKENS + 7)
    answer = apart.client.complete(prompt, max_tokens=8, ignore_eos=True)
    assert_same(answer, apart.alone(prompt, 8), tolerance=TOLERANCE)
