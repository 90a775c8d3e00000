"""The time to first token of one long prompt by where it is found: in the own engine or tier, or in a peer's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from benchmarks.harness.client import Client
from benchmarks.harness.documents import Documents
from benchmarks.harness.engine import Engine
from benchmarks.harness.report import milliseconds, table
from benchmarks.harness.scenario import nudge, warm_up

DOCUMENTS = 6
ANSWER_TOKENS = 8


def hit_places(
    engines: Sequence[Engine],
    documents: Documents,
    document_tokens: int,
    block_tokens: int,
    progress: Callable[[str], None],
) -> dict[str, list[float]]:
    """Return times to first token, in s, by where a document of `document_tokens` was found.

    engines: two that share, each with a host tier that holds all documents, and a cache that does not.
    """
    prompts = [documents.tokens(document_tokens, seed=5_000_000 + index) for index in range(DOCUMENTS)]
    for engine in engines:
        warm_up(engine, documents.tokens(document_tokens, seed=6_000_000))
    visits = _Visits(2 * block_tokens)
    _visit([engine.client for engine in engines], prompts, visits, progress)
    return visits.found


def _visit(
    clients: Sequence[Client], prompts: Sequence[list[int]], visits: _Visits, progress: Callable[[str], None]
) -> None:
    """Ask A for all documents in turn, each twice, so that the first time it is in the host tier; then ask B."""
    a, b = clients
    for number in range(3 * len(prompts)):
        progress(f"time to first token: {number} of {3 * len(prompts)}")
        prompt = prompts[number % len(prompts)]
        visits.ask(a, prompt, "cold" if number < len(prompts) else "own host tier")
        visits.ask(a, prompt, "own engine")
    for _ in range(3):
        # The oldest ones of A are in its host tier alone; the last one is in its engine.
        for prompt, where in ((prompts[0], "peer's host tier"), (prompts[-1], "peer's engine")):
            progress(f"time to first token: {where}")
            visits.ask(b, prompt, where)
        b.reset_prefix_cache()
        nudge(b)


class _Visits:
    """What was asked, by where it was expected, and so found."""

    def __init__(self, tolerated: int) -> None:
        """tolerated: tokens of a prompt that may be computed though it is found."""
        self.found: dict[str, list[float]] = {}
        self._tolerated = tolerated

    def ask(self, client: Client, prompt: list[int], where: str) -> None:
        answer = client.complete(prompt, max_tokens=ANSWER_TOKENS)
        computed = len(prompt) - (answer.cached_tokens or 0)
        if computed > self._tolerated and where != "cold":
            where = f"not all in {where}"
        self.found.setdefault(where, []).append(answer.ttft_s)
        nudge(client)


def hit_places_report(found: Mapping[str, Sequence[float]]) -> str:
    """Return the table of where a document was found."""
    base = median(found.get("own engine", [float("nan")]))
    rows = [
        [where, str(len(times)), milliseconds(median(times)), milliseconds(min(times)), f"{median(times) / base:.2f}x"]
        for where, times in found.items()
    ]
    return "\n" + table(["document found in", "times", "TTFT p50", "least", "of an engine hit"], rows)
