"""How much each stage does: on a GPU what the goals are about, on a CPU just enough to see that every stage runs."""

from __future__ import annotations

from typing import Literal, NamedTuple

from benchmarks.harness.model_recipe import Size

Device = Literal["cuda", "cpu"]


class Sizes(NamedTuple):
    """Lengths are in tokens, unless their names say otherwise."""

    model: Size
    """The random-weight model that is made on the spot."""
    max_model_len: int
    """The longest prompt and answer."""
    answer_lengths: tuple[int, ...]
    """Prompts whose answers are compared, pulled against computed."""
    ttft_lengths: tuple[int, ...]
    """Prompts whose time to first token is measured."""
    ttft_repeat: int
    """Documents of each of those lengths."""
    decode_streams: int
    """Requests that decode at the same time."""
    decode_tokens: int
    """What each of them generates."""
    pull_length: int
    """Documents that are pulled while others decode, and at the same time."""
    pulls_at_once: int
    """How many are pulled at the same time."""
    torture_blocks: int
    """KV cache of each engine under torture, in blocks of 16 tokens on a GPU, and of 32 on a CPU."""
    torture_length: int
    """Documents of the torture; together they are several times as large as a cache."""
    torture_documents: int
    torture_requests: int
    """Requests to each of the two engines."""
    pull_bytes: int
    """Bytes of each pull between two processes without an engine."""


GPU = Sizes(
    model="large",
    max_model_len=33_024,
    answer_lengths=(17, 500, 2_049, 8_192, 20_000),
    ttft_lengths=(2_048, 8_192, 32_768),
    ttft_repeat=3,
    decode_streams=16,
    decode_tokens=1_024,
    pull_length=8_192,
    pulls_at_once=10,
    torture_blocks=2_200,
    torture_length=6_000,
    torture_documents=16,
    torture_requests=120,
    pull_bytes=604 << 20,
)

CPU = Sizes(
    model="tiny",
    max_model_len=1_100,
    answer_lengths=(33, 300, 700),
    ttft_lengths=(256, 1_024),
    ttft_repeat=1,
    decode_streams=2,
    decode_tokens=96,
    pull_length=512,
    pulls_at_once=3,
    torture_blocks=40,
    torture_length=500,
    torture_documents=6,
    torture_requests=12,
    pull_bytes=8 << 20,
)


GPU_KINDS = GPU._replace(
    model="small",
    max_model_len=8_448,
    answer_lengths=(17, 500, 2_049, 8_000),
    torture_blocks=700,
    torture_length=2_000,
    torture_documents=12,
    torture_requests=80,
)
"""Of stages for one kind of model: a small one, whose engines are ready soon, and a KV cache that the torture fills."""


def sizes_of(device: Device, *, kinds: bool = False) -> Sizes:
    """Return how much stages do. kinds: those for one kind of model each."""
    return CPU if device == "cpu" else GPU_KINDS if kinds else GPU
