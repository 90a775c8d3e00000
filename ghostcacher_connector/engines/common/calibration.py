"""Times a matrix product: the start-up calibration of an engine's prefill rate."""

from __future__ import annotations

import time

import torch

ROWS = 256
ROUNDS = 3


def measure_flops(width: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the rate in FLOP/s at which a device multiplies matrices as wide as a model.

    width: the model's hidden size. dtype: the model's.
    """
    left = torch.ones(ROWS, width, dtype=dtype, device=device)
    right = torch.ones(width, width, dtype=dtype, device=device)
    best_s = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        (left @ right).sum().item()  # waits for the device
        best_s = min(best_s, time.perf_counter() - started)
    return 2 * ROWS * width * width / best_s
