"""Whether Redis answers, and if not, why: said in the log when that changes, and to people at any time."""

from __future__ import annotations

import logging

from ghostcacher_connector.core.errors import IndexRefused, IndexUnavailable

logger = logging.getLogger(__name__)


class RedisTrouble:
    """What was wrong with Redis when it was asked last."""

    def __init__(self) -> None:
        self._last: IndexUnavailable | None = None

    def __repr__(self) -> str:
        return f"RedisTrouble({self.text})"

    @property
    def text(self) -> str | None:
        """Return what it was, for people; None while Redis answers, and without one."""
        return None if self._last is None else str(self._last)

    def failed(self, exc: IndexUnavailable, known_workers: int) -> None:
        """Redis did not answer, or refused this router."""
        if type(exc) is not type(self._last):
            what = "Redis refuses this router" if isinstance(exc, IndexRefused) else "Redis is away"
            logger.warning("%s; the %d known workers stay: %s", what, known_workers, exc)
        self._last = exc

    def answered(self) -> None:
        """Redis answered."""
        if self._last is not None:
            logger.info("Redis answers again")
        self._last = None
