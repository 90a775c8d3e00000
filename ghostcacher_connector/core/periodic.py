"""A daemon thread that runs one step again and again, until it is stopped.

    step --returns how long nothing is due--> pause --over, or cut short by `wake`--> step

A step that is woken is run `gather_s` after the first call of `wake`, so that what arrives in quick succession is
handled at once. What arrives during a step wakes the next one.

An unexpected error in a step is logged and the thread goes on: a bug, ours or that of a library, must not end the work
for the rest of the process's life. Whoever owns the thread handles the errors that it expects inside the step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ghostcacher_connector.core.threads import daemon_thread

logger = logging.getLogger(__name__)

ERROR_PAUSE_S = 2.0
"""Pause after an unexpected error: one that returns with each step must not fill the log."""


class Periodic:
    """One such thread. Every method may be called from any thread."""

    def __init__(
        self,
        name: str,
        step: Callable[[], float],
        *,
        gather_s: float = 0.0,
        at_end: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        """Prepare the thread; `start` starts it.

        step: does what is due, within a bound of its own, and returns for how many seconds nothing else is. at_end: run
        once on the same thread after the last step. wait: waits for an event for some seconds and returns whether it is
        set; a test replaces it.
        """
        self._name = name
        self._step = step
        self._gather_s = gather_s
        self._at_end = at_end
        self._clock = clock
        self._wait = wait
        self._woken = threading.Event()
        self._woken_at = 0.0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"Periodic({self._name}, {'running' if self.alive else 'not running'})"

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called: a long step then ends early."""
        return self._stopping.is_set()

    def start(self) -> None:
        """Start the thread, whose first step is due at once. To be called once."""
        assert self._thread is None, f"{self._name} starts once"
        self._thread = daemon_thread(self._name, self.run)
        self._thread.start()

    def wake(self) -> None:
        """Have the next step run soon. Costs next to nothing while the thread is already awake."""
        if not self._woken.is_set():
            self._woken_at = self._clock()
            self._woken.set()

    def forget_wakes(self) -> None:
        """Let nothing that arrived so far cut the next pause short: for a step that failed. The end still does."""
        self._woken.clear()
        if self._stopping.is_set():
            self._woken.set()

    def stop(self, timeout_s: float) -> None:
        """Ask the thread to end, and wait for that for at most `timeout_s`. Idempotent."""
        self._stopping.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def run(self) -> None:
        """Run steps until `stop` is called: what the thread does. A test may call it on its own thread."""
        while True:
            # In this order: what arrives from here on, the end included, cuts the next pause short.
            self._woken.clear()
            if self._stopping.is_set():
                break
            try:
                pause_s = self._step()
            except Exception:
                logger.exception("%s: unexpected error, going on in %g s", self._name, ERROR_PAUSE_S)
                self._wait(self._stopping, ERROR_PAUSE_S)
                continue
            if self._wait(self._woken, pause_s) and self._gather_s > 0:
                self._wait(self._stopping, max(0.0, self._woken_at + self._gather_s - self._clock()))
        if self._at_end is not None:
            self._at_end()
