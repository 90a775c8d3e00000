"""Prompts with an image in the midst of text, and images of random colours."""

from __future__ import annotations

import base64
import io
from typing import Any, NamedTuple

from benchmarks.harness.client import Client
from benchmarks.harness.model_vision import IMAGE_PIXELS

ANSWER_TOKENS = 6


class PictureAnswer(NamedTuple):
    """What came back."""

    logprobs: tuple[float, ...]
    """Of the chosen tokens, natural logarithm."""
    tokens: tuple[str, ...]
    prompt_tokens: int

    def off(self, other: PictureAnswer) -> float:
        """Return the largest distance of a log-probability up to the first token that differs."""
        pairs = list(zip(self.tokens, other.tokens, strict=True))
        agreed = next((index for index, (one, two) in enumerate(pairs) if one != two), len(pairs))
        pairs_of = zip(self.logprobs[: agreed + 1], other.logprobs[: agreed + 1], strict=True)
        return max(abs(one - two) for one, two in pairs_of)


class PicturePrompt(NamedTuple):
    """Text, an image, and text."""

    before: str
    image: str
    """A URL with the image in it."""
    behind: str
    called: str | None = None
    """What the client calls the image."""

    def ask(self, client: Client, *, pull: bool = True, salt: str | None = None) -> PictureAnswer:
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
        answer = client.chat(
            messages,
            max_tokens=ANSWER_TOKENS,
            logprobs=True,
            ignore_eos=True,
            kv_transfer_params={"gc_pull": pull},
            **more,
        )
        chosen = answer["choices"][0]["logprobs"]["content"]
        return PictureAnswer(
            tuple(each["logprob"] for each in chosen),
            tuple(each["token"] for each in chosen),
            answer["usage"]["prompt_tokens"],
        )


def picture(seed: int) -> str:
    """Return an image of coarse random colours as a URL."""
    import torch  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    numbers = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(numbers.numpy()).resize((IMAGE_PIXELS, IMAGE_PIXELS), Image.Resampling.NEAREST).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
