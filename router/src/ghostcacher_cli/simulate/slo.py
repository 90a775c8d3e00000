"""How many workers a load needs so that it is served as fast as is wanted.

A fleet that is larger serves no slower: that is taken for granted, so sizes are doubled until one is enough, and then
the least one is found by halving. Every size that is tried is a run of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ghostcacher_cli.simulate.results import PERCENTS, Percentiles, RunFound
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_simulator.replay.replay import Ending

_GOAL = re.compile(r"(ttft|itl)-p([0-9]+)=([0-9.e+-]+)")
EXPECTED = f"ttft-pN=S or itl-pN=S with N of {', '.join(map(str, PERCENTS))} and seconds above 0, such as ttft-p90=0.5"
PASSED_OVER = {Ending.ANSWERED.value, Ending.TOO_LONG.value}
"""Endings that no fleet could better."""


class Goal(NamedTuple):
    """What is wanted of one percentile."""

    time: str
    """Of what: "ttft" or "itl"."""
    percent: int
    """Of how many requests."""
    most_s: float
    """What it may be at most."""

    def __str__(self) -> str:
        return f"{self.time}-p{self.percent} of at most {self.most_s:g} s"

    def reached_s(self, run: RunFound) -> float | None:
        """Return what a run has instead; None for a time that no request has."""
        times: Percentiles | None = getattr(run, self.time)
        return None if times is None else float(getattr(times, f"p{self.percent}_s"))

    def met(self, run: RunFound) -> bool:
        """Say whether a run is as fast as wanted. Of a time that no request has, nothing is wanted."""
        reached_s = self.reached_s(run)
        return reached_s is None or reached_s <= self.most_s

    def said(self, run: RunFound) -> str:
        """Return what a run has instead, for people."""
        reached_s = self.reached_s(run)
        return f"{self.time}-p{self.percent} {'-' if reached_s is None else f'{reached_s:.3g} s'}"


def parse_goals(text: str) -> Sequence[Goal]:
    """Return what ``ttft-p90=0.5,itl-p50=0.03`` wants. Raises ConfigError."""
    goals = []
    for part in text.split(","):
        found = _GOAL.fullmatch(part)
        try:
            most_s = float(found[3]) if found is not None else 0.0
        except ValueError:
            most_s = 0.0
        if found is None or int(found[2]) not in PERCENTS or not 0 < most_s < float("inf"):
            raise ConfigError(f"--slo: expected {EXPECTED}, got {part!r}")
        goals.append(Goal(found[1], int(found[2]), most_s))
    return goals


def serves(run: RunFound, goals: Sequence[Goal]) -> bool:
    """Say whether a run answers every request that a worker could take, as fast as is wanted."""
    return set(run.endings) <= PASSED_OVER and all(goal.met(run) for goal in goals)


def least_workers(enough: Callable[[int], bool], workers_max: int) -> int | None:
    """Return the least size of a fleet that is enough, up to `workers_max`; None where none is."""
    too_few, size = 0, 1
    while not enough(size):
        if size == workers_max:
            return None
        too_few, size = size, min(2 * size, workers_max)
    while size - too_few > 1:
        middle = (too_few + size) // 2
        too_few, size = (too_few, middle) if enough(middle) else (middle, size)
    return size
