"""What was found truncated, foreign or damaged: moved out of the way, and not touched again."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from ghostcacher_connector.metrics.recorder import Recorder
from ghostcacher_connector.objects.layout import quarantine_name
from ghostcacher_connector.objects.object_format import Damage
from ghostcacher_connector.objects.stores.base import ObjectStore, StoreError, StoreFault

logger = logging.getLogger(__name__)

REMEMBERED_S = 3600.0
REMEMBERED_MAX = 1024


class Quarantine:
    """Puts objects aside. Thread-safe."""

    def __init__(self, store: ObjectStore, recorder: Recorder, *, wall: Callable[[], float] = time.time) -> None:
        self._store = store
        self._recorder = recorder
        self._wall = wall
        self._lock = threading.Lock()
        self._left: OrderedDict[str, float] = OrderedDict()
        """Objects that could not be moved, and until when they are left alone."""

    def __contains__(self, name: str) -> bool:
        """Whether an object was found damaged lately and still stands under its name."""
        with self._lock:
            return self._left.get(name, 0.0) > self._wall()

    def put_aside(self, name: str, damage: Damage) -> bool:
        """Move an object away; return whether its name is free now.

        Where it cannot be moved, in a store that is read-only, say, this worker remembers it.
        """
        logger.warning("object tier: %s is %s and is put aside: %s", name, damage.reason, damage)
        self._recorder.inc("gc_object_quarantined_total", reason=damage.reason)
        try:
            self._store.move(name, quarantine_name(name))
        except StoreError as error:
            if error.fault is StoreFault.MISSING:
                return True
            logger.warning("object tier: %s", error)
            with self._lock:
                self._left[name] = self._wall() + REMEMBERED_S
                while len(self._left) > REMEMBERED_MAX:
                    self._left.popitem(last=False)
            return False
        return True
