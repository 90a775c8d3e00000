"""What one engine costs over another, pair by pair: medians and quartiles, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.harness.cpu_time import NOTHING, Group, Use
from benchmarks.harness.report import percentile, table

SHOWN_PART = 0.0005
"""Threads have a line of their own when they cost or save this part of the plain engine's CPU time, or are ours."""
OURS = "gc-"
STORE = "Redis"
IDLE_WAKEUPS_SHOWN = 0.5
"""A second."""


class Turn(NamedTuple):
    """What one engine used for one load, or for several."""

    use: Mapping[Group, Use]
    """By group of threads."""
    elapsed_s: float
    """Until the last answer, in seconds."""

    @staticmethod
    def nothing() -> Turn:
        return Turn({}, 0.0)

    @property
    def all(self) -> Use:
        return sum(self.use.values(), NOTHING)

    def of(self, group: Group) -> Use:
        return self.use.get(group, NOTHING)

    @property
    def direct(self) -> Use:
        """What is ours beyond doubt: our threads, our calls, and Redis, which nobody else uses."""
        ours = (use for group, use in self.use.items() if group.thread.startswith(OURS) or group.process == STORE)
        return sum(ours, NOTHING)

    def of_process(self, process: str) -> Use:
        return sum((use for group, use in self.use.items() if group.process == process), NOTHING)

    def __add__(self, other: object) -> Turn:
        assert isinstance(other, Turn)
        groups = {**self.use, **other.use}
        return Turn({group: self.of(group) + other.of(group) for group in groups}, self.elapsed_s + other.elapsed_s)


class Pair(NamedTuple):
    """Two engines, and what they used for the same load."""

    plain: Turn
    shared: Turn

    @property
    def cost(self) -> float:
        """What the second used more, as a part of what the first used."""
        return self.shared.all.cpu_s / self.plain.all.cpu_s - 1


def report(pairs: Sequence[Pair], tokens: int) -> str:
    """Return the table of a load. tokens: of one turn, two of which make one side of a pair.

    Every cost is a part of all that the plain engine used, so that the lines of threads add up to that of all.
    """
    groups = sorted({group for pair in pairs for group in (*pair.plain.use, *pair.shared.use)})
    rows = [
        _line("all", pairs, tokens, lambda turn: turn.all),
        _line("direct", pairs, tokens, lambda turn: turn.direct),
    ]
    for process in sorted({group.process for group in groups}):
        rows.append(_line(process, pairs, tokens, lambda turn, name=process: turn.of_process(name)))  # type: ignore[misc]
        for group in groups:
            if group.process == process and _is_shown(group, pairs):
                rows.append(_line(f"  {group.thread}", pairs, tokens, lambda turn, group=group: turn.of(group)))  # type: ignore[misc]
    slower = [pair.shared.elapsed_s / pair.plain.elapsed_s - 1 for pair in pairs]
    sides = [[pair.plain.elapsed_s for pair in pairs], [pair.shared.elapsed_s for pair in pairs]]
    elapsed = [f"{median(side) / 2 / tokens * 1e6:.2f}" for side in sides]
    rows.append(["(elapsed time)", *elapsed, *_spread(slower), "", ""])
    return table(["CPU us a token", "plain", "shared", "cost", "quartiles", "wake-ups a turn", "shared"], rows)


def idle_report(idle: Mapping[str, Turn]) -> str:
    """Return the table of what idle engines use."""
    rows = [
        _idle_line("all", list(idle.values()), lambda turn: turn.all),
        _idle_line("direct", list(idle.values()), lambda turn: turn.direct),
    ]
    for group in sorted({group for turn in idle.values() for group in turn.use}):
        if any(turn.of(group).wakeups / turn.elapsed_s > IDLE_WAKEUPS_SHOWN for turn in idle.values()):
            name = f"{group.process}: {group.thread}"
            rows.append(_idle_line(name, list(idle.values()), lambda turn, group=group: turn.of(group)))  # type: ignore[misc]
    return table(["idle: CPU ms a second", *idle, "wake-ups a second", *list(idle)[1:]], rows)


def calls_report(calls: Mapping[str, Use]) -> str:
    """Return the table of the calls that an engine makes of its connector."""
    rows = [
        [name, f"{use.cpu_s / use.wakeups * 1e6:.1f}", f"{use.wakeups:,}"] for name, use in calls.items() if use.wakeups
    ]
    return table(["the connector's calls", "CPU us each", "calls"], rows)


def as_json(pairs: Sequence[Pair], idle: Mapping[str, Turn], calls: Mapping[str, Use]) -> dict[str, Any]:
    """Return all that was measured, as plain values."""
    costs = [pair.cost for pair in pairs]
    return {
        "cost": _summary(costs),
        "direct_cost": _summary([pair.shared.direct.cpu_s / pair.plain.all.cpu_s for pair in pairs]),
        "pairs": [{"plain": _plain(pair.plain), "shared": _plain(pair.shared)} for pair in pairs],
        "calls": {name: use._asdict() for name, use in calls.items()},
        "idle": {name: _plain(turn) for name, turn in idle.items()},
    }


def _summary(costs: Sequence[float]) -> dict[str, Any]:
    return {"median": median(costs), "quartiles": [percentile(costs, 25), percentile(costs, 75)]}


def _is_shown(group: Group, pairs: Sequence[Pair]) -> bool:
    change = median((pair.shared.of(group).cpu_s - pair.plain.of(group).cpu_s) / pair.plain.all.cpu_s for pair in pairs)
    return abs(change) >= SHOWN_PART or (group.thread.startswith(OURS) and change > 0)


def _line(name: str, pairs: Sequence[Pair], tokens: int, of: Callable[[Turn], Use]) -> list[str]:
    plain, shared = [of(pair.plain) for pair in pairs], [of(pair.shared) for pair in pairs]
    costs = [(b.cpu_s - a.cpu_s) / pair.plain.all.cpu_s for a, b, pair in zip(plain, shared, pairs, strict=True)]
    cpu = [f"{median(use.cpu_s for use in side) / 2 / tokens * 1e6:.2f}" for side in (plain, shared)]
    woken = [f"{median(use.wakeups for use in side) / 2:,.0f}" for side in (plain, shared)]
    return [name, *cpu, *_spread(costs), *woken]


def _idle_line(name: str, turns: Sequence[Turn], of: Callable[[Turn], Use]) -> list[str]:
    cpu = [f"{of(turn).cpu_s / turn.elapsed_s * 1e3:.2f}" for turn in turns]
    return [name, *cpu, *(f"{of(turn).wakeups / turn.elapsed_s:.1f}" for turn in turns)]


def _plain(turn: Turn) -> dict[str, Any]:
    threads = {f"{group.process}: {group.thread}": use._asdict() for group, use in sorted(turn.use.items())}
    return {"elapsed_s": turn.elapsed_s, "threads": threads}


def _spread(parts: Sequence[float]) -> list[str]:
    return [f"{median(parts):+.2%}", f"{percentile(parts, 25):+.2%} to {percentile(parts, 75):+.2%}"]
