"""Images in the fleet: shared where vLLM names them by their content, and never where a client names them.

vLLM's own hashes, requests, messages and scheduler; only the forward pass is ours, and it depends on the images.
"""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

pytest.importorskip("vllm")

import torch
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing.inputs import ProcessorInputs
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from ghostcacher_connector.engines.vllm.item_marks import CHOSEN, MARK, ContentHash, marking, telling
from tests.integration.connector.conftest import Make
from tests.integration.connector.enginesim import SimEngine
from tests.integration.connector.prefix_numbers import BLOCK_TOKENS, expected_output, tokens_of
from tests.integration.connector.simitems import SimItems, image
from tests.integration.connector.test_vllm_scheduler import settled
from tests.integration.connector.test_vllm_weights import meet

pytestmark = pytest.mark.engine

BLOCKS = 10
FIRST = 3 * BLOCK_TOKENS + 5
"""Where the image begins: three blocks lie before it."""
LENGTH = 3 * BLOCK_TOKENS
OUTPUT_TOKENS = 3
MARKED = {"extra_args": {MARK: True}}
NAME = "ab" * 32


class Bench:
    """Two engines that take images."""

    def __init__(self, make: Make) -> None:
        self.engines = [make(name, blocks=256) for name in "ab"]
        meet(*self.engines)
        self.items = {engine.name: SimItems(engine) for engine in self.engines}

    def compute(self, name: str, content: int, *, called: str = NAME, sampling: Any = MARKED, seed: int = 1) -> float:
        """Complete a prompt with an image rightly; return how many blocks came from the peer."""
        engine: SimEngine = self.engines["ab".index(name)]
        request_id, tokens = f"r{len(engine.requests)}", tokens_of(seed, BLOCKS * BLOCK_TOKENS + 3)
        before = engine.counted("gc_cache_hits_total")
        features = [image(called, FIRST, LENGTH)]
        self.items[name].add(request_id, tokens, features, content, max_tokens=OUTPUT_TOKENS, sampling=sampling)
        engine.run()
        settled(engine)
        seen = self.items[name].seen(request_id, tokens)
        assert engine.outputs(request_id) == expected_output(seen, OUTPUT_TOKENS)
        assert engine.wrong == []
        return engine.counted("gc_cache_hits_total") - before


@pytest.fixture
def bench(make: Make) -> Bench:
    return Bench(make)


def test_image_that_is_called_by_its_content_is_shared(bench: Bench) -> None:
    """All blocks of its prompt; another image is not met behind the text that both prompts begin with."""
    bench.compute("a", 7)
    assert bench.compute("b", 7) == BLOCKS
    assert bench.compute("b", 8, called="cd" * 32) == 0, "its first blocks are here by now"
    assert bench.compute("a", 8, called="cd" * 32) == BLOCKS - 3


@pytest.mark.parametrize("owner", [None, MARKED])
@pytest.mark.parametrize("reader", [None, MARKED])
def test_image_that_a_client_names_is_not_shared(bench: Bench, owner: Any, reader: Any) -> None:
    """Nor is one met that is called so, by whomever; the text before it is shared."""
    if owner == reader == MARKED:
        pytest.skip("one name and two contents, both by content: there is no such thing")
    bench.compute("a", 7, sampling=owner)
    assert bench.compute("b", 8, sampling=reader) == 3


def test_name_that_a_client_used_is_not_shared_here_any_more(bench: Bench) -> None:
    """vLLM's own caches may hold the client's image under it, for the engine's life; elsewhere it is shared."""
    bench.compute("a", 7, sampling=None)
    bench.compute("a", 7, seed=2)
    assert bench.compute("b", 7, seed=2) == 3
    assert bench.compute("a", 7, seed=3) == 0
    bench.compute("b", 7, seed=4)
    assert bench.compute("a", 7, seed=4) == 3


def test_request_that_waits_while_a_client_uses_its_images_name_is_not_shared(bench: Bench) -> None:
    """Its image may be computed after the client's."""
    a = bench.engines[0]
    tokens = tokens_of(1, BLOCKS * BLOCK_TOKENS + 3)
    bench.items["a"].add("marked", tokens, [image(NAME, FIRST, LENGTH)], 7, sampling=MARKED)
    bench.items["a"].add("client", tokens_of(2, 200), [image(NAME, 0, LENGTH)], 8)
    a.run()
    settled(a)
    assert bench.compute("b", 7) == 0


def test_blocks_that_a_client_named_prove_nothing(bench: Bench) -> None:
    """What is computed on top of them, in vLLM's own cache, may be another image's."""
    a = bench.engines[0]
    bench.compute("a", 7, sampling=None)
    a.connector._scheduler._items._unmarked.clear()  # as if its name had come by another way
    bench.compute("a", 7)
    assert bench.compute("b", 7) == 3


# -- where requests are made -------------------------------------------------------------------------------------------


def picture(shade: int) -> Image.Image:
    return Image.fromarray(np.full((4, 4, 3), shade, dtype=np.uint8))


def with_bytes(shade: int) -> MediaWithBytes[Image.Image]:
    file = io.BytesIO()
    picture(shade).save(file, "PNG")
    return MediaWithBytes(picture(shade), file.getvalue())


def hashes(given: list[Any], names: list[Any] | None = None, **options: Any) -> list[str]:
    """Return what vLLM calls images, in a process that marks."""
    items = MultiModalDataItems({"image": MultiModalDataParser()._parse_image_data(given)})
    inputs = ProcessorInputs([1], items, {"image": names} if names else None, **options)
    found = telling(ProcessorInputs.get_mm_hashes)(inputs, "model", "sha256")["image"]
    plain = ProcessorInputs.get_mm_hashes(inputs, "model", "sha256")["image"]
    assert [one for one in found if not one.startswith(CHOSEN)] == [one for one in plain if one in found]
    return found


def told(found: list[str]) -> list[bool]:
    return [isinstance(name, ContentHash) for name in found]


@pytest.mark.parametrize(
    "item",
    [picture(1), with_bytes(1), np.zeros((3, 4, 4)), torch.zeros(3, 4, 4)],
    ids=["image", "with its bytes", "array", "tensor"],
)
def test_hash_of_content_is_told(item: Any) -> None:
    """An image in any form in which vLLM takes it, with and without options of the processor."""
    assert told(hashes([item])) == [True]
    assert told(hashes([item], hf_processor_mm_kwargs={"size": 3})) == [True]


def test_name_that_a_client_chose_is_not_told() -> None:
    """With options vLLM hashes the name: that is no hash of content either."""
    found = hashes([picture(1), picture(2)], ["mine", None])
    assert (found[0], told(found)) == ("mine", [False, True])
    assert told(hashes([picture(1), picture(2)], ["mine", None], hf_processor_mm_kwargs={"size": 3})) == [False, True]


def test_name_like_a_hash_of_content_is_another_one() -> None:
    """Else vLLM's caches would give the client's image to whoever sends the one with that hash."""
    content = hashes([picture(1)])[0]
    chosen = hashes([picture(2)], [str(content)])[0]
    assert chosen != content
    assert told([chosen]) == [False]


def test_image_that_says_what_it_is_called_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in it: vLLM takes the id in its EXIF data for its content."""
    import uuid

    exif = Image.Exif()
    exif[ExifTags.Base.ImageID] = uuid.UUID(int=5)
    named = picture(1)
    monkeypatch.setattr(Image.Image, "getexif", lambda _: exif)
    assert MultiModalHasher.hash_kwargs("sha256", image=named) == MultiModalHasher.hash_kwargs(
        "sha256", image=uuid.UUID(int=5).bytes
    ), "vLLM no longer does that"
    assert told(hashes([named])) == [False]


def engine_request(found: list[str], extra_args: dict[str, Any] | None = None) -> EngineCoreRequest:
    """Return the request that reaches the engine, through vLLM's own messages. found: what its images are called."""
    made = EngineCoreRequest(
        request_id="r",
        prompt_token_ids=[1, 2, 3],
        mm_features=[image(name, 0, 2) for name in found],
        sampling_params=SamplingParams(extra_args=extra_args),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    sent = MsgpackEncoder().encode(marking(lambda: made)())
    arrived: EngineCoreRequest = MsgpackDecoder(EngineCoreRequest).decode(sent)
    assert arrived.mm_features is not None
    assert [feature.identifier for feature in arrived.mm_features] == found
    return arrived


@pytest.mark.parametrize(
    ("names", "marked"), [([None], True), (["mine"], False), ([None, "mine"], False), ([None, None], True)]
)
def test_request_is_marked_when_all_its_images_are_called_by_content(names: list[Any], marked: bool) -> None:
    """A client that sends the mark himself gets it taken out; his other arguments stay."""
    found = hashes([picture(shade) for shade in range(len(names))], names)
    for extra in (None, {"own": 1, MARK: True}):
        arrived = engine_request(found, extra)
        assert arrived.sampling_params is not None
        assert (arrived.sampling_params.extra_args or {}).get(MARK) is (True if marked else None)
        assert (arrived.sampling_params.extra_args or {}).get("own") == (1 if extra else None)


def test_only_engines_with_our_connector_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of vLLM loads the plugin: for all others nothing changes."""
    from vllm.v1.engine.input_processor import InputProcessor

    from ghostcacher_connector.engines.vllm import item_marks

    def begin(processor: Any, *_: Any) -> None:
        processor.process_inputs = "vLLM's"

    monkeypatch.setattr(InputProcessor, "__init__", begin)
    monkeypatch.setattr(ProcessorInputs, "get_mm_hashes", ProcessorInputs.get_mm_hashes)
    monkeypatch.setattr(item_marks, "marking", lambda _: "ours")
    item_marks.mark_items()
    item_marks.mark_items()
    for connector, expected in (("NixlConnector", "vLLM's"), (None, "vLLM's"), ("GhostCacherConnector", "ours")):
        transfer = SimpleNamespace(kv_connector=connector) if connector else None
        processor = InputProcessor(SimpleNamespace(kv_transfer_config=transfer))  # type: ignore[arg-type]
        assert processor.process_inputs == expected
        assert (ProcessorInputs.get_mm_hashes.__module__ == item_marks.__name__) is (expected == "ours")
