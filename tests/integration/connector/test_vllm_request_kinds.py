"""Requests that ask for more than an answer: several samples, beams, log-probabilities of the prompt, embeddings.

Each answer is right, and what can be shared is.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.parallel_sampling import ParentRequest

from ghostcacher_connector.engines.common.pull_state import Phase
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, VOCABULARY, expected_output, tokens_of
from tests.integration.connector.test_vllm_scheduler import settled
from tests.integration.connector.test_vllm_weights import compute, meet

pytestmark = pytest.mark.engine

BLOCKS = 12
PROMPT_TOKENS = BLOCKS * BLOCK_TOKENS + 3


@pytest.fixture
def fleet(make: Make) -> tuple[SimEngine, SimEngine]:
    engines = make("a", blocks=256), make("b", blocks=256)
    meet(*engines)
    return engines


def hits(engine: SimEngine) -> float:
    return engine.counted("gc_cache_hits_total")


def test_samples_of_one_prompt_share_one_pull(fleet: tuple[SimEngine, SimEngine]) -> None:
    """``n``: vLLM makes a request of each sample."""
    a, b = fleet
    compute(a, 1)
    settled(a)
    params = SamplingParams(n=3, max_tokens=4, temperature=1.0)
    made = EngineCoreRequest(
        request_id="r",
        external_req_id="r",
        prompt_token_ids=tokens_of(1, PROMPT_TOKENS),
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    parent = ParentRequest(made)
    names = [parent.get_child_info(number)[0] for number in range(params.n)]
    for name in names:
        b.add(name, tokens_of(1, PROMPT_TOKENS))
    b.run()
    assert hits(b) == BLOCKS
    assert b.wrong == []
    for name in names:
        assert b.outputs(name) == expected_output(tokens_of(1, PROMPT_TOKENS), 4)


def test_beams_pull_what_another_engine_has_of_them(fleet: tuple[SimEngine, SimEngine]) -> None:
    """vLLM computes a beam token by token, each in a request of its own, whose prompt is all there is by then."""
    beams = [tokens_of(1, PROMPT_TOKENS), tokens_of(1, PROMPT_TOKENS - 20)]
    for number in range(24):
        engine = fleet[number % 2]
        for beam, tokens in enumerate(beams):
            engine.add(f"{number}-{beam}", tokens, max_tokens=1)
        engine.run()
        settled(engine)
        for beam, tokens in enumerate(beams):
            assert engine.outputs(f"{number}-{beam}") == expected_output(tokens, 1)
            tokens.append((engine.outputs(f"{number}-{beam}")[0] + beam) % VOCABULARY)
        assert engine.wrong == []
    assert hits(fleet[1]) >= BLOCKS


def test_prompt_whose_log_probabilities_are_wanted_is_computed(fleet: tuple[SimEngine, SimEngine]) -> None:
    """All of it: what is pulled has none. Others get what it computed."""
    a, b = fleet
    compute(a, 1)
    settled(a)
    b.add("r", tokens_of(1, PROMPT_TOKENS), sampling={"prompt_logprobs": 1})
    assert b.connector._scheduler._tracked["r"].phase is Phase.SETTLED, "vLLM 0.30 would take what it is told"
    b.run()
    assert b.outputs("r") == expected_output(tokens_of(1, PROMPT_TOKENS), 4)
    b.add("s", tokens_of(2, PROMPT_TOKENS), sampling={"prompt_logprobs": 1})
    b.run()
    settled(b)
    assert hits(b) == 0
    assert compute(a, 2) == BLOCKS


class Embedded:
    """Has an engine compute requests from embeddings: a step depends on the first number of each."""

    def __init__(self, engine: SimEngine) -> None:
        self.engine = engine
        self._update = engine.rank._update_tables
        engine.rank._update_tables = self._update_tables  # type: ignore[method-assign]

    def compute(self, numbers: list[int], *, dtype: torch.dtype = torch.float32, mixed: bool = False) -> float:
        """Complete a prompt of such embeddings rightly; return how many blocks came from the peer."""
        engine, before, name = self.engine, hits(self.engine), f"e{len(self.engine.requests)}"
        embeddings = torch.tensor([[float(number), 0.5] for number in numbers], dtype=dtype)
        masks: dict[str, Any] = {"prompt_is_token_ids": [False] * len(numbers)} if mixed else {}
        tokens = [0] * len(numbers) if mixed else None
        engine.add(name, tokens, prompt_embeds=embeddings, **masks)  # type: ignore[arg-type]
        engine.run()
        settled(engine)
        assert engine.outputs(name) == expected_output([VOCABULARY + number for number in numbers], 4)
        assert engine.wrong == []
        return hits(engine) - before

    def _update_tables(self, output: SchedulerOutput) -> None:
        self._update(output)
        for new in output.scheduled_new_reqs:
            if new.prompt_embeds is not None:
                seen = [VOCABULARY + int(row[0]) for row in new.prompt_embeds]
                self.engine.rank._running[new.req_id].tokens = seen


def test_embeddings_are_shared_by_their_bytes(fleet: tuple[SimEngine, SimEngine]) -> None:
    """vLLM hashes them. Not where a prompt has tokens, too: which ones is in no hash."""
    a, b = (Embedded(engine) for engine in fleet)
    numbers = tokens_of(1, PROMPT_TOKENS)
    assert a.compute(numbers) == 0
    assert b.compute(numbers) == BLOCKS
    assert b.compute(numbers[:40] + tokens_of(2, PROMPT_TOKENS - 40)) == 0, "its first two blocks are here"
    assert a.compute(numbers[:20] + tokens_of(3, 100), mixed=True) == 0
    assert b.compute(numbers[:20] + tokens_of(3, 100)) == 0
    assert b.compute(tokens_of(4, 100), mixed=True) == 0
    assert a.compute(tokens_of(4, 100), dtype=torch.float16) == 0
