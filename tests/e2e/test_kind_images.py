"""Whole engines with images: what a peer computed of a prompt with images gives the answer of the engine's own cache.

Run by ``make test-kinds`` alone.
"""

from __future__ import annotations

import base64
import io
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

from benchmarks.harness import ensure_model, run_concurrently
from benchmarks.harness.model_vision import IMAGE_PIXELS, IMAGE_TOKENS
from tests.conftest import SOAK
from tests.e2e.fleet import BLOCK_TOKENS, TOLERANCE, Fleet, running, until

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.environ.get("GHOSTCACHER_KINDS") != "all", reason="run by make test-kinds"),
]

ROOT = Path(__file__).parents[2]
ENV = {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests/support/llava_cpu"), str(ROOT)])}
BLOCKS = 60
REQUESTS = 4000 if SOAK else 120
ANSWER_TOKENS = 6
BEFORE, BEHIND = 80, 120
"""Tokens of text before and behind an image: about, since they are told in text."""


class Answer(NamedTuple):
    """What came back."""

    logprobs: tuple[float, ...]
    """Of the chosen tokens, natural logarithm."""
    tokens: tuple[str, ...]
    prompt_tokens: int

    @property
    def blocks(self) -> int:
        """How many whole blocks of its prompt can be pulled."""
        return (self.prompt_tokens - 1) // BLOCK_TOKENS

    def off(self, other: Answer) -> float:
        """Return the largest distance of a log-probability up to the first token that differs."""
        pairs = list(zip(self.tokens, other.tokens, strict=True))
        agreed = next((index for index, (one, two) in enumerate(pairs) if one != two), len(pairs))
        pairs_of = zip(self.logprobs[: agreed + 1], other.logprobs[: agreed + 1], strict=True)
        return max(abs(one - two) for one, two in pairs_of)


class Question(NamedTuple):
    """A prompt: text, an image, and text."""

    before: str
    image: str
    """A URL with the image in it."""
    behind: str
    called: str | None = None
    """What the client calls the image."""

    def asked_of(self, fleet: Fleet, name: str, *, pull: bool = True, salt: str | None = None) -> Answer:
        """Ask an engine."""
        item: dict[str, Any] = {"type": "image_url", "image_url": {"url": self.image}}
        if self.called is not None:
            item["uuid"] = self.called
        # In a message of its own: the template of this model puts images in front of their message.
        messages = [
            {"role": "system", "content": self.before},
            {"role": "user", "content": [item, {"type": "text", "text": self.behind}]},
        ]
        more: dict[str, Any] = {} if salt is None else {"cache_salt": salt}
        answer = fleet.client(name).chat(
            messages,
            max_tokens=ANSWER_TOKENS,
            logprobs=True,
            ignore_eos=True,
            kv_transfer_params={"gc_pull": pull},
            **more,
        )
        chosen = answer["choices"][0]["logprobs"]["content"]
        return Answer(
            tuple(each["logprob"] for each in chosen),
            tuple(each["token"] for each in chosen),
            answer["usage"]["prompt_tokens"],
        )

    def computed_by(self, fleet: Fleet, name: str) -> Answer:
        """Ask an engine to which it is new, and return once the index holds all that can be shared."""
        before = fleet.entries(name)
        answer = self.asked_of(fleet, name, pull=False)
        if self.called is None:
            fleet.wait_published(name, before, answer.blocks)
        return answer


@pytest.fixture(scope="module")
def fleet(log_dir: Path) -> Iterator[Fleet]:
    options = {"num_blocks": BLOCKS, "max_model_len": 28 * BLOCK_TOKENS, "env": ENV}
    model = ensure_model("tiny", kind="images")
    with running(model, {"a": options, "b": options}, log_dir=log_dir) as fleet:
        yield fleet


def picture(seed: int) -> str:
    """Return an image of coarse random colours as a URL."""
    numbers = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(numbers.numpy()).resize((IMAGE_PIXELS, IMAGE_PIXELS), Image.Resampling.NEAREST).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_pulled_images_give_the_answer_of_the_engine_s_own_cache(fleet: Fleet) -> None:
    """To the last bit; another image at the same place shares what is before it, and is answered otherwise."""
    question = Question(fleet.text(BEFORE), picture(1), fleet.text(BEHIND))
    computed = question.computed_by(fleet, "a")
    counters = fleet.counters("b")

    pulled = question.asked_of(fleet, "b")

    assert computed.prompt_tokens > IMAGE_TOKENS
    assert counters.hits() == computed.blocks
    assert pulled == question.asked_of(fleet, "b", pull=False)
    assert pulled.off(question.asked_of(fleet, "b", pull=False, salt="alone")) <= TOLERANCE
    counters = fleet.counters("b")
    others = [question._replace(image=picture(seed)) for seed in (2, 3, 4)]
    answers = [other.asked_of(fleet, "b") for other in others]
    assert max(answer.off(computed) for answer in answers) > 2 * TOLERANCE
    assert counters.hits() == 0, "b has what is before the image, and nobody the rest"
    for other, answer in zip(others, answers, strict=True):
        assert answer.off(other.asked_of(fleet, "b", pull=False, salt="alone")) <= TOLERANCE


def test_image_that_a_client_names_is_shared_up_to_it(fleet: Fleet) -> None:
    """Two images of one name are two: each engine answers by the one that it was sent."""
    first = Question(fleet.text(BEFORE), picture(5), fleet.text(BEHIND), called="logo")
    second = first._replace(image=picture(6))
    before = fleet.entries("a")
    first.asked_of(fleet, "a", pull=False)
    fleet.wait_published("a", before, 1)
    counters = fleet.counters("b")
    answer = second.asked_of(fleet, "b")
    assert counters.hits() <= (BEFORE + BLOCK_TOKENS) // BLOCK_TOKENS
    assert answer.off(second._replace(called=None).asked_of(fleet, "b", pull=False, salt="alone")) <= TOLERANCE


def test_slots_reused_all_the_time_give_no_wrong_answer(fleet: Fleet) -> None:
    """Requests from both sides over more images than fit: blocks are pulled, and none of them is wrong."""
    texts = [(fleet.text(BEFORE), fleet.text(BEHIND)) for _ in range(3)]
    questions = [Question(before, picture(10 + n), behind) for n in range(8) for before, behind in texts]
    expected = [each.asked_of(fleet, "a", pull=False, salt=f"alone-{n}") for n, each in enumerate(questions)]
    counters = {name: fleet.counters(name) for name in "ab"}
    rng = random.Random(20)
    work = [(rng.choice("ab"), rng.randrange(len(questions))) for _ in range(REQUESTS)]

    def ask(item: tuple[str, int]) -> float:
        name, number = item
        return questions[number].asked_of(fleet, name).off(expected[number])

    off = max(run_concurrently(ask, work, concurrency=6))

    until(lambda: all(fleet.client(name).metrics().sum("vllm:num_requests_running") == 0 for name in "ab"), "rest")
    hits = sum(each.hits() for each in counters.values())
    print(f"hits {hits:.0f} blocks, answers off by at most {off:g}")
    assert off <= TOLERANCE
    assert hits > REQUESTS / 4
