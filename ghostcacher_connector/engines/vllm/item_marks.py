"""Marks the requests whose images and other items are hashed by their content alone. Runs where requests are prepared.

vLLM calls an item by the hash of its content, unless the client gives it a UUID or an image carries one: then that
names it, in the block hashes, too, and two workers may have different items under one name. The scheduler only sees the
name. So the process that hashes an item, vLLM's API server as a rule, tells it in the request's ``extra_args``, which a
client cannot do: what he puts there under the mark's name is taken out. What reaches the scheduler in any other way has
no mark and is not shared.

Names that a client chose and that look like a hash of content get a prefix. vLLM's own caches of processed items and of
their embeddings would otherwise give one item for the other, and what is computed with it would be published.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from ghostcacher_connector.engines.vllm.nesting import uses_us

MARK = "gc_items_by_content"
"""The key of the mark in a request's ``extra_args``."""

CHOSEN = "uuid:"
"""Before a name that a client chose and that could be taken for a hash."""

_HASH = re.compile(r"(?:[0-9a-f]{64}|[0-9a-f]{128})")
"""What each of vLLM's algorithms for items yields."""

_DATA = (bytes, memoryview, int, float)


class ContentHash(str):
    """A hash of an item's content. It goes from where it is made to where the request is made, in one process."""

    __slots__ = ()


def mark_items() -> None:
    """Have requests marked for our connector from now on. Changes nothing for others; may be called more than once.

    Raises ImportError or AttributeError for a vLLM that is built otherwise, and changes nothing then.
    """
    from vllm.multimodal.processing.inputs import ProcessorInputs  # noqa: PLC0415 - vLLM is optional
    from vllm.v1.engine.input_processor import InputProcessor  # noqa: PLC0415

    _is_content(None)  # else a request would be the first to find out what is not there
    begin = InputProcessor.__init__
    if begin.__module__ == __name__:
        return

    @functools.wraps(begin)
    def begin_marking(processor: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        begin(processor, vllm_config, *args, **kwargs)
        if uses_us(vllm_config.kv_transfer_config):
            processor.process_inputs = marking(processor.process_inputs)
            if ProcessorInputs.get_mm_hashes.__module__ != __name__:
                ProcessorInputs.get_mm_hashes = telling(ProcessorInputs.get_mm_hashes)

    begin_marking.__module__ = __name__  # by which it is known again
    InputProcessor.__init__ = begin_marking


def marking(process: Callable[..., Any]) -> Callable[..., Any]:
    """Return vLLM's ``InputProcessor.process_inputs``, which makes the engine's request, with the mark put on it."""

    @functools.wraps(process)
    def process_inputs(*args: Any, **kwargs: Any) -> Any:
        request = process(*args, **kwargs)
        if request.mm_features and (params := request.sampling_params) is not None:
            by_content = all(isinstance(feature.mm_hash, ContentHash) for feature in request.mm_features)
            for feature in request.mm_features:  # plain texts travel to the engine
                feature.mm_hash, feature.identifier = str(feature.mm_hash), str(feature.identifier)
            extra = {key: value for key, value in (params.extra_args or {}).items() if key != MARK}
            params.extra_args = extra | ({MARK: True} if by_content else {}) or None
        return request

    return process_inputs


def telling(hash_items: Callable[..., Any]) -> Callable[..., Any]:
    """Return vLLM's ``ProcessorInputs.get_mm_hashes`` with those hashes told apart that are of content alone."""

    @functools.wraps(hash_items)
    def get_mm_hashes(inputs: Any, *args: Any, **kwargs: Any) -> dict[str, list[str]]:
        chosen = {kind: list(names) for kind, names in (inputs.mm_uuid_items or {}).items()}
        names = {kind: [_escaped(name) for name in given] for kind, given in chosen.items()}
        found = hash_items(dataclasses.replace(inputs, mm_uuid_items=names), *args, **kwargs)
        return {
            kind: [
                ContentHash(name) if unnamed and _is_content(item) else name
                for name, item, unnamed in zip(
                    hashes,
                    inputs.mm_data_items[kind].get_all_items_for_hash(),
                    [given is None for given in chosen.get(kind, [None] * len(hashes))],
                    strict=True,
                )
            ]
            for kind, hashes in found.items()
        }

    get_mm_hashes.__module__ = __name__
    return get_mm_hashes


def _escaped(name: Any) -> Any:
    return CHOSEN + name if isinstance(name, str) and _HASH.fullmatch(name) else name


def _is_content(item: Any) -> bool:
    """Say whether vLLM hashes an item by what is in it: all of it, and nothing that only names it.

    A text may be a path or a URL, and what vLLM does not know is pickled, which may keep no more than a path either.
    """
    import numpy as np  # noqa: PLC0415 - as vLLM
    import torch  # noqa: PLC0415
    from PIL.Image import Image  # noqa: PLC0415
    from vllm.multimodal.media import MediaWithBytes  # noqa: PLC0415

    if isinstance(item, MediaWithBytes):
        item = item.media
    if isinstance(item, Image):
        return not _carries_name(item)
    if isinstance(item, list | tuple):
        return all(_is_content(each) for each in item)
    if isinstance(item, Mapping):
        return all(isinstance(each, str) or _is_content(each) for each in item.values())
    return item is None or isinstance(item, (*_DATA, np.ndarray, torch.Tensor))


def _carries_name(image: Any) -> bool:
    """Say whether an image has a UUID in its EXIF data, by which vLLM calls it then."""
    from PIL.ExifTags import Base  # noqa: PLC0415

    try:
        return isinstance(image.getexif().get(Base.ImageID), uuid.UUID)
    except Exception:  # malformed EXIF data is none, as for vLLM
        return False
