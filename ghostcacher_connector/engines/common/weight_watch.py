"""Whether the weights that an engine computes with are still those of its namespace.

    doubt (a call that may have changed them) --> nothing is published, nothing new is pulled
    settle (before the next step)             --> the ranks read their weights:
          as before     sharing goes on
          changed       a new weight epoch: the worker moves to another namespace
          unreadable    a weight epoch that no other worker has

The epoch of changed weights is a digest of them, so workers that were given the same ones share again; whoever gets
back what he was started with is where he began. Ranks hold different shards: theirs are combined in order of rank.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence

from ghostcacher_connector.identity.fingerprint import WEIGHTS_AS_STARTED, private_value
from ghostcacher_connector.metrics import Recorder

logger = logging.getLogger(__name__)

DIGEST_BYTES = 16


class WeightWatch:
    """Knows the weights of one engine; see the module's docstring. Driven by the scheduler's thread alone."""

    doubt: str | None
    """What may have changed the weights since they were read last; None when nothing has."""

    epoch: str
    """The weight epoch of what was read last."""

    def __init__(
        self, read: Callable[[], Sequence[str]], recorder: Recorder, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the weights that the engine was started with.

        read: returns each rank's digest, in order of rank; it may raise.
        """
        self.doubt = None
        self.epoch = WEIGHTS_AS_STARTED
        self._read = read
        self._recorder = recorder
        self._clock = clock
        began = clock()
        self._as_started = self._present = self._digest()
        logger.debug("read the weights in %.2f s", clock() - began)

    def __repr__(self) -> str:
        return f"WeightWatch(epoch={self.epoch}, doubt={self.doubt})"

    def may_have_changed(self, why: str) -> None:
        """Note a call that may change the weights, before it does."""
        self.doubt = self.doubt or why

    def settle(self) -> bool:
        """Read the weights; return whether they have changed since they were read last."""
        began = self._clock()
        digest, why, self.doubt = self._digest(), self.doubt, None
        seconds = self._clock() - began
        self._recorder.observe("gc_weight_check_seconds", seconds)
        changed = digest != self._present
        self._present = digest
        logger.info("%s: weights %s, found in %.2f s", why, "have changed" if changed else "are as before", seconds)
        if changed:
            self.epoch = WEIGHTS_AS_STARTED if digest == self._as_started else digest
            self._recorder.inc("gc_weight_changes_total")
        return changed

    def _digest(self) -> str:
        try:
            ranks = self._read()
        except Exception:
            logger.exception("the weights cannot be read")
            return private_value()
        return hashlib.blake2b("\n".join(ranks).encode(), digest_size=DIGEST_BYTES).hexdigest()
