"""A process with an object tier over files, to be killed, or to be given a disk that is full or read-only.

    python -m tests.support.object_program write FOLDER      writes prompts for ever, and prints the number of each
    python -m tests.support.object_program full FOLDER       writes until nothing more fits
    python -m tests.support.object_program read-only FOLDER  reads and writes where nothing can be written

The last two print what came of it as one line of JSON.
"""

from __future__ import annotations

import json
import sys
from itertools import count
from pathlib import Path

from ghostcacher_connector.metrics.recorder import Delta, Recorder
from ghostcacher_connector.objects.object_notes import RunFacts
from ghostcacher_connector.objects.stores.file_store import FileStore
from ghostcacher_connector.objects.tier import ObjectTier
from tests.support.index_parts import wait_until
from tests.support.object_tiers import chain, opened, right, rows_of

BLOCKS = 8
WAIT_S = 60.0


def prompt(number: int) -> list[bytes]:
    return chain(BLOCKS, f"prompt {number}")


def merge(into: dict[str, dict[str, float]], delta: Delta) -> None:
    """Add up counters."""
    for name, series in delta.items():
        for key, value in series.items():
            if isinstance(value, float) and name.endswith("_total"):
                sums = into.setdefault(name, {})
                sums[key] = sums.get(key, 0.0) + value


def written(tier: ObjectTier, number: int, recorder: Recorder, sums: dict[str, dict[str, float]]) -> bool:
    """Write one prompt, and wait for what becomes of it; return whether it is in the store."""
    sums.pop("gc_object_writes_total", None)
    assert tier.write(prompt(number), rows_of(prompt(number)), RunFacts(0, 1))

    def over() -> bool:
        merge(sums, recorder.drain())
        return bool(sums.get("gc_object_writes_total"))

    wait_until(over, WAIT_S, "the write is over")
    return set(sums["gc_object_writes_total"]) <= {"written", "existed"}


def write_for_ever(tier: ObjectTier) -> None:
    for number in count():
        if not tier.write(prompt(number), rows_of(prompt(number)), RunFacts(0, 1)):
            wait_until(lambda number=number: tier.longest(prompt(number - 1)) > 0, WAIT_S, "the queue moves")  # type: ignore[misc]
        print(number, flush=True)


def fill(tier: ObjectTier, recorder: Recorder) -> None:
    sums: dict[str, dict[str, float]] = {}
    fitting = next(number for number in count() if not written(tier, number, recorder, sums))
    still_right = [right(tier, prompt(number)) for number in range(fitting)]
    merge(sums, recorder.drain())
    print(json.dumps({"fitting": fitting, "right": still_right, "sums": sums}))


def main() -> None:
    mode, folder = sys.argv[1:]
    recorder = Recorder()
    with opened(FileStore(Path(folder)), recorder=recorder) as tier:
        if mode == "write":
            write_for_ever(tier)
        elif mode == "full":
            fill(tier, recorder)
        else:
            sums: dict[str, dict[str, float]] = {}
            fine = right(tier, prompt(0))
            wrote = written(tier, 1, recorder, sums)
            print(json.dumps({"right": fine, "wrote": wrote, "sums": sums}))


if __name__ == "__main__":
    main()
