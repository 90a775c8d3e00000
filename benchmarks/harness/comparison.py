"""What sharing saves: one load, answered by engines that share their caches, and by the same engines on their own.

Each round has new documents, and begins with empty caches. The engines share first: what they keep from that run could
be pulled in a second one, while an engine on its own finds only what is in its own prefix cache, which is emptied.
So the same questions can be asked in the same order, and each answer can be compared with its twin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

from benchmarks.harness.client import Client, Metrics, compare
from benchmarks.harness.engine import Engine
from benchmarks.harness.report import milliseconds, table
from benchmarks.harness.scenario import PullNumbers, nudge, pull_numbers, ratio
from benchmarks.harness.workload import Load, Result, round_robin, run_load, through
from ghostcacher_connector.core.types import MissReason

ROUNDING_MAX = 0.1
"""Between two right log-probabilities of one token. What was computed and what was found in a cache are matrix products
of other shapes, which round otherwise: by up to some hundredths. A wrong block moves an answer by far more."""


class Round(NamedTuple):
    """One load, answered twice. pulls: what the engines took from each other while they shared, one after another."""

    sharing: Result
    alone: Result
    pulls: tuple[PullNumbers, ...]

    @property
    def pulled(self) -> int:
        """Tokens that engines took from each other."""
        return sum(pull.tokens for pull in self.pulls)

    @property
    def differences(self) -> list[float]:
        """By how much each answer is off its twin: the largest distance of their log-probabilities.

        Up to the first token in which they part: right answers part only where two tokens are equally likely.
        """
        pairs = zip(self.alone.answers, self.sharing.answers, strict=True)
        return [compare(alone, sharing).logprob_max for alone, sharing in pairs]


def run_round(
    engines: Sequence[Engine],
    router: Client,
    load: Load,
    *,
    concurrency: int,
    max_tokens: int,
    progress: Callable[[str], None],
) -> Round:
    """Ask every question twice: through the router, and round robin over engines that do not pull."""
    clients = [engine.client for engine in engines]
    forget(clients)
    before = readings(clients)
    together, apart = through(router), round_robin(clients)
    together.name, apart.name = "sharing", "each engine alone"
    run = partial(run_load, load=load, concurrency=concurrency, max_tokens=max_tokens, progress=progress)
    sharing = run(together, pull=True)
    pulls = tuple(pull_numbers(*pair) for pair in zip(before, readings(clients), strict=True))
    forget(clients)
    return Round(sharing, run(apart, pull=False), pulls)


def forget(clients: Sequence[Client]) -> None:
    """Empty the engines' prefix caches."""
    for client in clients:
        client.reset_prefix_cache()


def readings(clients: Sequence[Client]) -> list[Metrics]:
    """Return what the engines have counted up to now."""
    for client in clients:
        nudge(client)
    return [client.metrics() for client in clients]


def unpulled(rounds: Sequence[Round]) -> dict[str, float]:
    """Return how many blocks were computed that a peer may have held, by reason.

    Those that no peer had said to hold are left out: they had to be computed by somebody.
    """
    counted: Counter[str] = Counter()
    for one in rounds:
        for pull in one.pulls:
            counted.update(pull.misses)
    return {why: count for why, count in sorted(counted.items()) if why != MissReason.NOT_INDEXED.value}


def comparison_table(rounds: Sequence[Round]) -> str:
    """Return medians over the rounds, with the lowest and the highest where there are several."""
    asked = len(rounds[0].alone.answers)
    rows = [
        _row("time to first token, p50", rounds, lambda result: result.p50_s, milliseconds),
        _row("time to first token, p90", rounds, lambda result: result.p90_s, milliseconds),
        _row(f"all {asked} questions answered in", rounds, lambda result: result.seconds, _seconds),
        _row("prompt tokens computed", rounds, lambda result: result.computed, _count),
    ]
    found = [sum(_in_own_cache(one)[index] for one in rounds) for index in (0, 1)]
    prompt = [sum(result.prompt for result in results) for results in zip(*_pairs(rounds), strict=True)]
    pulled = sum(one.pulled for one in rounds)
    rows.append(["found in the engine's own cache", *(f"{a / b:.0%}" for a, b in zip(found, prompt, strict=True)), ""])
    rows.append(["pulled from the other engine", "0%", f"{pulled / prompt[1]:.0%}", ""])
    return table(["the load", "each engine alone", "sharing", ""], rows)


def _row(
    name: str, rounds: Sequence[Round], value: Callable[[Result], float], show: Callable[[float], str]
) -> list[str]:
    alone = [value(one.alone) for one in rounds]
    sharing = [value(one.sharing) for one in rounds]
    return [name, _spread(alone, show), _spread(sharing, show), ratio(median(alone), median(sharing))]


def _spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    middle = show(median(values))
    return middle if len(values) == 1 else f"{middle} ({_bare(show(min(values)))}-{_bare(show(max(values)))})"


def _bare(text: str) -> str:
    return text.split(" ", maxsplit=1)[0]


def _seconds(value: float) -> str:
    return f"{value:.1f} s"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _pairs(rounds: Sequence[Round]) -> list[tuple[Result, Result]]:
    return [(one.alone, one.sharing) for one in rounds]


def _in_own_cache(one: Round) -> tuple[int, int]:
    """Return the tokens that engines found in their own caches: alone, sharing."""
    return one.alone.prompt - one.alone.computed, one.sharing.prompt - one.sharing.computed - one.pulled


def wrong_answers(rounds: Sequence[Round]) -> int:
    """Return how many answers differ from their twins by more than rounding."""
    return sum(difference > ROUNDING_MAX for one in rounds for difference in one.differences)


def sentence(rounds: Sequence[Round]) -> str:
    """Return the outcome in one sentence, whichever it is."""
    asked = len(rounds[0].alone.answers)
    alone, sharing = (median(values) for values in zip(*((a.p50_s, s.p50_s) for a, s in _pairs(rounds)), strict=True))
    saved = 1 - sum(one.sharing.computed for one in rounds) / sum(one.alone.computed for one in rounds)
    wrong = wrong_answers(rounds)
    answers = f"{wrong} of {asked * len(rounds)} answers DIFFER" if wrong else "every answer the same"
    return (
        f"Sharing: the same {asked} questions, median time to first token {milliseconds(alone)} -> "
        f"{milliseconds(sharing)} ({ratio(alone, sharing)}), {abs(saved):.0%} {'fewer' if saved >= 0 else 'MORE'} "
        f"prompt tokens computed, {answers}."
    )
