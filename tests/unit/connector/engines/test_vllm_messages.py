"""Messages between scheduler and ranks, as vLLM sends them from process to process: pickled."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

pytest.importorskip("vllm")

from ghostcacher_connector.engines.vllm.messages import PullOrder, StepMetadata
from ghostcacher_connector.slots import Generations, Slots
from ghostcacher_connector.transfer.jobs import PullSource

EMPTY_STEP_BYTES_MAX = 250
"""Half of what two empty arrays take as numpy pickles them, beside the step itself."""


def metadata(slots: Slots, generations: Generations, pulls: list[PullOrder]) -> StepMetadata:
    return StepMetadata(7, slots, generations, pulls, ["gone"])


def test_step_arrives_as_it_was_sent() -> None:
    """Slots, generations, orders and cancellations survive the way to another process."""
    slots, generations = np.asarray([3, 1], dtype=np.int64), np.asarray([2**63, 5], dtype=np.uint64)
    order = PullOrder("r1", slots, (PullSource("w", b"i", slots, generations),), 5.0)
    sent = metadata(slots, generations, [order])
    found = pickle.loads(pickle.dumps(sent))  # noqa: S301 - as vLLM does, within one engine
    assert isinstance(found, StepMetadata)
    assert (found.step, found.cancelled) == (7, ["gone"])
    assert (found.bumped.dtype, found.generations.dtype) == (np.int64, np.uint64)
    assert found.bumped.tolist() == [3, 1]
    assert found.generations.tolist() == [2**63, 5]
    assert found.pulls[0].request_id == "r1"
    assert found.pulls[0].sources[0].generations.tolist() == [2**63, 5]


def test_step_without_orders_is_small() -> None:
    """Most steps reuse no slot: they must not cost what empty arrays cost."""
    empty = metadata(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64), [])
    packed = pickle.dumps(empty)
    assert len(packed) < EMPTY_STEP_BYTES_MAX
    found = pickle.loads(packed)  # noqa: S301
    assert len(found.bumped) == len(found.generations) == 0
