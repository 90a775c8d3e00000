"""What a rank's model holds now, as one digest: tells whether its weights have changed, and whether two ranks' are the
same. Reads the weights once, where they lie, and copies them nowhere.

Each piece of `PIECE_BYTES` becomes two sums over its 64-bit words, each word times a fixed pseudo-random odd number,
modulo 2**64; in the second sum the words begin half a word later, so that what is in the high half of a word, where a
product loses bits, is in the low half of another one. Then a host hash goes over names, types, shapes and sums. This
sees chance, not an attacker: who may change weights may as well name them.

Some kernels keep weights in memory of their own and leave an empty parameter behind (oneDNN on CPUs). What is in there
cannot be read; it cannot be written either, only replaced as a whole, and that is seen.
"""

from __future__ import annotations

import hashlib
import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ghostcacher_connector.engines.common.weight_watch import UNREAD
from ghostcacher_connector.identity.fingerprint import private_value

logger = logging.getLogger(__name__)

PIECE_BYTES = 512 << 10
"""Fits into a processor's second cache together with what is computed from it."""

DEVICE_PIECES = 16
"""Pieces that a GPU sums up at once: some 40 MiB of its memory."""

WORD_BYTES = 8
WORDS = PIECE_BYTES // WORD_BYTES + 1
HALF_WORD = WORD_BYTES // 2
SEED = 0x67686F7374
DIGEST_BYTES = 16


def content_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return a digest of named tensors, in hex: the same for the same content on any machine and device.

    Memory in use: some MiB of host memory, and some 40 MiB of each device that a tensor is on. Raises what torch raises
    for tensors that have no memory.
    """
    readers: dict[torch.device, _HostSums | _DeviceSums] = {}
    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for name, tensor in tensors:
        described = (name, str(tensor.dtype), tuple(tensor.shape), tensor.stride())
        hasher.update(msgspec.msgpack.encode(described))
        if tensor.numel():
            if tensor.device not in readers:
                readers[tensor.device] = _HostSums() if tensor.device.type == "cpu" else _DeviceSums(tensor.device)
            reader = readers[tensor.device]
            hasher.update(reader.of(_pieces(tensor.detach(), reader.piece_bytes)))
    return hasher.hexdigest()


def model_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what a checkpoint decides of a model: its parameters, and the buffers that are saved with it."""
    for name, parameter in model.named_parameters():
        yield from _inner(name, parameter)
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(path, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield from _inner(name, buffer)


class WeightsReader:
    """Reads the weights of one rank again and again."""

    def __init__(self) -> None:
        self._hidden: list[weakref.ref[Callable[..., Any]]] | None = None
        self._hidden_name = "as started"

    def digest(self, model: torch.nn.Module) -> str:
        """Return a digest of the model's weights; `UNREAD` and more where they cannot be read."""
        self._look_at_hidden(model)
        try:
            seen = content_digest(model_tensors(model))
        except Exception:
            logger.exception("the weights cannot be read")
            return UNREAD + private_value()
        return hashlib.blake2b(f"{seen} {self._hidden_name}".encode(), digest_size=DIGEST_BYTES).hexdigest()

    def _look_at_hidden(self, model: torch.nn.Module) -> None:
        """Give what cannot be read another name when it was replaced."""
        now = [weakref.ref(kernel) for kernel in _kernels_with_weights(model)]
        if self._hidden is not None and now != self._hidden:
            self._hidden_name = private_value()
        self._hidden = now


def _kernels_with_weights(model: torch.nn.Module) -> Iterator[Callable[..., Any]]:
    """Yield the functions that modules with an empty parameter compute with: what was in it is in these."""
    for module in model.modules():
        if any(parameter.numel() == 0 for parameter in module.parameters(recurse=False)):
            yield from (value for value in vars(module).values() if callable(value))


def _inner(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that have the bytes: some only wrap others."""
    partitions = getattr(tensor, "partitions", None)
    if isinstance(partitions, dict):
        for index, part in partitions.items():
            yield from _inner(f"{name}.{index}", part)
    elif is_traceable_wrapper_subclass(tensor):
        for part in tensor.__tensor_flatten__()[0]:
            yield from _inner(f"{name}.{part}", getattr(tensor, part))
    else:
        yield name, tensor


class _HostSums:
    """Sums up the pieces of tensors in host memory, by numpy: torch multiplies 64-bit integers one by one."""

    piece_bytes = PIECE_BYTES

    def __init__(self) -> None:
        self._multipliers = _multipliers().view(np.uint64)
        self._words = np.zeros(WORDS, dtype=np.uint64)
        self._products = np.zeros(WORDS, dtype=np.uint64)
        self._bytes = self._words.view(np.uint8)

    def of(self, pieces: Iterable[torch.Tensor]) -> bytes:
        """Return the sums of all pieces, in order. pieces: shape (n,), uint8, n at most `piece_bytes`."""
        return np.array([self._sums(piece.numpy()) for piece in pieces], dtype=np.uint64).tobytes()

    def _sums(self, raw: npt.NDArray[np.uint8]) -> tuple[np.uint64, np.uint64]:
        words = word_count(len(raw))
        self._bytes[: len(raw)] = raw
        self._bytes[len(raw) : words * WORD_BYTES] = 0
        first = self._multiplied(0, words)
        self._bytes[:HALF_WORD] = 0
        self._bytes[HALF_WORD : HALF_WORD + len(raw)] = raw
        return first, self._multiplied(1, words)

    def _multiplied(self, number: int, words: int) -> np.uint64:
        products = self._products[:words]
        np.multiply(self._words[:words], self._multipliers[number, :words], out=products)
        return np.uint64(products.sum())


class _DeviceSums:
    """Sums up the pieces of tensors where they are, many at once. The sums are those of `_HostSums`."""

    piece_bytes = PIECE_BYTES * DEVICE_PIECES

    def __init__(self, device: torch.device) -> None:
        shape = (DEVICE_PIECES, WORDS)
        self._multipliers = torch.from_numpy(_multipliers()).to(device)
        self._words = torch.zeros(shape, dtype=torch.int64, device=device)
        self._products = torch.zeros(shape, dtype=torch.int64, device=device)

    def of(self, pieces: Iterable[torch.Tensor]) -> bytes:
        """Return the sums of all pieces, in order."""
        sums = [self._sums(rows) for piece in pieces for rows in _in_rows(piece)]
        return bytes(torch.cat(sums).cpu().numpy().tobytes())

    def _sums(self, raw: torch.Tensor) -> torch.Tensor:
        """Return the two sums of each row, shape (rows, 2)."""
        rows, row_bytes = raw.shape
        words = word_count(row_bytes)
        sums = []
        for offset, multipliers in zip((0, HALF_WORD), self._multipliers, strict=True):
            into = self._words[:rows].view(torch.uint8)
            into[:, :offset] = 0
            into[:, offset : offset + row_bytes] = raw
            into[:, offset + row_bytes : words * WORD_BYTES] = 0
            products = self._products[:rows, :words]
            torch.mul(self._words[:rows, :words], multipliers[:words], out=products)
            sums.append(products.sum(dim=1))
        return torch.stack(sums, dim=1)


def word_count(piece_bytes: int) -> int:
    """Return how many words a piece takes that begins half a word late."""
    return -(-(HALF_WORD + piece_bytes) // WORD_BYTES)


def _in_rows(piece: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a piece as rows of `PIECE_BYTES`, and then what is left as one shorter row."""
    whole = len(piece) // PIECE_BYTES * PIECE_BYTES
    if whole:
        yield piece[:whole].view(-1, PIECE_BYTES)
    if whole < len(piece):
        yield piece[whole:].view(1, -1)


def _pieces(tensor: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Yield the bytes of a tensor in pieces of at most `size`, in the order in which they lie in memory."""
    if tensor.dim():
        by_stride = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        tensor = tensor.permute(by_stride)
    if tensor.is_contiguous():
        flat = tensor.reshape(-1).view(torch.uint8)
        yield from flat.split(size)
    elif tensor.dim() > 1 and tensor[0].numel() * tensor.element_size() > size:
        for row in tensor:
            yield from _pieces(row, size)
    else:
        row_bytes = tensor[0].numel() * tensor.element_size()
        for rows in tensor.split(max(1, size // row_bytes)):
            yield rows.contiguous().view(-1).view(torch.uint8)


def _multipliers() -> npt.NDArray[np.int64]:
    """Return odd pseudo-random numbers, shape (2, WORDS): the same everywhere and always."""
    raw = np.random.PCG64(SEED).random_raw(2 * WORDS)
    return (raw | np.uint64(1)).view(np.int64).reshape(2, WORDS)
