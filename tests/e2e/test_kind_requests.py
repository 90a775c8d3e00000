"""Whole engines, and requests that ask for more than an answer: they get what the engine gives without the fleet.

Run by ``make test-kinds`` alone.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness import ensure_model
from benchmarks.harness.model_recipe import recipe
from tests.e2e.fleet import BLOCK_TOKENS, TOLERANCE, Fleet, running

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.environ.get("GHOSTCACHER_KINDS") != "all", reason="run by make test-kinds"),
]

COMPLETIONS = "/v1/completions"
BLOCKS = 6
PLAIN = {"model": "m", "max_tokens": 6, "temperature": 0.0, "logprobs": 1}
ALONE = {"cache_salt": "alone", "kv_transfer_params": {"gc_pull": False}}
MORE: dict[str, dict[str, Any]] = {
    "samples": {"n": 3, "temperature": 1.0, "seed": 7},
    "beams": {"n": 2, "use_beam_search": True},
    "grammar": {"structured_outputs": {"regex": "[a-d]{4,8}"}},
    "log-probabilities of the prompt": {"prompt_logprobs": 0},
}


@pytest.fixture(scope="module")
def fleet(log_dir: Path) -> Iterator[Fleet]:
    options = {"extra_args": ("--enable-prompt-embeds",)}
    with running(ensure_model("tiny"), {"a": options, "b": options}, log_dir=log_dir) as fleet:
        yield fleet


def numbers_in(value: Any) -> list[float]:
    """Return the log-probabilities in a part of an answer, in order."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value] if isinstance(value, float) else [number for each in parts for number in numbers_in(each)]


@pytest.mark.parametrize("kind", MORE)
def test_request_that_asks_for_more_gets_it_when_its_prompt_is_pulled(fleet: Fleet, kind: str) -> None:
    """To the rounding. What wants log-probabilities of its prompt pulls nothing, and a peer pulls what it computed."""
    prompt, more = fleet.document(BLOCKS * BLOCK_TOKENS + 1), MORE[kind]
    pulls = "prompt_logprobs" not in more
    fleet.compute("a", prompt)
    counters = fleet.counters("b")
    answer = fleet.client("b").ask(COMPLETIONS, {**PLAIN, "prompt": prompt, **more})
    assert counters.hits() == (BLOCKS if pulls else 0)
    alone = fleet.client("b").ask(COMPLETIONS, {**PLAIN, "prompt": prompt, **more, **ALONE})
    assert len(answer["choices"]) == more.get("n", 1)
    for choice, expected in zip(answer["choices"], alone["choices"], strict=True):
        assert choice["text"] == expected["text"]
        for name in ("logprobs", "prompt_logprobs"):
            assert numbers_in(choice.get(name)) == pytest.approx(numbers_in(expected.get(name)), abs=TOLERANCE)
    assert bool(numbers_in(answer["choices"][0].get("prompt_logprobs"))) is not pulls


def test_what_a_request_with_prompt_logprobs_computed_is_pulled(fleet: Fleet) -> None:
    """It is served without pulling, and shared with others all the same."""
    prompt, before = fleet.document(BLOCKS * BLOCK_TOKENS + 1), fleet.entries("a")
    fleet.client("a").ask(COMPLETIONS, {**PLAIN, "prompt": prompt, "prompt_logprobs": 0})
    fleet.wait_published("a", before, BLOCKS)
    counters = fleet.counters("b")
    answer = fleet.client("b").complete(prompt, max_tokens=8)
    assert counters.hits() == BLOCKS
    fleet.assert_right("b", answer, prompt)


def test_embeddings_are_shared(fleet: Fleet) -> None:
    """A prompt that is given as embeddings, by their content: others are not pulled."""

    def body(seed: int) -> dict[str, Any]:
        generator, file = torch.Generator().manual_seed(seed), io.BytesIO()
        hidden = recipe("tiny").hidden
        torch.save(torch.randn(BLOCKS * BLOCK_TOKENS + 1, hidden, generator=generator), file)
        return {**PLAIN, "prompt_embeds": base64.b64encode(file.getvalue()).decode()}

    before = fleet.entries("a")
    computed = fleet.client("a").ask(COMPLETIONS, body(1))
    fleet.wait_published("a", before, BLOCKS)
    for seed, hits in ((1, BLOCKS), (2, 0)):
        counters = fleet.counters("b")
        answer = fleet.client("b").ask(COMPLETIONS, body(seed))
        assert counters.hits() == hits
        equal = numbers_in(answer["choices"]) == pytest.approx(numbers_in(computed["choices"]), abs=TOLERANCE)
        assert equal is (seed == 1)
