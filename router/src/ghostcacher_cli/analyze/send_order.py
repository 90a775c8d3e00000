"""The best order in which to send a batch: depth first over the tree of its prompts.

Then all that share a prefix come one after the other, and everything that any cache could save is saved by an LRU cache
that holds the longest shared prefix, since between two requests that share it no other comes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ghostcacher_cli.analyze.stack_distance import HitCurve, hit_curve
from ghostcacher_cli.analyze.traces import Trace
from ghostcacher_connector.core.errors import ConfigError


def depth_first(trace: Trace) -> Sequence[int]:
    """Return the requests in this order; what the file has first comes first wherever the tree lets it.

    Blocks have numbers in the order in which they were first seen. So the order of the tree is that of the numbers, as
    bytes of which the highest comes first.
    """
    return sorted(
        range(trace.requests),
        key=lambda request: np.frombuffer(trace.blocks_of(request), np.uint32).astype(">u4").tobytes(),
    )


def curve_of_order(trace: Trace, order: Sequence[int]) -> HitCurve:
    """Return what LRU caches hit when the requests come in this order."""
    blocks, starts = array("I"), array("Q", [0])
    for request in order:
        blocks.extend(trace.blocks_of(request))
        starts.append(len(blocks))
    return hit_curve(blocks, starts, trace.tokens_of)


def write_in_order(source: Path, target: Path, trace: Trace, order: Sequence[int]) -> None:
    """Write the lines of a file in this order into a new one. Raises ConfigError when that cannot be."""
    try:
        with source.open("rb") as lines, target.open("xb") as out:
            for request in order:
                lines.seek(trace.offsets[request])
                out.write(lines.readline().rstrip(b"\r\n") + b"\n")
    except FileExistsError:
        raise ConfigError(f"--write-order: {target} exists: name a new file") from None
    except OSError as exc:
        raise ConfigError(f"--write-order: {target} cannot be written: {exc.strerror or exc}") from exc
