"""When the garbage collector of a router's program looks at what.

Nearly all that outlives a request is what the router remembers: hundreds of thousands of objects without a cycle among
them. To look through these takes a third of a second, in which nobody is served. So what outlives one collection is set
aside from all that follow, and only new objects are looked at, some thousands at a time. Garbage among what was set
aside (a TLS connection leaves some) makes it more and more: once there is half as much again, everything is looked
through.
"""

from __future__ import annotations

import asyncio
import gc

YOUNG_OBJECTS = 2_000
"""New objects between two collections, each of which takes a millisecond or two."""
LOOK_S = 60.0
"""Between two times that what was set aside is counted, which takes some milliseconds."""
GROWTH_MAX = 1.5
"""How many times as much may be set aside as when everything was last looked through."""


def set_survivors_aside() -> None:
    """Have each collection look only at what is new since the last one. Idempotent."""
    if _set_aside not in gc.callbacks:
        gc.callbacks.append(_set_aside)
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)
    gc.collect()


async def look_through_all() -> None:
    """Look through everything when there is much more, until cancelled. To be begun once survivors are set aside."""
    known = gc.get_freeze_count()
    while True:
        await asyncio.sleep(LOOK_S)
        if gc.get_freeze_count() > GROWTH_MAX * known:
            gc.unfreeze()
            gc.collect()
            known = gc.get_freeze_count()


def _set_aside(phase: str, _: object) -> None:
    if phase == "stop":
        gc.freeze()
