"""Whole engines with images: what a peer computed of a prompt with images gives the answer of the engine's own cache.

Run by ``make test-kinds`` alone.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.harness import ensure_model, run_concurrently
from benchmarks.harness.model_vision import IMAGE_TOKENS
from benchmarks.harness.pictures import PictureAnswer, PicturePrompt, picture
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
BEFORE, BEHIND = 80, 120
"""Tokens of text before and behind an image: about, since they are told in text."""


def blocks_of(answer: PictureAnswer) -> int:
    """Return how many whole blocks of a prompt can be pulled."""
    return (answer.prompt_tokens - 1) // BLOCK_TOKENS


def computed_by(fleet: Fleet, name: str, question: PicturePrompt) -> PictureAnswer:
    """Ask an engine to which a prompt is new, and return once the index holds all that can be shared."""
    before = fleet.entries(name)
    answer = question.ask(fleet.client(name), pull=False)
    fleet.wait_published(name, before, blocks_of(answer))
    return answer


@pytest.fixture(scope="module")
def fleet(log_dir: Path) -> Iterator[Fleet]:
    options = {"num_blocks": BLOCKS, "max_model_len": 28 * BLOCK_TOKENS, "env": ENV}
    model = ensure_model("tiny", kind="images")
    with running(model, {"a": options, "b": options}, log_dir=log_dir) as fleet:
        yield fleet


def test_pulled_images_give_the_answer_of_the_engine_s_own_cache(fleet: Fleet) -> None:
    """To the last bit; another image at the same place shares what is before it, and is answered otherwise."""
    question = PicturePrompt(fleet.text(BEFORE), picture(1), fleet.text(BEHIND))
    computed = computed_by(fleet, "a", question)
    counters = fleet.counters("b")

    pulled = question.ask(fleet.client("b"))

    assert computed.prompt_tokens > IMAGE_TOKENS
    assert counters.hits() == blocks_of(computed)
    assert pulled == question.ask(fleet.client("b"), pull=False)
    assert pulled.off(question.ask(fleet.client("b"), pull=False, salt="alone")) <= TOLERANCE
    counters = fleet.counters("b")
    others = [question._replace(image=picture(seed)) for seed in (2, 3, 4)]
    answers = [other.ask(fleet.client("b")) for other in others]
    assert max(answer.off(computed) for answer in answers) > 2 * TOLERANCE
    assert counters.hits() == 0, "b has what is before the image, and nobody the rest"
    for other, answer in zip(others, answers, strict=True):
        assert answer.off(other.ask(fleet.client("b"), pull=False, salt="alone")) <= TOLERANCE


def test_image_that_a_client_names_is_shared_up_to_it(fleet: Fleet) -> None:
    """Two images of one name are two: each engine answers by the one that it was sent."""
    first = PicturePrompt(fleet.text(BEFORE), picture(5), fleet.text(BEHIND), called="logo")
    second = first._replace(image=picture(6))
    before = fleet.entries("a")
    first.ask(fleet.client("a"), pull=False)
    fleet.wait_published("a", before, 1)
    counters = fleet.counters("b")
    answer = second.ask(fleet.client("b"))
    assert counters.hits() <= (BEFORE + BLOCK_TOKENS) // BLOCK_TOKENS
    assert answer.off(second._replace(called=None).ask(fleet.client("b"), pull=False, salt="alone")) <= TOLERANCE


def test_slots_reused_all_the_time_give_no_wrong_answer(fleet: Fleet) -> None:
    """Requests from both sides over more images than fit: blocks are pulled, and none of them is wrong."""
    texts = [(fleet.text(BEFORE), fleet.text(BEHIND)) for _ in range(3)]
    questions = [PicturePrompt(before, picture(10 + n), behind) for n in range(8) for before, behind in texts]
    expected = [each.ask(fleet.client("a"), pull=False, salt=f"alone-{n}") for n, each in enumerate(questions)]
    counters = {name: fleet.counters(name) for name in "ab"}
    rng = random.Random(20)
    work = [(rng.choice("ab"), rng.randrange(len(questions))) for _ in range(REQUESTS)]

    def ask(item: tuple[str, int]) -> float:
        name, number = item
        return questions[number].ask(fleet.client(name)).off(expected[number])

    off = max(run_concurrently(ask, work, concurrency=6))

    until(lambda: all(fleet.client(name).metrics().sum("vllm:num_requests_running") == 0 for name in "ab"), "rest")
    hits = sum(each.hits() for each in counters.values())
    print(f"hits {hits:.0f} blocks, answers off by at most {off:g}")
    assert off <= TOLERANCE
    assert hits > REQUESTS / 4
