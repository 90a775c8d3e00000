"""One request in the queue of one worker. queue_estimate.py makes and counts them."""

from __future__ import annotations


class Reservation:
    """One request in the queue of one worker, from its placement until its end."""

    __slots__ = ("alone", "computed", "prefilling", "pull_ms", "since", "tokens", "worker")

    def __init__(self, worker: str, tokens: int, computed: int, since: float, pull_ms: float = 0.0) -> None:
        self.worker = worker
        self.tokens = tokens
        """Tokens of the prompt."""
        self.computed = computed
        """How many of the prompt's tokens the worker has to compute."""
        self.since = since
        """When the request was sent, or before that, placed; loop clock, s."""
        self.pull_ms = pull_ms
        """How long the pull takes of what it is to pull; 0 when that is nothing."""
        self.prefilling = True
        """Whether the prompt is still to be computed, as far as is known."""
        self.alone = True
        """Whether none of this router's prompts was to be computed there before it."""

    def __repr__(self) -> str:
        return f"Reservation({self.worker}, computed={self.computed}/{self.tokens}, prefilling={self.prefilling})"
