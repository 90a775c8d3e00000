"""Leaves the fleet as soon as vLLM is asked to end.

From SIGTERM on an engine core takes no new request, but vLLM's server listens on and says that it is well, for as long
as `--shutdown-timeout` lets running requests end: what routers send there meanwhile comes back aborted. The connector
hears of the end only when it is over. So it hears the signal itself, in the process of the engine core, beside vLLM's
own handler: the worker's lease ends at once, and what runs goes on.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType

from ghostcacher_connector.core.threads import daemon_thread

logger = logging.getLogger(__name__)


def leave_on_sigterm(leave: Callable[[], None]) -> bool:
    """Have `leave` called on a thread of its own when SIGTERM comes, besides what is done then; say whether it will be.

    It is not where nobody handles the signal, so that it ends the process anyway, nor beside the main thread.
    """
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        return False
    asked = threading.Event()

    def run() -> None:
        asked.wait()
        logger.info("SIGTERM: leaving the fleet; what runs goes on")
        leave()

    def handle(number: int, frame: FrameType | None) -> None:
        # No thread is started here: the signal may have come in the middle of starting one.
        asked.set()
        before(number, frame)

    daemon_thread("gc-leave", run).start()
    signal.signal(signal.SIGTERM, handle)
    return True
