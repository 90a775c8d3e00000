"""How the ranks of one engine agree. Each runs the whole scheduler in lock-step, so all come here together.

SGLang sends each request to every rank, and every rank makes the same decisions from the same state: its trees and
page allocators are equal, page by page. What a rank learns by itself (how its share of a pull ended) must be agreed on
before it may change any of that.

All methods are called on the scheduler's thread, by all ranks in the same order: a rank that left one out would hang
the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class RankGroup:
    """The tensor-parallel ranks of one engine.

    size: how many there are.
    rank: number of this one.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        """group: SGLang's group for CPU tensors; None when there is one rank."""
        self._group = group
        self.size: int = 1 if group is None else dist.get_world_size(group=group)
        self.rank: int = 0 if self.size == 1 else dist.get_rank(group=group)

    def __repr__(self) -> str:
        return f"RankGroup({self.rank} of {self.size})"

    def least(self, value: int) -> int:
        """Return the smallest of all ranks' values."""
        return self.least_of([value])[0]

    def least_of(self, values: Sequence[int]) -> list[int]:
        """Return the smallest of all ranks' values at each place. Every rank gives as many."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN, group=self._group)
        return [int(value) for value in tensor.tolist()]

    def gather(self, payload: bytes) -> list[bytes]:
        """Return all ranks' payloads, in rank order."""
        if self.size == 1:
            return [payload]
        lengths = self._all(torch.tensor([len(payload)], dtype=torch.int64))
        room = torch.zeros(max(int(length) for length in lengths), dtype=torch.uint8)
        if payload:
            room[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        return [part[: int(length)].numpy().tobytes() for part, length in zip(self._all(room), lengths, strict=True)]

    def _all(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor, group=self._group)
        return parts
