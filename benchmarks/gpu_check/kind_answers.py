"""Stages of some kinds of models alone: drafts that are right, and images."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu_check.engines import Pair
from benchmarks.gpu_check.results import Check
from benchmarks.harness.comparison import ROUNDING_MAX
from benchmarks.harness.engine import Engine
from benchmarks.harness.pictures import PicturePrompt, picture
from benchmarks.harness.scenario import (
    block_tokens,
    compute_and_publish,
    nudge,
    published,
    pull_numbers,
    wait_until_published,
)

Found = tuple[list[Check], dict[str, Any]]

DRAFTED_PROMPTS = (3, 8, 15)
"""Prompts whose answers are drafted, in blocks."""
DRAFTED_TOKENS = 48
TEXT_TOKENS = (80, 120)
"""Before and behind an image, about."""
IMAGES = 3


def drafts(pair: Pair) -> Found:
    """Of the drafts on top of a pulled prefix as many are right as on top of the engine's own cache."""
    block = block_tokens(pair.b.client.metrics())
    prompts = [pair.documents.tokens(blocks * block + 1, seed=700 + blocks) for blocks in DRAFTED_PROMPTS]
    for prompt in prompts:
        compute_and_publish(pair.a, prompt, max_tokens=1)

    def accepted(engine: Engine, *, pull: bool) -> float:
        nudge(engine.client)
        before = engine.client.metrics()
        for prompt in prompts:
            engine.client.complete(prompt, max_tokens=DRAFTED_TOKENS, ignore_eos=True, pull=pull)
        nudge(engine.client)
        name = "vllm:spec_decode_num_accepted_tokens_total"
        return engine.client.metrics().sum(name) - before.sum(name)

    before = pair.b.client.metrics()
    pulled, local, owner = (accepted(pair.b, pull=True), accepted(pair.b, pull=False), accepted(pair.a, pull=False))
    tokens = pull_numbers(before, pair.b.client.metrics()).tokens
    wanted = sum(blocks * block - pair.kind.held_back(pair.device) for blocks in DRAFTED_PROMPTS)
    checks = [
        Check("prompts: pulled", f"{tokens}", f"{wanted}", tokens == wanted, "right"),
        Check(
            "right drafts after a pull, on top of the own cache, and the owner's",
            f"{pulled:.0f}, {local:.0f}, {owner:.0f}",
            "equal, > 0",
            pulled == local == owner > 0,
            "right",
        ),
    ]
    return checks, {"pulled": pulled, "local": local, "owner": owner}


def images(pair: Pair) -> Found:
    """Prompts with an image: pulled against the own cache, and against computing it all; another image is another."""
    checks, numbers = [], {}
    block = block_tokens(pair.b.client.metrics())
    for number in range(IMAGES):
        pair.progress(f"images: prompt {number + 1} of {IMAGES}")
        texts = (pair.documents.text(count, seed=800 + 10 * number + place) for place, count in enumerate(TEXT_TOKENS))
        prompt = PicturePrompt(next(texts), picture(number), next(texts))
        before = published(pair.a.client)
        wanted = (prompt.ask(pair.a.client, pull=False).prompt_tokens - 1) // block
        wait_until_published(pair.a, before, wanted)
        nudge(pair.b.client)
        first = pair.b.client.metrics()
        pulled = prompt.ask(pair.b.client)
        nudge(pair.b.client)
        tokens = pull_numbers(first, pair.b.client.metrics()).tokens
        local, alone = prompt.ask(pair.b.client, pull=False), prompt.ask(pair.b.client, pull=False, salt="alone")
        other = prompt._replace(image=picture(IMAGES + number)).ask(pair.b.client)
        off, apart = pulled.off(alone), pulled.off(other)
        checks += [
            Check(f"image {number}: pulled", f"{tokens}", f"{wanted * block}", tokens == wanted * block, "right"),
            Check(f"image {number}: pulled against own cache", f"{pulled.off(local):g}", "0", pulled == local, "right"),
            Check(
                f"image {number}: pulled against computed",
                f"{off:.4f}",
                f"<= {ROUNDING_MAX}",
                off <= ROUNDING_MAX,
                "right",
            ),
            Check(f"image {number}: another image", f"off by {apart:.4f}", "> 0", apart > 0, "right"),
        ]
        numbers[str(number)] = {"pulled": tokens, "cold_off": off, "other_off": apart}
    return checks, numbers
