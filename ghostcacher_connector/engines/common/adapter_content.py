"""How KV that a LoRA adapter computed is named in the fleet: by the adapter's content, whatever it is called.

An adapter's digest is cryptographic: who may upload one must not be able to make one that passes for another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import msgspec
import torch

from ghostcacher_connector.core.types import BlockHash

ADAPTER_DIGEST_BYTES = 32


def adapted(digest: bytes, block: BlockHash) -> BlockHash:
    """Return what a block is called in the fleet that an adapter of this digest computed.

    block: the engine's hash of it without an adapter.
    """
    # As long as the engine's own, so that the index sees nothing of it.
    return hashlib.sha256(b"adapter" + digest + block).digest()[: len(block)]


def content_digest(value: Any) -> bytes:
    """Return the digest of tensors, numbers and texts, in dictionaries and lists. About 1 s for 1 GiB.

    Raises TypeError for what has no content that could be read.
    """
    hasher = hashlib.blake2b(digest_size=ADAPTER_DIGEST_BYTES)
    for piece in _pieces(value):
        hasher.update(piece)
    return hasher.digest()


def _pieces(value: Any) -> Iterator[Any]:
    """Yield what is to be hashed of a value, so that different values never give the same bytes."""
    if isinstance(value, torch.Tensor):
        yield msgspec.msgpack.encode(("tensor", str(value.dtype), tuple(value.shape)))
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif isinstance(value, dict):
        yield msgspec.msgpack.encode(("dict", len(value)))
        for name in sorted(value):
            yield msgspec.msgpack.encode(name)
            yield from _pieces(value[name])
    elif isinstance(value, list | tuple):
        yield msgspec.msgpack.encode(("list", len(value)))
        for each in value:
            yield from _pieces(each)
    elif value is None or isinstance(value, str | int | float | bool):
        yield msgspec.msgpack.encode(("value", value))
    else:
        raise TypeError(f"adapter: expected tensors, numbers and texts, found {type(value).__name__}")
