"""Whether the weights that an engine computes with are still those of its namespace.

    doubt (a call that may have changed them) --> nothing is published, nothing new is pulled
    settle (before the next step)             --> the ranks read their weights:
          as before     sharing goes on
          changed       a new weight epoch: the worker moves to another namespace
          unreadable    a weight epoch that no other worker has, until a later step can read them

The epoch of changed weights is a digest of them, so workers that were given the same ones share again; whoever gets
back what he was started with is where he began. Ranks hold different shards: theirs are combined in order of rank.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence

from ghostcacher_connector.core.backoff import Backoff
from ghostcacher_connector.identity.fingerprint import WEIGHTS_AS_STARTED, private_value
from ghostcacher_connector.metrics import Recorder

logger = logging.getLogger(__name__)

DIGEST_BYTES = 16

READ_AGAIN_FIRST_S = 1.0
READ_AGAIN_MAX_S = 300.0
"""Pauses between reads that fail. The engine waits for each of them, and a full GPU stays full for a while."""

UNREAD = "unread-"
"""How a rank's digest begins when its weights could not be read; a value that no other rank has follows."""


class WeightWatch:
    """Knows the weights of one engine; see the module's docstring. Driven by the scheduler's thread alone."""

    doubt: str | None
    """What may have changed the weights since they were read last; None when nothing has."""

    epoch: str
    """The weight epoch of what was read last."""

    unread: bool
    """Whether the last read failed, on any rank."""

    def __init__(
        self, read: Callable[[], Sequence[str]], recorder: Recorder, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the weights that the engine was started with.

        read: returns each rank's digest, in order of rank; it may raise.
        """
        self.doubt = None
        self.unread = False
        self.epoch = WEIGHTS_AS_STARTED
        self._read = read
        self._recorder = recorder
        self._clock = clock
        self._untouched = True
        self._retries = Backoff(READ_AGAIN_FIRST_S, READ_AGAIN_MAX_S)
        began = clock()
        self._as_started = self._present = self._digest()
        logger.debug("read the weights in %.2f s", clock() - began)

    def __repr__(self) -> str:
        return f"WeightWatch(epoch={self.epoch}, doubt={self.doubt}, unread={self.unread})"

    @property
    def due(self) -> bool:
        """Whether to settle now: in doubt, or when it is time to read again what could not be read."""
        return self.doubt is not None or (self.unread and self._retries.ready(self._clock()))

    def may_have_changed(self, why: str) -> None:
        """Note a call that may change the weights, before it does."""
        self.doubt = self.doubt or why

    def settle(self) -> bool:
        """Read the weights; return whether they are others than those of the epoch before, for all that is known."""
        began = self._clock()
        why, self.doubt = self.doubt, None
        digest = self._digest()
        seconds = self._clock() - began
        self._recorder.observe("gc_weight_check_seconds", seconds)
        if why is None and self.unread:
            return False  # nothing has touched them since: this worker is where nobody else is, or where it started
        self._untouched = self._untouched and why is None
        if self._untouched:
            self._as_started = self._present = digest
        changed = digest != self._present
        self._present = digest
        result = "have changed" if changed else "are as before"
        logger.info("%s: weights %s, found in %.2f s", why or "another read", result, seconds)
        if changed:
            self.epoch = WEIGHTS_AS_STARTED if digest == self._as_started else digest
            self._recorder.inc("gc_weight_changes_total")
        return changed

    def _digest(self) -> str:
        """Return the digest of all ranks' weights; one that nobody else has, the same on every rank, if one fails."""
        try:
            ranks = self._read()
            self.unread = any(rank.startswith(UNREAD) for rank in ranks)
            digest = hashlib.blake2b("\n".join(ranks).encode(), digest_size=DIGEST_BYTES).hexdigest()
        except Exception:
            logger.exception("the ranks do not say what weights they have")
            self.unread, digest = True, private_value()
        if self.unread:
            pause_s = self._retries.failed(self._clock())
            logger.warning("the weights cannot be read: trying again with a step in %.0f s or later", pause_s)
        else:
            self._retries.succeeded()
        return digest
